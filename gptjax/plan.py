"""python -m gptjax.plan: what a config will cost, from the config alone. Nothing is allocated and jax is not imported."""

import json
from typing import Any

from gptjax.config import command, count, registry
from gptjax.config.batches import Batches
from gptjax.config.schema import Attention, Config

DESCRIPTION = """\
What a config will cost: parameters, FLOPs per token by kind of layer, bytes,
steps and PF-days, beside what its paper prints. Without --config: one line for
every config.

A paper's own name works too: 125m to 175b are GPT-3's (Table 2.1); 117m to
1542m are GPT-2's (Table 2), and 124m to 1558m the counts that OpenAI corrected
them to. So 117m is the smallest GPT-2, and not GPT-1, which is called gpt1: it
has as many layers, but its own paper prints no size."""
EXAMPLE = 'python -m gptjax.plan --config=gpt3_small --set "model.attention=Dense()"'


def main(argv: list[str]) -> None:
    parser = command.parser("plan", DESCRIPTION, EXAMPLE)
    parser.add_argument("--json", action="store_true", help="print JSON, numbers in plain units")
    args = parser.parse_args(argv)
    if args.config is None and not args.assignments:
        plans = [plan(registry.config(name)) for name in registry.names()]
        print(json.dumps(plans, indent=1) if args.json else listing(plans))
        return
    found = plan(command.resolved(args))
    print(json.dumps(found, indent=1) if args.json else report(found))


def plan(config: Config) -> dict[str, Any]:
    """Every figure by name. Bytes are over all devices; tokens, steps and PF-days end where train.steps does."""
    model, batches = config.model, Batches(config)
    tokens = min(config.train.total_tokens, batches.tokens(batches.n_steps))
    printed_params, printed_pf_days = _printed(config)
    return {
        "name": config.name,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_model": model.d_model,
        "n_ctx": model.n_ctx,
        "n_vocab": model.n_vocab,
        "params": count.parameters(model),
        "params_non_embedding": count.non_embedding_parameters(model),
        "params_paper": printed_params,
        "flops_by_kind": [_kind(config, pattern) for pattern in dict.fromkeys(model.attention)]
        + [{"kind": "output", "layers": None, "forward": count.logits_flops(model)}],
        "forward_flops_per_token": count.forward_flops_per_token(model),
        "train_flops_per_token": count.train_flops_per_token(model),
        "hardware_flops_per_token": count.hardware_flops_per_token(config),
        "remat": config.compute.remat,
        "state_bytes": count.state_bytes(model),
        "gradient_bytes": count.gradient_bytes(model),
        "row_bytes_float32": count.activation_bytes(config, 1, "float32"),
        "row_bytes_bfloat16": count.activation_bytes(config, 1, "bfloat16"),
        "tokens_per_step": config.train.batch_tokens,
        "first_tokens_per_step": batches.rows(0) * model.n_ctx,
        "ramp_tokens": None if config.train.ramp is None else config.train.ramp.over_tokens,
        "steps": batches.n_steps,
        "tokens": tokens,
        "pf_days": count.pf_days(model, tokens),
        "pf_days_6nd": count.paper_pf_days(model, tokens),
        "pf_days_paper": printed_pf_days,
    }


def _kind(config: Config, pattern: Attention) -> dict[str, Any]:
    layers = config.model.attention.count(pattern) * config.model.n_periods
    return {"kind": repr(pattern), "layers": layers, "forward": layers * count.layer_flops(config.model, pattern)}


def _printed(config: Config) -> tuple[str | None, float | None]:
    """What the paper prints, as long as the config still has the paper's model and, for the compute, its length."""
    if config.name not in registry.names():
        return None, None
    original = registry.config(config.name)
    params, pf_days = registry.printed(config.name)
    same_model = config.model == original.model
    same_length = (config.train.total_tokens, config.train.steps) == (original.train.total_tokens, original.train.steps)
    return params if same_model else None, pf_days if same_model and same_length else None


# --- as text, at most 80 columns wide --------------------------------------------------------------------------------------


def report(p: dict[str, Any]) -> str:
    printed = "" if p["params_paper"] is None else f"paper {p['params_paper']}"
    printed_pf_days = "" if p["pf_days_paper"] is None else f"paper {_figure(p['pf_days_paper'])}"
    ramp = "" if p["ramp_tokens"] is None else f"from {p['first_tokens_per_step']:,} over {_short(p['ramp_tokens'])}"
    rows = [
        ("parameters", f"{p['params']:,}", printed),
        ("  without embeddings", f"{p['params_non_embedding']:,}", ""),
        (),
        ("FLOPs per token", "forward", "training"),
        *((_layers(k), _short(k["forward"]), _short(3 * k["forward"])) for k in p["flops_by_kind"]),
        ("  all", _short(p["forward_flops_per_token"]), _short(p["train_flops_per_token"])),
        (f"  computed, remat {p['remat']}", "", _short(p["hardware_flops_per_token"])),
        (),
        ("memory, over all devices", "", ""),
        ("  state: parameters, Adam", _bytes(p["state_bytes"]), ""),
        ("  gradients, in a step", _bytes(p["gradient_bytes"]), ""),
        ("  activations of a row", _bytes(p["row_bytes_float32"]), f"{_bytes(p['row_bytes_bfloat16'])} in bfloat16"),
        (),
        ("tokens per step", f"{p['tokens_per_step']:,}", ramp),
        ("steps", f"{p['steps']:,}", ""),
        ("tokens", f"{p['tokens']:,}", ""),
        (),
        ("PF-days, attention counted", _figure(p["pf_days"]), ""),
        ("  as 6 x parameters x tokens", _figure(p["pf_days_6nd"]), printed_pf_days),
    ]
    shape = f"{p['n_layers']} layers, {p['d_model']:,} wide, {p['n_heads']} heads, context {p['n_ctx']:,}, vocabulary {p['n_vocab']:,}"
    return "\n".join(
        [f"{p['name']}: {shape}", "", *(f"{a:<37}{b:>17}  {c:>22}".rstrip() for a, b, c in (row or ("", "", "") for row in rows))]
    )


def listing(plans: list[dict[str, Any]]) -> str:
    head = f"{'config':<17}{'parameters':>15}{'context':>9}{'batch':>11}{'tokens':>8}{'steps':>11}{'PF-days':>9}"
    lines = [
        f"{p['name']:<17}{p['params']:>15,}{p['n_ctx']:>9,}{p['tokens_per_step']:>11,}{_short(p['tokens']):>8}{p['steps']:>11,}"
        f"{_figure(p['pf_days']):>9}"
        for p in plans
    ]
    return "\n".join(
        [head, *lines, "", "batch: tokens per step, once grown; PF-days: attention counted. --config=NAME", "shows one in full."]
    )


def _layers(kind: dict[str, Any]) -> str:
    return f"  {kind['kind']}" if kind["layers"] is None else f"  {kind['layers']} x {kind['kind']}"


def _short(number: float) -> str:
    """Three digits and a unit: 811M, 32.8B, 1.06T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{_figure(number / size)}{unit}"
    return _figure(number)


def _bytes(number: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{_figure(number / size)} {unit}"
    return f"{_figure(number / 2**10)} KiB"


def _figure(number: float) -> str:
    """Three significant digits: 3,740, 139, 15.8, 2.60, 0.0012."""
    if number >= 100:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:#.3g}" if number >= 0.001 else f"{number:.2g}"


if __name__ == "__main__":
    command.run(main)
