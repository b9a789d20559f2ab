"""A recipe of learning from a reward by sampling; with the config of the model to begin with it
becomes a Config."""

import dataclasses

from gptjax.config.record import Rows, Seed, record
from gptjax.config.rlhf import Rlhf
from gptjax.config.schema import (
    AdamW,
    Compute,
    Config,
    Constant,
    Data,
    Dropout,
    Linear,
    Loop,
    Mesh,
    Train,
)


@record
class RlhfRecipe:
    """A recipe of learning from a reward by sampling."""

    name: str
    """Name of the recipe: its runs lie in runs/NAME."""
    task: Rlhf
    """Prompts, reward, and how is learned from them."""
    optimizer: AdamW = AdamW(b1=0.9, b2=0.95, weight_decay=0.0)
    """Optimizer of the policy and of the value function. InstructGPT's appendix C gives b1 and b2
    and no weight decay; eps and the clipping are GPT-3's [chosen]."""
    compute: Compute = Compute()
    """Precision and kernels."""
    mesh: Mesh = Mesh()
    """Devices along each axis."""
    loop: Loop = Loop(every_log=1, every_eval=20, every_save=20, every_sample=100)
    """Logging, evaluation, samples and saving; a step is an iteration."""
    seed: Seed = 0
    """Of the order of the prompts and of the sampling."""
    microbatch_rows: Rows | None = None
    """As train.microbatch_rows, of rows as long as the context."""


def resolve_config(recipe: RlhfRecipe, pretrained: Config, data: Data, n_vocab: int) -> Config:
    """Returns the Config of a run. pretrained: of the model to begin with; data: its data, with the
    tokenizer of the run; n_vocab: the ids that the model then has.

    A step counts as batch_rows rows of the context, in which the schedule counts tokens. Raises
    ValueError if a prompt and its answer are longer than the context."""
    task, n_ctx = recipe.task, pretrained.model.n_ctx
    if task.row_tokens > n_ctx:
        raise ValueError(
            f"task.prompt_tokens + task.answer_tokens = {task.row_tokens:,} is more than the "
            f"context of the model, {n_ctx:,}: lower them"
        )
    batch_tokens = task.batch_rows * n_ctx
    total_tokens = task.episodes // task.batch_rows * batch_tokens
    warmup_tokens = task.warmup_iterations * batch_tokens
    match task.decay:
        case "none":
            schedule = Constant(peak_lr=task.peak_lr, warmup_tokens=warmup_tokens)
        case "linear":
            # 0 after the last iteration, not in it.
            schedule = Linear(
                peak_lr=task.peak_lr,
                warmup_tokens=warmup_tokens,
                decay_tokens=total_tokens + batch_tokens,
            )
    sources = data.sources if task.ptx is None or not task.ptx.sources else task.ptx.sources
    return Config(
        name=recipe.name,
        model=dataclasses.replace(pretrained.model, n_vocab=n_vocab, dropout=Dropout()),
        data=dataclasses.replace(data, sources=sources),
        train=Train(
            total_tokens=total_tokens,
            batch_tokens=batch_tokens,
            schedule=schedule,
            optimizer=recipe.optimizer,
            microbatch_rows=recipe.microbatch_rows,
        ),
        compute=recipe.compute,
        mesh=recipe.mesh,
        loop=recipe.loop,
        seed=recipe.seed,
        task=task,
    )
