"""Safety policies: `mask` hides personal data and credentials in answers, `log` only records them,
and `off` does nothing."""

from gptjax.config.safety import Credentials, PersonalData, Policy


def off() -> Policy:
    """Nothing is searched for."""
    return Policy(name="off")


def mask() -> Policy:
    """Personal data and credentials in answers are masked."""
    return Policy(name="mask", output=(PersonalData(), Credentials()))


def log() -> Policy:
    """Personal data and credentials in requests and answers are recorded, and left as they are."""
    filters = (PersonalData(action="log"), Credentials(action="log"))
    return Policy(name="log", input=filters, output=filters)


POLICIES = {"off": off, "mask": mask, "log": log}  # name -> a function that returns a Policy
