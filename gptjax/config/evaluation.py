"""Config of an evaluation: how a model is prompted, and how its answers are obtained and scored
(GPT-3 section 2.4, GPT-2 section 3). Values only.

A method determines how answers are obtained. Choice methods compare the log-likelihoods of
completions; last-word methods check whether the model predicts the last word; generation methods
let the model write; Windows scores a whole text.
"""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, record

# Each beam is a row with its own KV cache; alpha 0.6 is usual, and 10 prefers length above all.
MAX_BEAM_WIDTH, MAX_ALPHA = 1024, 10.0
Tokens = Annotated[int, Bounds(1, 2**24)]


@record
class PerToken:
    """Choose the completion with the highest mean log-likelihood per token: GPT-3's
    usual method.
    """


@record
class Total:
    """Choose the completion with the highest total log-likelihood: GPT-3's partial evaluation,
    GPT-2's CBT.
    """


@record
class PerByte:
    """Choose the completion with the highest log-likelihood per byte of text: acc_norm of
    lm-evaluation-harness.
    """


@record
class Unconditional:
    """Choose the completion with the highest P(completion | context) / P(completion |
    answer_context): GPT-3 for ARC, OpenBookQA and RACE.
    """

    answer_context: str = "Answer: "
    """Context of the completion alone."""


@record
class Calibrated:
    """Choose the completion with the highest P(completion | context) / P(completion | the same
    demonstrations and an item without content), both normalized over completions: Zhao et al. 2021
    (2102.09690), with probabilities averaged over several content-free texts.
    """

    content_free: tuple[str, ...] = ("N/A", "[MASK]", "")
    """Texts that stand in place of the item, one after the other."""


@record
class LastWord:
    """Check whether greedy decoding yields the last word, in all its tokens."""

    stop_words: bool = False
    """Whether stop words may not begin the answer (GPT-2 section 3.3)."""


@record
class LastToken:
    """Check whether the argmax is the last word's last token, given the ones before it: agrees with
    OpenAI's published GPT-2 figures.
    """

    stop_words: bool = False
    """Whether stop words may not begin the answer (GPT-2 section 3.3)."""


@record
class Beam:
    """Generate by beam search: GPT-3's free-form answers, width 4, alpha 0.6."""

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    width: Annotated[int, Bounds(1, MAX_BEAM_WIDTH)] = 4
    """Beams."""
    alpha: Annotated[float, Bounds(0, MAX_ALPHA)] = 0.6
    """Length penalty: a text of n tokens is scored by its log-likelihood / ((5 + n) / 6)^alpha."""
    stops: tuple[str, ...] = ("\n",)
    """Strings before which an answer ends."""


@record
class Greedy:
    """Generate greedily."""

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    stops: tuple[str, ...] = ("\n",)
    """Strings before which an answer ends."""


@record
class TopK:
    """Generate by sampling among the k most likely tokens: GPT-2's summaries, k=2 and
    100 tokens.
    """

    n_tokens: Tokens
    """Tokens of an answer, at most."""
    k: Annotated[int, Bounds(1, 10**8)] = 2
    """Number of most likely tokens to sample from."""
    stops: tuple[str, ...] = ()
    """Strings before which an answer ends."""


@record
class Windows:
    """Score each token of a text given as many tokens before it as the context holds."""

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
    "accuracy",  # the chosen completion is correct; or the last word is predicted
    # The value of the chosen completion, each having one from 0 to 1: BIG-bench's
    # multiple_choice_grade.
    "grade",
    "group_accuracy",  # all items of a group are correct: MultiRC
    "exact_match",  # of normalized texts; the task defines the normalization
    "f1",  # of words, likewise
    # Of choices: F1 of each completion index, averaged over those that are ever correct: CB.
    "macro_f1",
    "f1a",  # of choices: F1 of choosing the first completion, over all items: MultiRC
    "bleu",  # SacreBLEU with tokenization intl, of the whole corpus: GPT-3's second row
    "bleu_mb",  # of the whole corpus with Moses tokenization: GPT-3's first row, by multi-bleu.perl
    "rouge",  # the mean of the next three
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
]


@record
class Protocol:
    """The settings of an evaluation: how items are presented, answered and scored."""

    shots: Annotated[int, Bounds(0, 10**6)]
    """Number of demonstrations: the K of the paper's few-shot score."""
    method: Method
    """How answers are obtained."""
    metric: Metric
    """How answers are scored."""
    description: str = ""
    """Text before the demonstrations."""
    description_min_shots: Annotated[int, Bounds(0, 10**6)] = 0
    """Fewest demonstrations with which the description is shown: LAMBADA's needs at least one."""
    separator: str = "\n\n"
    """Text between demonstrations, before the item, and after the description."""
    prompt_variant: str = ""
    """One of the task's ways to write an item, where it has several; "": its first."""
    words: str | None = None
    """For tasks that scramble words, a file with one word per line, most frequent first; None: the
    system's word list."""
    fixed_shots: bool = False
    """Whether all items have the same demonstrations, as GPT-3's for WSC and MultiRC, instead of
    their own sample."""
