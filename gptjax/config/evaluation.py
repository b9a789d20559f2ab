"""How a model is asked in context, and how its answers are read and scored: GPT-3 section 2.4,
GPT-2 section 3. Values only.

A method says how an answer is got. Methods of choice compare completions by log-likelihoods; of the
last word, look whether the model says it; of writing, let it write; Windows reads a whole text."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, record

# Of a beam search: each beam is a row with a memory of its own; an alpha of 0.6 is usual, and 10
# prefers length to all else.
WIDEST, MOST_ALPHA = 1024, 10.0
Tokens = Annotated[int, Bounds(1, 2**24)]


@record
class PerToken:
    """The completion whose tokens have the highest mean log-likelihood: GPT-3's usual way."""


@record
class Total:
    """The completion with the highest log-likelihood, all its tokens together: GPT-3's partial
    evaluation, GPT-2's CBT."""


@record
class PerByte:
    """The highest log-likelihood over the bytes of its text: acc_norm of lm-evaluation-harness."""


@record
class Unconditional:
    """The highest P(completion | context) / P(completion | answer_context): GPT-3 for ARC,
    OpenBookQA and RACE."""

    answer_context: str = "Answer: "
    """Context of the completion alone."""


@record
class Calibrated:
    """The highest P(completion | context) / P(completion | the same demonstrations and an item
    without content), over completions: Zhao et al. 2021 (2102.09690), of which the
    probabilities' mean over several such texts is kept."""

    content_free: tuple[str, ...] = ("N/A", "[MASK]", "")
    """Texts that stand in place of the item, one after the other."""


@record
class LastWord:
    """Is the last word, all its tokens, what the model says by choosing the likeliest?"""

    stop_words: bool = False
    """Whether stop words may not begin the answer (GPT-2 section 3.3)."""


@record
class LastToken:
    """The same of the word's last token alone, the ones before it given: OpenAI's published
    figures of GPT-2 agree with this."""

    stop_words: bool = False
    """Whether stop words may not begin the answer (GPT-2 section 3.3)."""


@record
class Beam:
    """The best text of a beam search: GPT-3's free-form answers, width 4, alpha 0.6."""

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    width: Annotated[int, Bounds(1, WIDEST)] = 4
    """Beams."""
    alpha: Annotated[float, Bounds(0, MOST_ALPHA)] = 0.6
    """Length penalty: a text of n tokens is scored by its log-likelihood / ((5 + n) / 6)^alpha."""
    stops: tuple[str, ...] = ("\n",)
    """Strings before which an answer ends."""


@record
class Greedy:
    """The likeliest token, one after the other."""

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    stops: tuple[str, ...] = ("\n",)
    """Strings before which an answer ends."""


@record
class TopK:
    """Sampled among the k likeliest: GPT-2's summaries, k=2 and 100 tokens."""

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    k: Annotated[int, Bounds(1, 10**8)] = 2
    """Likeliest tokens among which each is sampled."""
    stops: tuple[str, ...] = ()
    """Strings before which an answer ends."""


@record
class Windows:
    """Each token of a text after as many before it as the context holds."""

    stride: Tokens | None = None
    """Tokens that are predicted in a window; None: the whole context."""


ChoiceMethod = PerToken | Total | PerByte | Unconditional | Calibrated
LastWordMethod = LastWord | LastToken
GenerationMethod = Beam | Greedy | TopK
Method = (
    PerToken
    | Total
    | PerByte
    | Unconditional
    | Calibrated
    | LastWord
    | LastToken
    | Beam
    | Greedy
    | TopK
    | Windows
)
Metric = Literal[
    "accuracy",  # the chosen completion is a right one; the last word is what the model says
    # of what is chosen, each completion having one, from 0 to 1: as BIG-bench's
    # multiple_choice_grade
    "grade",
    "group_accuracy",  # all items of a group are right: MultiRC
    "exact_match",  # of normalised texts: what "normalised" means is the task's
    "f1",  # of words, likewise
    # of choices: F1 of each number of completion, averaged over those that are right somewhere: CB
    "macro_f1",
    "f1a",  # of choices: F1 of choosing the first completion, over all items: MultiRC
    "bleu",  # SacreBLEU's with tokenisation intl, of the whole corpus: GPT-3's second row
    "bleu_mb",  # of the whole corpus, of Moses' words: GPT-3's first row, by multi-bleu.perl
    "rouge",  # the mean of the three
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
]


@record
class Protocol:
    """How a task is presented to a model, and how its answers are scored."""

    shots: Annotated[int, Bounds(0, 10**6)]
    """K, the demonstrations of the paper's few-shot score."""
    method: Method
    """How the answer is found."""
    metric: Metric
    """How answers are scored."""
    description: str = ""
    """Text before the demonstrations."""
    description_min_shots: Annotated[int, Bounds(0, 10**6)] = 0
    """Demonstrations from which on the description is shown: LAMBADA's stands only before some."""
    separator: str = "\n\n"
    """Text between demonstrations, before the item, and after the description."""
    prompt_variant: str = ""
    """One of the task's ways to write an item, where it has several; "": its first."""
    words: str | None = None
    """Of the tasks that scramble words, a file with a word a line, the most frequent first; None:
    the system's."""
    fixed_shots: bool = False
    """Whether all items have the same demonstrations, as GPT-3's for WSC and MultiRC; else they are
    drawn anew for each."""
