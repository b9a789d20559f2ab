"""A recipe of learning from conversations or preferences; with a pre-trained config and the number
of rows it becomes a Config."""

import dataclasses
from typing import Literal

from gptjax.config.chat import Conversations, Preferences, Rankings
from gptjax.config.finetuning import check_periods
from gptjax.config.record import Seed, record
from gptjax.config.schema import (
    AdamW,
    Compute,
    Config,
    Context,
    Cosine,
    Data,
    Dropout,
    Linear,
    Loop,
    Mesh,
    Schedule,
    Train,
)


@record
class ChatRecipe:
    """A recipe of learning from conversations, or from preferences between answers, or of a reward
    model."""

    name: str
    """Name of the recipe: its runs lie in runs/NAME."""
    task: Conversations | Preferences | Rankings
    """The conversations, preferences or rankings, and how they are learned."""
    n_ctx: Context | None = None
    """Tokens of a row; None: the context of the pre-trained model."""
    longer_positions: Literal["refuse", "repeat", "interpolate"] = "refuse"
    """How learned positions become more for a longer context, as model.init.longer_positions."""
    optimizer: AdamW = AdamW(weight_decay=0.0)
    """Optimizer and its constants. InstructGPT's appendix C gives b1=0.9 and b2=0.95 and no weight
    decay; eps and the clipping are GPT-3's [chosen]."""
    dropout: Dropout = Dropout()
    """Dropout probabilities of the model."""
    compute: Compute = Compute()
    """Precision and kernels."""
    mesh: Mesh = Mesh()
    """Devices along each axis."""
    loop: Loop = Loop(sample_tokens=64)
    """Logging; evaluation, samples and saving are once an epoch, and every epoch is kept."""
    seed: Seed = 0
    """Of the order of the rows and of dropout."""


def resolve_config(
    recipe: ChatRecipe, pretrained: Config, chat_data: Data, n_vocab: int, n_rows: int
) -> Config:
    """Returns the Config of a run. pretrained: of the model; chat_data: its data with the tokenizer
    that has a chat template; n_vocab: the ids that the model then has; n_rows: of training data.

    An epoch is n_rows // batch_rows steps, so up to a batch of rows is left out, others each epoch.
    Raises ValueError if there are fewer rows than a batch, and if a period is set that the epoch
    determines."""
    task, loop = recipe.task, recipe.loop
    check_periods(loop)
    steps = n_rows // task.batch_rows
    if not steps:
        raise ValueError(
            f"{n_rows} rows of training data are fewer than "
            f"task.batch_rows={task.batch_rows}; give more data, or a smaller batch"
        )
    n_ctx = recipe.n_ctx or pretrained.model.n_ctx
    total_tokens = task.epochs * steps * task.batch_rows * n_ctx
    is_reward_model = isinstance(task, Rankings)
    return Config(
        name=recipe.name,
        model=dataclasses.replace(
            pretrained.model,
            n_vocab=n_vocab,
            n_ctx=n_ctx,
            dropout=recipe.dropout,
            # The scalar head stands in for an output table (InstructGPT, section 3.5).
            tied_output=is_reward_model or pretrained.model.tied_output,
            init=dataclasses.replace(
                pretrained.model.init, longer_positions=recipe.longer_positions
            ),
        ),
        data=dataclasses.replace(
            chat_data, document_attention="attend" if is_reward_model else "restart"
        ),
        train=Train(
            total_tokens=total_tokens,
            batch_tokens=task.batch_rows * n_ctx,
            schedule=_schedule(task, total_tokens),
            optimizer=recipe.optimizer,
        ),
        compute=recipe.compute,
        mesh=recipe.mesh,
        loop=dataclasses.replace(
            loop, every_eval=steps, every_save=steps, keep_last=task.epochs, every_sample=steps
        ),
        seed=recipe.seed,
        task=task,
    )


def _schedule(task: Conversations | Preferences | Rankings, total_tokens: int) -> Schedule:
    warmup_tokens = int(task.warmup_fraction * total_tokens)
    if isinstance(task, Rankings) and task.decay == "linear":
        return Linear(peak_lr=task.peak_lr, warmup_tokens=warmup_tokens, decay_tokens=total_tokens)
    return Cosine(
        peak_lr=task.peak_lr,
        warmup_tokens=warmup_tokens,
        decay_tokens=total_tokens,
        final_fraction=task.final_fraction,
    )
