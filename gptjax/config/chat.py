"""Config of learning from conversations, and from preferences between answers: InstructGPT
(2203.02155) section 3.5 and appendix C; DPO (2305.18290)."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, Fraction, Positive, Rows, record
from gptjax.config.rlhf import PythonFunction, RewardModel


@record
class BestScore:
    """The epoch whose answers to held-out prompts have the highest mean score (InstructGPT,
    2203.02155, section 3.5: by the reward model)."""

    reward: RewardModel | PythonFunction
    """What scores an answer."""
    prompts: Rows = 64
    """At most so many prompts, the first of dev; an answer is sampled to each, by the seed."""
    answer_tokens: Annotated[int, Bounds(1, 10**7)] = 64
    """Tokens of an answer."""


@record
class Conversations:
    """Conversations of which the assistant's turns are learned, each up to the token that ends it.

    The data are .jsonl or .parquet files, in one of these forms:
    messages: `messages`, a list of {"role": "user", "content": "Hello"};
    completion: `prompt` and `completion`, texts or lists of messages;
    alpaca: `instruction`, `input` (may be empty) and `output`;
    sharegpt: `conversations`, a list of {"from": "human", "value": "Hello"};
    hh: `chosen`, a text of turns that begin with "Human:" and "Assistant:", as HH-RLHF's.
    """

    train: str
    """A file, a directory or a glob of training conversations (.jsonl or .parquet), or
    tfds:NAME@SPLIT, a prepared TFDS data set."""
    dev: str | None = None
    """The same of those to validate on; None: `dev_fraction` of train."""
    dev_fraction: Fraction = 0.05
    """Share of the training conversations that is held out, chosen by a hash of their text."""
    form: Literal["auto", "messages", "completion", "alpaca", "sharegpt", "hh"] = "auto"
    """Form of a line or row; auto: by the columns of the first."""
    rows: Literal["packed", "single"] = "packed"
    """Several conversations in a row, which do not attend to each other and whose positions begin
    anew; or one conversation a row, and padding. The loss is the same."""
    too_long: Literal["drop", "truncate"] = "drop"
    """A conversation longer than the context is left out, or loses its end."""
    epochs: Annotated[int, Bounds(1, 10_000)] = 3
    """Times that the conversations are read."""
    batch_rows: Rows = 32
    """Rows of a step."""
    peak_lr: Positive = 1e-5
    """Highest learning rate."""
    warmup_fraction: Fraction = 0.0
    """Share of the steps in which the learning rate rises."""
    choose: Literal["loss", "last"] | BestScore = "loss"
    """Which epoch is the result: the one with the lowest loss on dev, the last, or that of the best
    score, BestScore(reward=RewardModel(path='runs/reward'))."""
    final_fraction: Annotated[float, Bounds(0, 1)] = 0.1
    """Learning rate at the end of the cosine, as a share of peak_lr."""


@record
class Dpo:
    """Direct preference optimization: -log sigmoid(beta * difference), where the difference is that
    of log p(answer) / p_reference(answer) between the chosen and the rejected answer, summed over
    tokens (Rafailov et al. 2305.18290, equation 7)."""

    beta: Positive = 0.1
    """How strongly the reference holds; TL;DR in the paper: 0.5."""


@record
class Ipo:
    """Identity preference optimization: (difference - 1 / (2 tau))^2, with the difference of Dpo
    (Azar et al. 2310.12036, equation 17)."""

    tau: Positive = 0.1
    """How strongly the reference holds."""


PreferenceLoss = Dpo | Ipo


@record
class Preferences:
    """Pairs of answers to one prompt, of which one was preferred.

    The data are .jsonl or .parquet files, in one of these forms:
    pairs: `prompt`, `chosen` and `rejected`, texts or lists of messages; chosen and
    rejected may be whole conversations, with or without `prompt` (UltraFeedback's have it);
    ranked: `prompt` and `completions`, the best first: every pair of them;
    hh: `chosen` and `rejected`, texts of turns that begin with "Human:" and "Assistant:", as
    HH-RLHF's.
    """

    train: str
    """A file, a directory or a glob of training preferences (.jsonl or .parquet), or
    tfds:NAME@SPLIT, a prepared TFDS data set."""
    dev: str | None = None
    """The same of those to validate on; None: `dev_fraction` of train."""
    dev_fraction: Fraction = 0.05
    """Share of the prompts that is held out, chosen by a hash of their text."""
    form: Literal["auto", "pairs", "ranked", "hh"] = "auto"
    """Form of a line or row; auto: by the columns of the first."""
    text: Literal["chat", "plain"] = "chat"
    """chat: prompt and answer are turns of a conversation, written by the chat template. plain:
    the answer continues the prompt's text, without an end unless it is given as
    {"text": "...", "ended": true}."""
    loss: PreferenceLoss = Dpo()
    """What is learned from a pair."""
    epochs: Annotated[int, Bounds(1, 10_000)] = 1
    """Times that the pairs are read."""
    batch_rows: Rows = 64
    """Pairs of a step."""
    peak_lr: Positive = 1e-6
    """Highest learning rate."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises. DPO's paper: 150 steps."""
    final_fraction: Annotated[float, Bounds(0, 1)] = 1.0
    """Learning rate at the end of the cosine, as a share of peak_lr; 1: constant."""
    choose: Literal["loss", "last"] = "loss"
    """Which epoch is the result: the one with the lowest loss on dev, or the last."""


@record
class Demonstrations:
    """After training, a bias that gives demonstrations a mean score of 0 (InstructGPT, 2203.02155,
    appendix C.2)."""

    path: str
    """A file, a directory or a glob of them, in a form of task.train of gptjax.sft; of plain text
    `prompt` and `completion`."""


@record
class BeforeAndAfter:
    """Before and after training, a gain and a bias that give texts scores of mean 0 and standard
    deviation 1; in between the gain is trained (openai/lm-human-preferences, train_reward.py, where
    the texts are samples of the policy)."""

    path: str | None = None
    """Samples of the policy, in the forms of Demonstrations.path; None: completions of the training
    data, drawn by the seed."""
    n_samples: Rows = 256
    """At most so many of them."""


Normalization = Demonstrations | BeforeAndAfter


@record
class Rankings:
    """Ranked completions of prompts, of which a reward model learns to score a better completion
    higher (InstructGPT, 2203.02155, section 3.5). A row of a batch is one prompt with all its
    completions.

    The data are .jsonl or .parquet files, in one of these forms:
    ranked: `prompt` and `completions`, the best first, where an entry may be a list of completions
    that are equally good; or in any order with `scores`, a number for each (equal ones are ties),
    or with `best`, the index of the best;
    pairs, hh: those of Preferences.
    """

    train: str
    """A file, a directory or a glob of training rankings (.jsonl or .parquet), or
    tfds:NAME@SPLIT, a prepared TFDS data set."""
    dev: str | None = None
    """The same of those to validate on; None: `dev_fraction` of train."""
    dev_fraction: Fraction = 0.05
    """Share of the prompts that is held out, chosen by a hash of their text."""
    form: Literal["auto", "ranked", "pairs", "hh"] = "auto"
    """Form of a line or row; auto: by the columns of the first."""
    text: Literal["chat", "plain"] = "chat"
    """chat: prompt and completion are turns of a conversation, written by the chat template. plain:
    the completion continues the prompt's text, without an end unless it is given as
    {"text": "...", "ended": true}."""
    loss: Literal["pairs", "best_of"] = "pairs"
    """pairs: mean of -log sigmoid(score of the better - score of the worse) over all pairs of a
    prompt that are not tied (InstructGPT, equation 1). best_of: cross-entropy of a softmax over the
    scores, whose label is the best completion (1909.08593, equation 1)."""
    normalize: Normalization | None = None
    """Gain and bias of the scores; None: 1 and 0."""
    completions: Annotated[int, Bounds(2, 256)] | None = None
    """Places for completions in a row; None: as many as the longest ranking has. A prompt with more
    is left out."""
    epochs: Annotated[int, Bounds(1, 10_000)] = 1
    """Times that the prompts are read; several overfit (InstructGPT, appendix C.2)."""
    batch_rows: Rows = 32
    """Prompts of a step."""
    peak_lr: Positive = 1e-5
    """Highest learning rate."""
    warmup_fraction: Fraction = 0.0
    """Share of the steps in which the learning rate rises."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls: by a cosine to final_fraction, or linearly to 0."""
    final_fraction: Annotated[float, Bounds(0, 1)] = 0.1
    """Learning rate at the end of the cosine, as a share of peak_lr."""
    choose: Literal["loss", "last"] = "loss"
    """Which epoch is the result: the one with the lowest loss on dev, or the last."""
