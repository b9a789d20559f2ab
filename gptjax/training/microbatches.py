"""The number of rows that fit into one microbatch of a new run."""

from typing import Any

from gptjax.config import count
from gptjax.config.chat import Preferences, Rankings
from gptjax.config.classification import ClassificationTask
from gptjax.config.rlhf import Rlhf
from gptjax.config.schema import Config

# Upper bound of a microbatch on CPU, in tokens. Larger ones are no faster there, and the progress
# bar would move only every few minutes.
CPU_MICROBATCH_TOKENS = 4096


def microbatch_limit(
    config: Config, mesh: Any, execution_policy: Any, shards: int, processes: Any
) -> int:
    """Returns the upper bound of the rows of a microbatch, summed over all processes: the config's
    microbatch_rows, or what fits the free memory of the devices.

    execution_policy: a model.gpt.ExecutionPolicy; shards: number of devices that rows are split
    over; processes: a distributed.processes.ProcessGroup, whose process with the least free memory
    decides."""
    import jax

    from gptjax.training import step

    min_free_bytes = min(processes.all_gather(free_device_memory(config, mesh)))
    if config.train.microbatch_rows is not None:
        return config.train.microbatch_rows
    max_rows = step.max_microbatch_rows(config, execution_policy, mesh, shards, min_free_bytes)
    if jax.devices()[0].platform == "cpu":
        max_rows = min(max_rows, CPU_MICROBATCH_TOKENS // config.model.n_ctx)
    return max(1, max_rows // sequences_per_row(config))


def free_device_memory(config: Config, mesh: Any) -> int:
    """Returns the bytes of one device that activations may use: its free memory while the state is
    allocated, minus two copies of this device's gradient shard. On CPU half of the machine's
    available memory counts as free, divided by the number of simulated devices."""
    import psutil

    n_shards = mesh.size // mesh.shape["data"]
    stats = mesh.local_devices[0].memory_stats()
    if stats is None:
        return (
            psutil.virtual_memory().available // 2 // len(mesh.local_devices)
            - 2 * count.gradient_bytes(config.model) // n_shards
        )
    return count.activation_budget(
        config.model, stats["bytes_limit"], stats["bytes_in_use"], n_shards
    )


def row_tokens(config: Config) -> int:
    """Returns the number of tokens of a row of a batch."""
    match config.task:
        case Rlhf(row_tokens=n):
            return n
    return config.model.n_ctx


def sequences_per_row(config: Config) -> int:
    """Returns the number of token sequences that the model reads for one row of a batch: 1; for a
    pair of answers 2; for ranked completions as many as a row has places; for a classification task
    the sequences of one example (GPT-1 section 3.3)."""
    match config.task:
        case ClassificationTask(n_sequences=n):
            return n
        case Preferences():
            return 2
        case Rankings(completions=int(n)):
            return n
    return 1
