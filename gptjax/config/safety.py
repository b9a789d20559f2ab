"""Config of safety: what may not come in or leave, and what is done about it. Values only."""

from typing import Literal

from gptjax.config.record import Fraction, record

Action = Literal["mask", "refuse", "log"]
PromptAction = Literal["refuse", "log"]
PersonalKind = Literal["email", "phone", "card", "iban", "ip", "ssn"]
CredentialKind = Literal["api_key", "private_key"]


@record
class PersonalData:
    """Personal data that have a form of their own."""

    kinds: tuple[PersonalKind, ...] = ("email", "phone", "card", "iban", "ip", "ssn")
    """What is searched for: e-mail addresses, telephone numbers, payment cards, IBANs, public
    addresses of the internet, social security numbers of the USA."""
    action: Action = "mask"
    """mask: replaced by its kind, as <email>; refuse: the text ends before it, or the request is
    refused; log: it is only recorded."""
    region: str | None = "US"
    """Country (ISO 3166, two letters) whose telephone numbers are found in any form that is written
    there; None: only numbers whose form alone shows what they are."""


@record
class Credentials:
    """API keys and private keys."""

    kinds: tuple[CredentialKind, ...] = ("api_key", "private_key")
    """What is searched for."""
    action: Action = "mask"
    """As of PersonalData."""


@record
class Secrets:
    """Texts that are given: secrets, or words of one's own. Upper and lower case are the same, and
    so is any single white space character."""

    texts: tuple[str, ...] = ()
    """The texts, of 3 to 500 characters."""
    file: str | None = None
    """A file with more, a line each."""
    action: Action = "mask"
    """As of PersonalData."""


@record
class WordClassifier:
    """Words that a classifier takes for one of some kind, such as names of people."""

    model: str
    """A run of python -m gptjax.finetune on examples of python -m gptjax.word_examples."""
    labels: tuple[str, ...] = ("person",)
    """Its labels of what is searched for."""
    threshold: Fraction = 0.5
    """The probability of a label from which on a word has it."""
    action: Action = "mask"
    """As of PersonalData."""

    def __post_init__(self):
        if not self.labels:
            raise ValueError("labels=(): name the labels of what is searched for, as ('person',)")


Filter = PersonalData | Credentials | Secrets | WordClassifier


@record
class PromptClassifier:
    """Whole prompts that a classifier takes for harmful."""

    model: str
    """A run of python -m gptjax.finetune."""
    label: str
    """Its label of what is harmful."""
    threshold: Fraction = 0.5
    """The probability of that label from which on a prompt is refused."""
    action: PromptAction = "refuse"
    """refuse: the request is refused; log: it is only recorded."""


@record
class Policy:
    """What is searched for in what users send and in what the model answers."""

    name: str
    """Name of the policy."""
    input: tuple[Filter, ...] = ()
    """Filters of messages and prompts."""
    output: tuple[Filter, ...] = ()
    """Filters of answers."""
    classifiers: tuple[PromptClassifier, ...] = ()
    """Classifiers of prompts, after the filters of input. Of a conversation each message is read by
    itself, but for those of the assistant."""
