"""Memory and an estimate of the time of an iteration of learning from a reward, from its compiled
functions, as numbers and as a table of 80 columns. The assumptions are those of step_time.py.
"""

import copy
import dataclasses
import math
import textwrap
from typing import Any

from gptjax.aot import hlo_cost, report, step_time
from gptjax.aot.rlhf import ADVICE, CompiledFunction, CompiledIteration
from gptjax.config import count
from gptjax.runtime.units import human_bytes, si, sig3

PHASES = ("rollout", "score", "update")
STAYS = {
    "policy": "policy",
    "policy_optimizer": "its optimizer",
    "value": "value function",
    "value_optimizer": "its optimizer",
    "ema": "running mean of the policy",
    "reference": "reference",
    "reward": "reward model",
    "answers_and_text": "answers and text of the batch",
    "programs": "code of the programs",
}


def summarize(compiled: CompiledIteration) -> dict[str, Any]:
    """All results by name, in plain units; bytes, FLOPs and what is sent are of a chip."""
    config, task, chip = compiled.config, compiled.task, compiled.target.chip
    decode, resident = _decode(compiled), sum(compiled.resident.values())
    rows = [_summarize_function(fn, decode) for fn in compiled.functions]
    phases: dict[str, Any] = {}
    for phase in PHASES:
        own = [row for row in rows if row["phase"] == phase]
        phases[phase] = {
            "new_bytes": max(row["new_bytes"] for row in own),
            "peak_bytes": resident + max(row["new_bytes"] for row in own),
            "flops": math.fsum(row["times"] * row["flops"] for row in own),
            "sent_bytes": math.fsum(row["times"] * row["sent_bytes"] for row in own),
            "seconds": math.fsum(row["times"] * row["seconds"] for row in own),
            "functions": own,
        }
    largest = max(PHASES, key=lambda phase: phases[phase]["peak_bytes"])
    peak = phases[largest]["peak_bytes"]
    seconds = math.fsum(phases[phase]["seconds"] for phase in PHASES)
    iterations = task.episodes // task.batch_rows
    n_tokens = task.batch_rows * task.answer_tokens
    return {
        "config": config.name,
        "reward": compiled.reward_config.name,
        "topology": str(compiled.target),
        "chips": compiled.mesh.size,
        "mesh": {axis: n for axis, n in compiled.mesh.shape.items() if n > 1},
        "sharding": config.mesh.sharding,
        "remat": config.compute.remat,
        "rows": task.batch_rows,
        "row_tokens": task.row_tokens,
        "minibatches": task.minibatches * task.inner_epochs,
        "chunk_rows": compiled.chunk_rows,
        "text_chunk_rows": compiled.text_chunk_rows if task.ptx is not None else None,
        "compile_seconds": compiled.compile_seconds,
        "memory_bytes": chip.hbm_bytes,
        "resident": compiled.resident,
        "resident_bytes": resident,
        "sampler_bytes": compiled.sampler_bytes,
        "kv_cache_bytes": compiled.cache_bytes,
        "programs": phases,
        "decode": decode,
        "peak_bytes": peak,
        "peak_program": largest,
        "fits": peak <= chip.hbm_bytes,
        "over_bytes": max(peak - chip.hbm_bytes, 0),
        "advice": ADVICE[largest] if peak > chip.hbm_bytes else None,
        "iteration_seconds": seconds,
        "answer_tokens_per_second": n_tokens / seconds,
        "rollout_tokens_per_second": n_tokens / phases["rollout"]["seconds"],
        "iterations": iterations,
        "days": iterations * seconds / 86_400,
    }


