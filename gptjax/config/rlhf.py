"""Config of learning from a reward by sampling: PPO and PPO-ptx (InstructGPT, 2203.02155, section
3.5 and appendix C.4; OpenAI's 2019 code, openai/lm-human-preferences), GRPO and RLOO."""

from typing import Annotated, Literal

from gptjax.config.data import Source
from gptjax.config.record import Bounds, Fraction, Positive, Rows, Steps, record

Share = Annotated[float, Bounds(0, 1)]
NonNegative = Annotated[float, Bounds(0, 1e6)]


# --- the reward -----------------------------------------------------------------------------------


@record
class RewardModel:
    """The score of a reward model, a run of `python -m gptjax.reward`."""

    path: str
    """The run's directory."""


@record
class PythonFunction:
    """The value of a Python function fn(prompts, answers), which returns a finite number for each
    answer. prompts: as the model reads them, control tokens included; answers: without the token
    that ended them."""

    name: str
    """FILE.py:FUNCTION."""


# --- the answers ----------------------------------------------------------------------------------


@record
class StopToken:
    """An answer ends with the token that ends a turn, or for plain text with the end-of-text token;
    that token is learned."""


@record
class CutAt:
    """An answer always has all of its tokens, which are all learned; what is scored ends with the
    first token `text` at or after token number `after` (OpenAI's 2019 code: "." after 16, or a
    newline after 55)."""

    text: str = "."
    """A text of one token."""
    after: Annotated[int, Bounds(0, 10**6)] = 16
    """Tokens of the answer before which it does not end."""


# --- KL penalty -----------------------------------------------------------------------------------


@record
class FixedKl:
    """The KL coefficient stays as it is."""


@record
class AdaptiveKl:
    """The KL coefficient is multiplied by 1 + clip(KL / target - 1, -0.2, 0.2) * rows / horizon
    after each iteration (Ziegler et al. 1909.08593, section 2.2; OpenAI's 2019 code)."""

    target: Positive = 6.0
    """KL to the reference, in nats of an answer."""
    horizon: Positive = 10_000.0
    """Answers over which the coefficient changes by a fifth at most."""


# --- advantages -----------------------------------------------------------------------------------


@record
class SeparateValue:
    """The value function is a model of its own: the reward model's, or else a copy of the policy's,
    with a scalar head."""

    peak_lr: Positive | None = None
    """Its highest learning rate; None: the policy's."""


@record
class SharedValue:
    """The value function is a scalar head on the policy's states."""


@record
class Gae:
    """Generalized advantage estimation (1506.02438) with a value function: PPO. The KL penalty is a
    part of each token's reward."""

    discount: Share = 1.0
    """Gamma."""
    lam: Share = 0.95
    """Lambda. InstructGPT does not print it; 0.95 in Stiennon et al. (2009.01325)."""
    value: SeparateValue | SharedValue = SeparateValue()
    """The value function; its head begins at 0, that of SeparateValue as the reward model's."""
    value_weight: NonNegative = 0.1
    """Weight of the value function's loss."""
    value_clip: Positive | None = 0.2
    """How far a value may move from that of the rollout before its gradient is cut; None: free."""
    whiten_rewards: bool = False
    """Rewards of a minibatch are divided by their standard deviation; their mean stays."""
    whiten_advantages: bool = True
    """Advantages of a minibatch get mean 0 and standard deviation 1."""
    variance: Literal["biased", "unbiased"] = "biased"
    """Divisor of that variance: n, as in OpenAI's 2019 code, or n - 1."""


@record
class GroupMean:
    """GRPO (2402.03300, equation 3): the score minus the mean of the answers to one prompt, which
    serves as the advantage of all tokens. The KL penalty is a part of the loss."""

    answers: Annotated[int, Bounds(2, 10_000)] = 8
    """Answers to a prompt."""
    divide_by: Literal["deviation", "one"] = "deviation"
    """The standard deviation (n - 1) of the scores of a prompt, plus 1e-4; or 1 (2503.20783)."""
    mean_over: Literal["answers", "tokens"] = "answers"
    """The loss is the mean over answers of the mean over their tokens, or over all tokens."""


@record
class LeaveOneOut:
    """RLOO (2402.14740): the score, less the KL penalty of the answer, minus the mean of that of
    the other answers to the prompt. The ratio of the loss is that of whole answers."""

    answers: Annotated[int, Bounds(2, 10_000)] = 4
    """Answers to a prompt."""


Advantage = Gae | GroupMean | LeaveOneOut


