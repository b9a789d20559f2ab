"""The table of facts that is printed before a training."""

from typing import Any

from gptjax.config import count
from gptjax.config.layer import Experts
from gptjax.config.model import Model
from gptjax.config.rlhf import Gae, GroupMean, LeaveOneOut, Rlhf, SharedValue
from gptjax.report.formats import si
from gptjax.runtime import run_dir

# Muennighoff et al. (2305.16264): until then a repeated token is worth nearly a new one
MAX_EPOCHS = 4


def print_summary(context: Any) -> None:
    """Prints the table, its warnings, and where the run begins. context: a
    training.context.TrainContext."""
    out, resume_point = context.out, context.resume_point
    out.print_table(context.config.name, summarize(context))
    for note in (*resume_point.notes, *warnings(context)):
        out.warn(note)
    step, n_steps = resume_point.step, resume_point.plan.n_steps
    if step == n_steps:
        out.print(f"the run is finished: all of its {step:,} steps are done")
    elif step:
        out.print(f"continuing from step {step:,} of {n_steps:,}")


def summarize(context: Any) -> list[tuple[str, str]]:
    """Returns (name, fact) pairs. context: a training.context.TrainContext."""
    import jax.numpy as jnp

    from gptjax.model.attention import context_parallel, dispatch
    from gptjax.training import schedule

    c, batch_schedule, devices = (
        context.config,
        context.batch_schedule,
        context.mesh.devices.ravel(),
    )
    execution_policy, has_segments = (
        context.step.model.execution_policy,
        c.data.separates_documents,
    )
    sizes = " x ".join(f"{axis} {n}" for axis, n in context.mesh.shape.items() if n > 1)
    n_microbatches = batch_schedule.max_rows // context.microbatch_rows
    microbatches = (
        f"{n_microbatches} microbatch{'es' if n_microbatches > 1 else ''} of "
        f"{context.microbatch_rows} rows"
    )
    process_note = (
        f" of {context.processes.num_processes} processes"
        if context.processes.num_processes > 1
        else ""
    )
    kernels = dispatch.describe(
        execution_policy.kernel, c.model, execution_policy.dtype, has_segments
    )
    n_tokens = batch_schedule.tokens(batch_schedule.n_steps)
    rows = [
        ("model", describe_model(c.model)),
        ("attention", f"{kernels}, over a context of {c.model.n_ctx:,}"),
        ("data", context.dataset.summary()),
        *_length_rows(context, microbatches),
        (
            "learning rate",
            f"peak {c.train.schedule.peak_lr:.2e}, "
            f"{schedule.lr_at(c.train.schedule, n_tokens):.2e} at the last step",
        ),
        (
            "devices",
            f"{len(devices)} "
            f"{devices[0].device_kind}{f' as {sizes}' if sizes else ''}{process_note}, "
            f"{execution_policy.dtype.__name__}"
            + (", products of layers in float8" if c.compute.matmul_dtype == "float8" else ""),
        ),
        (
            "run",
            str(context.directory)
            if context.bucket_sync.bucket is None
            else f"{context.bucket_sync.bucket}, {run_dir.NO_LOCK}",
        ),
    ]
    exchange = context_parallel.choose_exchange(
        c, context.mesh, jnp.dtype(execution_policy.dtype).itemsize
    )
    exchange_rows = [("keys of a row", ": ".join(exchange))] * (context.mesh.shape["context"] > 1)
    rereads = "; ".join(f"{source} {times:,.1f} times" for source, times in epochs(context))
    reread_rows = [("read again", rereads)] * bool(rereads)
    return rows[:2] + exchange_rows + rows[2:3] + reread_rows + rows[3:]


def _length_rows(context: Any, microbatches: str) -> list[tuple[str, str]]:
    """The rows about the batch and the length of a run."""
    c, n_steps = context.config, context.batch_schedule.n_steps
    match c.task:
        case Rlhf() as task:
            epochs = f", {task.inner_epochs} times" * (task.inner_epochs > 1)
            return [
                (
                    "iteration",
                    f"{task.batch_rows} answers of up to {task.answer_tokens} tokens to prompts of "
                    f"up to {task.prompt_tokens}; {task.minibatches} minibatches{epochs}",
                ),
                ("iterations", f"{n_steps:,}, {n_steps * task.batch_rows:,} answers in all"),
                ("advantage", _describe_advantage(task)),
                ("KL penalty", f"{task.kl_coef} at the start, {task.kl}"),
            ]
    return [
        ("batch", f"{c.train.batch_tokens:,} tokens: {microbatches}"),
        ("steps", f"{n_steps:,}, to {si(context.batch_schedule.tokens(n_steps))} tokens"),
    ]


def _describe_advantage(task: Rlhf) -> str:
    match task.advantage:
        case Gae(lam=lam, value=SharedValue()):
            line = f"PPO: lambda {lam}, a value head on the policy's states"
        case Gae(lam=lam):
            line = f"PPO: lambda {lam}, a value function of its own"
        case GroupMean(answers=n):
            line = f"GRPO: {n} answers to a prompt"
        case LeaveOneOut(answers=n):
            line = f"RLOO: {n} answers to a prompt"
    ptx = "" if task.ptx is None else f"; PPO-ptx: {task.ptx.weight} times the loss on text"
    return f"{line}; ratios cut at {task.clip}{ptx}"


def describe_model(model: Model) -> str:
    """Returns a line with the parameters and sizes of a model, its experts among them."""
    line = f"{count.parameters(model):,} parameters"
    experts = ""
    match model.mlp:
        case Experts(n_experts=n, top_k=top_k):
            line += f", {count.active_parameters(model):,} active for a token"
            experts = f", {n} experts of which a token takes {top_k}"
    return f"{line}; {model.n_layers} layers, {model.n_heads} heads, {model.d_model} wide{experts}"


def warnings(context: Any) -> list[str]:
    """A line for each source of a mixture that is read so often that it is memorized."""
    if len(context.config.data.sources) < 2:
        return []
    return [
        f"{source} is read {times:,.1f} times, which is more than {MAX_EPOCHS}: it is small for "
        "its weight"
        for source, times in epochs(context)
        if times > MAX_EPOCHS
    ]


def epochs(context: Any) -> list[tuple[str, float]]:
    """Returns (source, number of passes) for each source that the run reads more than once; nothing
    for fine-tuning, whose recipe gives its epochs."""
    if context.config.task is not None:
        return []
    share = (
        context.batch_schedule.tokens(context.batch_schedule.n_steps)
        / context.config.train.total_tokens
    )
    repeats = [
        (source["source"], source["epochs"] * share)
        for source in context.dataset.description()["sources"]
        if source["epochs"] is not None  # of a stream, whose size is not known
    ]
    return [(source, n_epochs) for source, n_epochs in repeats if n_epochs > 1]