def _summarize_function(fn: CompiledFunction, decode: dict[str, Any]) -> dict[str, Any]:
    program, seconds = fn.program, 0.0
    sent = math.fsum(row.n_bytes for row in step_time.traffic(program, fn.mesh, fn.target))
    if fn.phase == "rollout":
        program = _without(program, _decode_loop(program))
        seconds = decode["steps"] * decode["step_seconds"]
        prefill = decode["prompt_share"] * fn.flops
        seconds += estimate_seconds(fn, program, prefill)
    else:
        seconds = estimate_seconds(fn, program, fn.flops)
    return {
        "phase": fn.phase,
        "name": fn.name,
        "times": fn.times,
        "new_bytes": fn.besides_bytes + fn.new_bytes,
        "flops": fn.flops,
        "sent_bytes": sent,
        "seconds": seconds,
    }


def estimate_seconds(
    fn: CompiledFunction, program: hlo_cost.Program, flops: float, n_bytes: float = 0.0
) -> float:
    """An estimate of the time of `program`, a part of the program of fn. flops: of the part; an
    accelerator cannot be faster than those at peak. n_bytes: what it must read of its memory."""
    chip = fn.target.chip
    least = max(flops / chip.flops, n_bytes / chip.hbm_bandwidth)
    if fn.target.platform == "cuda":
        compute, kernels = max(least, program.bytes_accessed() / chip.hbm_bandwidth), 0.0
    else:
        assert chip.clock is not None
        compute = step_time.CYCLE_SHARE * program.cycles() / chip.clock
        kernels = program.grouped_matmul_flops()
        if any("splash" in name for name in program.kernel_counts()):
            kernels += fn.attention_flops
        kernels /= chip.flops * step_time.KERNEL_SHARE
        compute = max(compute, least - kernels)
    sent = step_time.traffic(program, fn.mesh, fn.target)
    return step_time.Estimate(floor=least, compute=compute, kernels=kernels, traffic=sent).step


def _decode(compiled: CompiledIteration) -> dict[str, Any]:
    """A decode step: its time, and what bounds it."""
    fn = next(fn for fn in compiled.functions if fn.phase == "rollout")
    chip, task = compiled.target.chip, compiled.task
    loop = _decode_loop(fn.program)
    read = compiled.sampler_bytes + compiled.cache_bytes
    # The first token comes of the prompt.
    steps = task.answer_tokens - 1
    if loop is None:
        return {"steps": 0, "step_seconds": 0.0, "prompt_share": 1.0} | _bounds(0.0, 0.0, 0.0, 0)
    body = copy.copy(fn.program)
    body.entry = loop.callees("body")[0]
    flops = compiled.chunk_rows * count.forward_flops_per_token(
        dataclasses.replace(compiled.config.model, n_ctx=task.row_tokens)
    )
    flops /= compiled.mesh.size
    seconds = estimate_seconds(fn, body, flops, read)
    sending = math.fsum(row.seconds for row in step_time.traffic(body, fn.mesh, fn.target))
    return {
        "steps": steps,
        "step_seconds": seconds,
        "prompt_share": task.prompt_tokens / task.row_tokens,
    } | _bounds(read / chip.hbm_bandwidth, flops / chip.flops, sending, read)


def _bounds(reading: float, flops: float, sending: float, n_bytes: int) -> dict[str, Any]:
    return {
        "read_bytes": n_bytes,
        "read_seconds": reading,
        "flops_seconds": flops,
        "sent_seconds": sending,
    }


def _decode_loop(program: hlo_cost.Program) -> hlo_cost.Instruction | None:
    """The loop over the tokens of answers, which ends early when all have ended: the only one of
    two conditions."""
    loops = [
        instruction
        for instruction in program.functions[program.entry]
        if instruction.op == "while"
        and program.functions[instruction.callees("condition")[0]][-1].op == "and"
    ]
    assert len(loops) <= 1, "several loops that may end early"
    return loops[0] if loops else None


def _without(program: hlo_cost.Program, loop: hlo_cost.Instruction | None) -> hlo_cost.Program:
    """The program without a loop of its entry."""
    rest = copy.copy(program)
    kept = [one for one in program.functions[program.entry] if one is not loop]
    rest.functions = program.functions | {program.entry: kept}
    return rest


# --- as text, at most 80 columns wide -------------------------------------------------------------