@record
class Ptx:
    """The pre-training mix of PPO-ptx: weight * mean negative log-likelihood of text is added to
    the loss of each minibatch (InstructGPT, equation 2)."""

    weight: Positive = 27.8
    """Gamma of the paper."""
    rows_per_answer: Annotated[int, Bounds(1, 1000)] = 8
    """Rows of text for each answer."""
    sources: tuple[Source, ...] = ()
    """The text; empty: that of the pre-trained model."""


@record
class Rlhf:
    """A policy that learns from a reward of the answers that it samples.

    The prompts are .jsonl or .parquet files, in one of these forms:
    prompt: `prompt`, a text or a list of messages;
    messages: `messages`; an answer of the assistant at the end is left out.
    """

    prompts: str
    """A file, a directory or a glob of prompts (.jsonl or .parquet)."""
    reward: RewardModel | PythonFunction
    """What scores an answer."""
    dev: str | None = None
    """Prompts to validate on; None: `dev_fraction` of prompts."""
    dev_fraction: Fraction = 0.05
    """Share of the prompts that is held out, chosen by a hash of their text."""
    text: Literal["chat", "plain"] = "chat"
    """Prompts are conversations, written by the chat template; or text, which the model goes on
    with."""
    prompt_tokens: Annotated[int, Bounds(1, 10**7)] = 1024
    """Tokens of a prompt."""
    too_long: Literal["drop", "truncate"] = "drop"
    """A longer prompt is left out, or, if it is plain text, loses its beginning."""
    answer_tokens: Annotated[int, Bounds(1, 10**7)] = 1024
    """Tokens of an answer."""
    ending: StopToken | CutAt = StopToken()
    """Where an answer ends."""
    no_ending_score: float | None = None
    """Score of an answer that does not end, in place of the reward; None: as any other."""
    temperature: Positive = 1.0
    """Of the sampling; all log-probabilities are those of the logits divided by it."""
    advantage: Advantage = Gae()
    """How the scores become advantages of tokens: PPO, GRPO or RLOO."""
    kl_coef: NonNegative = 0.02
    """Coefficient of the KL penalty at the start."""
    kl: FixedKl | AdaptiveKl = FixedKl()
    """How the coefficient changes."""
    max_kl: Positive | None = 200.0
    """KL to the reference, in nats of an answer, at which the run stops; None: never."""
    clip: Positive = 0.2
    """How far the ratio of new and old probability may be from 1 before its gradient is cut."""
    ptx: Ptx | None = None
    """The pre-training mix; None: PPO without it."""
    episodes: Annotated[int, Bounds(1, 10**9)] = 256_000
    """Answers of the whole run."""
    batch_rows: Rows = 512
    """Answers of an iteration, which is a step of the training loop."""
    minibatches: Annotated[int, Bounds(1, 100_000)] = 8
    """Updates of a pass over an iteration's answers."""
    inner_epochs: Annotated[int, Bounds(1, 1000)] = 1
    """Passes over an iteration's answers."""
    peak_lr: Positive = 5e-6
    """Highest learning rate of the policy."""
    decay: Literal["none", "linear"] = "none"
    """The learning rate stays, or falls linearly to 0 after the last iteration."""
    warmup_iterations: Annotated[int, Bounds(0, 10**6)] = 10
    """Iterations in which the learning rate rises: from one tenth, with 10."""
    ema: Fraction | None = None
    """Decay, at each update, of the running mean of the policy that is the result of the run; None:
    the policy itself."""
    eval_answers: Steps = 64
    """Answers of an evaluation, one for each of the first prompts that are held out."""

    def __post_init__(self):
        if self.batch_rows % self.minibatches:
            raise ValueError(
                f"task.minibatches={self.minibatches} does not divide "
                f"task.batch_rows={self.batch_rows}; choose one that does"
            )
        if self.batch_rows % self.answers_per_prompt:
            raise ValueError(
                f"task.advantage.answers={self.answers_per_prompt} does not divide "
                f"task.batch_rows={self.batch_rows}; choose one that does"
            )
        if self.text == "chat" and self.too_long == "truncate":
            raise ValueError(
                "task.too_long=truncate would cut a conversation's chat template; set it to drop, "
                "or task.text=plain"
            )
        if self.episodes < self.batch_rows:
            raise ValueError(
                f"task.episodes={self.episodes:,} are fewer than task.batch_rows={self.batch_rows}"
                "; give more, or a smaller batch"
            )

    @property
    def answers_per_prompt(self) -> int:
        """Answers to one prompt in a batch."""
        match self.advantage:
            case GroupMean(answers=n) | LeaveOneOut(answers=n):
                return n
        return 1

    @property
    def row_tokens(self) -> int:
        """Tokens of a prompt and its answer."""
        return self.prompt_tokens + self.answer_tokens
