"""Safety policies: `mask` hides personal data and credentials in answers, `log` only records them,
`refuse` refuses prompts that a classifier takes for harmful as well, and `off` does nothing."""

from gptjax.config.safety import Credentials, PersonalData, Policy, PromptClassifier


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


def refuse() -> Policy:
    """As mask; and prompts are refused to which the classifier in runs/refusal gives the label
    harmful."""
    classifier = PromptClassifier(model="runs/refusal", label="harmful")
    output = (PersonalData(), Credentials())
    return Policy(name="refuse", output=output, classifiers=(classifier,))


POLICIES = {
    "off": off,
    "mask": mask,
    "log": log,
    "refuse": refuse,
}  # name -> a function that returns a Policy
