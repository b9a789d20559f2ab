"""Recipes of learning from a reward by sampling: `instructgpt_ppo` and `instructgpt_ppo_ptx`
(Ouyang et al. 2203.02155, section 3.5 and appendix C.4), those of OpenAI's 2019 code
(openai/lm-human-preferences, launch.py), and small ones: `ppo`, `grpo`, `rloo`.

InstructGPT: 256,000 answers, 512 in an iteration, 8 minibatches of 64, one pass; clip 0.2, KL
coefficient 0.02, no discount, temperature 1, running mean of the weights with a decay of 0.992;
10 iterations of warm-up; prompts and answers of up to 1,024 tokens; PPO-ptx with gamma 27.8 and 8
rows of text for each answer. It prints neither the policy's learning rate (its sweep goes from
2.55e-6 to 2.55e-5; 5e-6 here [chosen]) nor lambda (0.95 [chosen]); the value function's learning
rate is 9e-6. That the running mean moves at every update is chosen as well.

OpenAI's 2019 code: a value head on the policy's own states, Adam with eps 1e-5 outside the bias
correction and no clipping of gradients, a learning rate that falls linearly to 0, 4 passes over one
minibatch, lambda 0.95, value loss weight 0.1, advantages and (but for cnndm and tldr) rewards
whitened in the minibatch, -1 for an answer that does not end. Its queries are padded on the left;
here prompts begin at position 0, and no padding is read. Its learning rate of the first of n
iterations is the whole, that of the last 1/n; ours are n/(n+1) and 1/(n+1) of it."""

from gptjax.config.rlhf import (
    AdaptiveKl,
    CutAt,
    FixedKl,
    Gae,
    GroupMean,
    LeaveOneOut,
    Ptx,
    RewardModel,
    Rlhf,
    SeparateValue,
    SharedValue,
)
from gptjax.config.rlhf_recipe import RlhfRecipe
from gptjax.config.schema import AdamW

PROMPTS, REWARD = "prompts.jsonl", RewardModel(path="runs/reward")


def ppo() -> RlhfRecipe:
    """Any prompts and reward: PPO, 64 answers in an iteration."""
    return RlhfRecipe(
        name="ppo",
        task=Rlhf(
            prompts=PROMPTS,
            reward=REWARD,
            prompt_tokens=256,
            answer_tokens=128,
            batch_rows=64,
            minibatches=4,
            episodes=6400,
        ),
    )


def grpo() -> RlhfRecipe:
    """Any prompts and reward: GRPO (2402.03300), 8 answers to a prompt; its KL coefficient is
    0.04."""
    return _group("grpo", GroupMean(), 0.04)


def rloo() -> RlhfRecipe:
    """Any prompts and reward: RLOO (2402.14740), 4 answers to a prompt; its KL coefficient is
    0.03."""
    return _group("rloo", LeaveOneOut(), 0.03)


def _group(name: str, advantage: GroupMean | LeaveOneOut, kl_coef: float) -> RlhfRecipe:
    return RlhfRecipe(
        name=name,
        task=Rlhf(
            prompts=PROMPTS,
            reward=REWARD,
            prompt_tokens=256,
            answer_tokens=128,
            batch_rows=64,
            minibatches=1,
            episodes=6400,
            advantage=advantage,
            kl_coef=kl_coef,
            peak_lr=1e-6,
        ),
    )


def instructgpt_ppo() -> RlhfRecipe:
    """InstructGPT's PPO."""
    return _instructgpt("instructgpt_ppo", None)


def instructgpt_ppo_ptx() -> RlhfRecipe:
    """InstructGPT's PPO-ptx: with text of pre-training."""
    return _instructgpt("instructgpt_ppo_ptx", Ptx())


def _instructgpt(name: str, ptx: Ptx | None) -> RlhfRecipe:
    return RlhfRecipe(
        name=name,
        task=Rlhf(
            prompts=PROMPTS,
            reward=REWARD,
            advantage=Gae(value=SeparateValue(peak_lr=9e-6)),
            ema=0.992,
            ptx=ptx,
        ),
    )


def lm_human_preferences_sentiment() -> RlhfRecipe:
    """Continuations of 24 tokens that a model of sentiment rewards."""
    return _lm_human_preferences(
        "lm_human_preferences_sentiment",
        text_tokens=(64, 24),
        ending=CutAt(text=".", after=16),
        peak_lr=1e-5,
        batch_rows=512,
        kl_coef=0.15,
        kl=AdaptiveKl(target=6.0),
        whiten_rewards=True,
        temperature=0.7,
    )


def lm_human_preferences_cnndm() -> RlhfRecipe:
    """Summaries of news."""
    return _summaries("lm_human_preferences_cnndm", 0.01, 0.5)


def lm_human_preferences_tldr() -> RlhfRecipe:
    """Summaries of posts."""
    return _summaries("lm_human_preferences_tldr", 0.03, 0.7)


def _summaries(name: str, kl_coef: float, temperature: float) -> RlhfRecipe:
    return _lm_human_preferences(
        name,
        text_tokens=(500, 75),
        ending=CutAt(text="\n", after=55),
        peak_lr=2e-6,
        batch_rows=32,
        kl_coef=kl_coef,
        kl=FixedKl(),
        whiten_rewards=False,
        temperature=temperature,
    )


def _lm_human_preferences(
    name: str,
    *,
    text_tokens: tuple[int, int],
    ending: CutAt,
    peak_lr: float,
    batch_rows: int,
    kl_coef: float,
    kl: FixedKl | AdaptiveKl,
    whiten_rewards: bool,
    temperature: float,
) -> RlhfRecipe:
    """text_tokens: of a query and of a response."""
    return RlhfRecipe(
        name=name,
        task=Rlhf(
            prompts=PROMPTS,
            reward=REWARD,
            text="plain",
            prompt_tokens=text_tokens[0],
            answer_tokens=text_tokens[1],
            too_long="truncate",
            ending=ending,
            no_ending_score=-1.0,
            temperature=temperature,
            advantage=Gae(value=SharedValue(), whiten_rewards=whiten_rewards),
            kl_coef=kl_coef,
            kl=kl,
            episodes=1_000_000,
            batch_rows=batch_rows,
            minibatches=1,
            inner_epochs=4,
            peak_lr=peak_lr,
            decay="linear",
            warmup_iterations=0,
        ),
        optimizer=AdamW(
            b1=0.9, b2=0.999, eps=1e-5, weight_decay=0.0, clip_norm=None, bias_correction="rate"
        ),
    )


RLHF = {
    recipe.__name__: recipe
    for recipe in (
        ppo,
        grpo,
        rloo,
        instructgpt_ppo,
        instructgpt_ppo_ptx,
        lm_human_preferences_sentiment,
        lm_human_preferences_cnndm,
        lm_human_preferences_tldr,
    )
}