def render(p: dict[str, Any]) -> str:
    """Formats what `summarize` returns."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in p["mesh"].items()) or "one device"
    text = "" if p["text_chunk_rows"] is None else f", of text {p['text_chunk_rows']} rows"
    decode, rows = p["decode"], []
    stays = [(f"  {name}", human_bytes(p["resident"][key])) for key, name in STAYS.items()]
    lines: list[tuple[str, ...]] = [
        ("mesh", mesh, f"sharding {p['sharding']}"),
        ("a chunk", f"{p['chunk_rows']} answers{text}", ""),
        ("compiled in", f"{p['compile_seconds']:.0f} s", f"remat {p['remat']}"),
        (),
        ("memory of a chip", human_bytes(p["memory_bytes"]), ""),
        *((name, size, "") for name, size in stays if size != human_bytes(0)),
        ("  all of these stay", human_bytes(p["resident_bytes"]), ""),
    ]
    for phase in PHASES:
        part = p["programs"][phase]
        lines.append((f"{phase} adds", human_bytes(part["new_bytes"]), _peak(part)))
        if phase == "rollout":
            lines += [
                ("  a copy of the policy", human_bytes(p["sampler_bytes"]), ""),
                (f"  KV cache of {p['chunk_rows']} answers", human_bytes(p["kv_cache_bytes"]), ""),
            ]
    head = f"{'time (estimates)':<34}{'':>7}{'FLOPs':>11}{'sent':>12}{'time':>14}"
    for phase in PHASES:
        part = p["programs"][phase]
        rows.append(_time_row(phase, "", part))
        rows += [_time_row(f"  {fn['name']}", f"{fn['times']} x", fn) for fn in part["functions"]]
        if phase == "rollout" and decode["steps"]:
            rows += [
                _time_row(
                    "    a decode step",
                    f"{decode['steps']:,} x",
                    {"seconds": decode["step_seconds"]},
                ),
                _time_row("      reading copy and cache", "", {"seconds": decode["read_seconds"]}),
                _time_row("      sending", "", {"seconds": decode["sent_seconds"]}),
            ]
    whole = {"seconds": p["iteration_seconds"]}
    rows.append(_time_row("iteration", "", whole))
    ends = [
        "",
        f"{si(p['answer_tokens_per_second'])} tokens of answers a second, "
        f"{si(p['rollout_tokens_per_second'])} in the rollouts, if all have full length",
        f"{p['iterations']:,} iterations: {sig3(p['days'])} days",
    ]
    title = (
        f"{p['config']}: {p['policy']}, reward model and value function of {p['reward']},\non "
        f"{p['topology']}, {p['chips']} chips: an iteration of {p['rows']} answers of up to "
        f"{p['row_tokens']:,} tokens"
    )
    table = [f"{a:<32}{b:>14}  {c}".rstrip() for a, b, c in (r or ("",) * 3 for r in lines)]
    verdict = textwrap.fill(memory_verdict(p), 79)
    return "\n".join([title, "", *table, "", verdict, "", head, *rows, *ends])


def _peak(part: dict[str, Any]) -> str:
    return f"{human_bytes(part['peak_bytes'])} in all"


def memory_verdict(p: dict[str, Any]) -> str:
    """Whether all of the programs fit in memory, and what to change if not."""
    if p["fits"]:
        return f"fits: {human_bytes(p['memory_bytes'] - p['peak_bytes'])} to spare"
    return (
        f"DOES NOT FIT: the {p['peak_program']} is {human_bytes(p['over_bytes'])} over; "
        f"{p['advice']}"
    )


def _time_row(name: str, times: str, part: dict[str, Any]) -> str:
    flops = si(part["flops"]) if part.get("flops") else ""
    sent = human_bytes(part["sent_bytes"]) if part.get("sent_bytes") else ""
    seconds = report.format_seconds(part["seconds"])
    return f"{name:<30}{times:>11}{flops:>11}{sent:>12}{seconds:>14}"
