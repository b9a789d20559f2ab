"""What a person wants to know of a training before waiting for it."""

from typing import Any

from gptjax.config import count
from gptjax.report.console import quantity
from gptjax.runtime import run_dir

MANY_EPOCHS = 4  # Muennighoff et al. (2305.16264): until then a repeated token is worth nearly a new one


def summarize(session: Any) -> list[tuple[str, str]]:
    """Names and facts. session: a train.Session."""
    from gptjax.model.attention import dispatch
    from gptjax.training import schedule

    c, batches, devices = session.config, session.batches, session.mesh.devices.ravel()
    manner, segmented = session.step.model.manner, c.data.across_documents == "mask"
    sizes = " x ".join(f"{axis} {n}" for axis, n in session.mesh.shape.items() if n > 1)
    parts = batches.max_rows // session.microbatch
    shared = f" of {session.party.processes} processes" if session.party.processes > 1 else ""
    rows = [
        ("model", f"{count.parameters(c.model):,} parameters; {c.model.n_layers} layers, {c.model.n_heads} heads, {c.model.d_model} wide"),
        ("attention", f"{dispatch.account(manner.kernel, c.model, manner.dtype, segmented)}, over a context of {c.model.n_ctx:,}"),
        ("data", session.reading.summary()),
        ("batch", f"{c.train.batch_tokens:,} tokens: {parts} microbatch{'es' if parts > 1 else ''} of {session.microbatch} rows"),
        ("steps", f"{batches.n_steps:,}, to {quantity(batches.tokens(batches.n_steps))} tokens"),
        (
            "learning rate",
            f"peak {c.train.schedule.peak:.2e}, {schedule.rate(c.train.schedule, batches.tokens(batches.n_steps)):.2e} at the last step",
        ),
        (
            "devices",
            f"{len(devices)} {devices[0].device_kind}{f' as {sizes}' if sizes else ''}{shared}, {manner.dtype.__name__}",
        ),
        ("run", str(session.directory) if session.copies.bucket is None else f"{session.copies.bucket}, {run_dir.NO_LOCK}"),
    ]
    rereads = "; ".join(f"{source} {times:,.1f} times" for source, times in epochs(session))
    return rows[:3] + [("read again", rereads)] * bool(rereads) + rows[3:]


def warnings(session: Any) -> list[str]:
    """A line for each source of a mixture that is read so often that it is learnt by heart."""
    if len(session.config.data.sources) < 2:
        return []
    return [
        f"{source} is read {times:,.1f} times, which is more than {MANY_EPOCHS}: it is small for its weight"
        for source, times in epochs(session)
        if times > MANY_EPOCHS
    ]


def epochs(session: Any) -> list[tuple[str, float]]:
    """(source, how often it is read) of the sources that the run reads more than once. Of fine-tuning, whose recipe says that: none."""
    if session.config.task is not None:
        return []
    share = session.batches.tokens(session.batches.n_steps) / session.config.train.total_tokens
    read = [(source["source"], source["epochs"] * share) for source in session.reading.description()["sources"]]
    return [(source, times) for source, times in read if times > 1]
