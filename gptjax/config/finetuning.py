"""Fine-tuning recipe: a task and its optimization settings. Together with a pre-trained config and
the number of examples it becomes a Config.
"""

import dataclasses

from gptjax.config.classification import ClassificationTask
from gptjax.config.record import Seed, record
from gptjax.config.schema import AdamW, Compute, Config, Dropout, Linear, Loop, Mesh, Train

# Ids n_vocab, n_vocab + 1, n_vocab + 2 of the pre-trained model (GPT-1's released train.py).
N_SPECIAL_TOKENS = 3
START, DELIMITER, EXTRACT = range(N_SPECIAL_TOKENS)


@record
class Finetuning:
    """A fine-tuning recipe. GPT-1 section 4.1: "we reuse the hyperparameter settings from
    unsupervised pre-training", except for learning rate, batch and epochs. Adam's b2, eps and bias
    correction are those of its released code.

    Differences from that code [chosen]: it also evaluates after 1,000, 2,000, 4,000 ... updates of
    the first epoch, and may keep one of those; the softmax of its auxiliary loss includes the
    position rows of its table besides the vocabulary; its schedule counts from 0
    (training/schedule.py); and it truncates long texts differently
    (training/classification/transformations.py).
    """

    name: str
    """Name of the recipe: its runs lie in runs/NAME."""
    task: ClassificationTask
    """The task, its data and how it is learned."""
    optimizer: AdamW = AdamW(
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0, bias_correction="rate"
    )
    """Optimizer and its constants."""
    dropout: Dropout = Dropout(embedding=0.1, attention=0.1, residual=0.1)
    """Dropout probabilities of the model."""
    compute: Compute = Compute()
    """Precision and kernels."""
    mesh: Mesh = Mesh()
    """Devices along each axis."""
    loop: Loop = Loop()
    """Logging; evaluation and saving are once an epoch."""
    seed: Seed = 0
    """Of the new parameters, the order of the examples and dropout."""


def resolve_config(
    recipe: Finetuning, pretrained_config: Config, n_examples: int, n_ctx: int
) -> Config:
    """Returns the Config of a fine-tuning run.

    pretrained_config: the config of the pre-trained model. n_ctx: the longest sequence of the task.
    As in the released code, an epoch is n_examples // batch_examples steps, so up to a batch of
    examples is left out, different ones each epoch. A "token" of train.* is a position in an
    example's sequence, including padding: batch_tokens = batch_examples * n_ctx. Raises ValueError
    if there are fewer examples than a batch, or if a period is set that the epoch determines.
    """
    task, loop = recipe.task, recipe.loop
    check_periods(loop)
    steps = n_examples // task.batch_examples
    if not steps:
        raise ValueError(
            f"{n_examples} training examples are fewer than "
            f"task.batch_examples={task.batch_examples}; give more examples, or a smaller batch"
        )
    batch_tokens = task.batch_examples * n_ctx
    total_tokens = task.epochs * steps * batch_tokens
    return Config(
        name=recipe.name,
        model=dataclasses.replace(
            pretrained_config.model,
            n_vocab=pretrained_config.model.n_vocab + N_SPECIAL_TOKENS,
            n_ctx=n_ctx,
            dropout=recipe.dropout,
        ),
        data=pretrained_config.data,
        train=Train(
            total_tokens=total_tokens,
            batch_tokens=batch_tokens,
            schedule=Linear(
                peak_lr=task.peak_lr,
                warmup_tokens=int(task.warmup_fraction * total_tokens),
                decay_tokens=total_tokens,
            ),
            optimizer=recipe.optimizer,
        ),
        compute=recipe.compute,
        mesh=recipe.mesh,
        # Every epoch is evaluated and saved, and the best one is kept, as the released code does;
        # section 4.1 does not say which one was taken.
        loop=dataclasses.replace(
            loop, every_eval=steps, every_save=steps, keep_last=task.epochs, every_sample=None
        ),
        seed=recipe.seed,
        task=task,
    )


def check_periods(loop: Loop) -> None:
    """Raises ValueError for a period that the epoch determines."""
    for name in ("every_eval", "every_save", "keep_last", "every_sample"):
        if getattr(loop, name) != getattr(Loop(), name):
            raise ValueError(
                f"loop.{name}={getattr(loop, name)}: fine-tuning evaluates and saves every epoch, "
                "and keeps all checkpoints; leave it out"
            )
