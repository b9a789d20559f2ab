"""Estimate parameters, memory, compute and time of a config.

The estimate is made from the config alone or, with --topology, from its compiled step. Nothing is
allocated, and without --topology jax is not imported.
"""

import json
import os
import sys
from typing import Any

from gptjax import cli
from gptjax.config import count, count_rlhf, overrides, sweep
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.rlhf_recipe import RlhfRecipe
from gptjax.config.schema import Attention, Config, Experts
from gptjax.configs import registry
from gptjax.report import rlhf_plan
from gptjax.runtime import errors
from gptjax.runtime.units import human_bytes, si, sig3

DESCRIPTION = """\
What a config will cost: parameters, FLOPs per token by kind of layer, bytes,
steps and PF-days, beside what its paper prints. Without --config: one line for
every config.

A paper's own name works too: 125m to 175b are GPT-3's (Table 2.1); 117m to
1542m are GPT-2's (Table 2), and 124m to 1558m the counts that OpenAI corrected
them to. So 117m is the smallest GPT-2, and not GPT-1, which is called gpt1: it
has as many layers, but its own paper prints no size.

With --topology: the whole training step, compiled for chips that are not here
(v4, v5e, v5p, v6e, tpu7x: needs libtpu; h100: jax's CUDA wheels). Whether it
fits, what each chip computes and sends, and how long a step takes: of TPUs an
estimate with an interval, of GPUs a lower bound. The exit status is 0 if it
fits, and 1 if it does not. With --search or --grid as well: several ways to run
it, ranked. Each takes minutes to compile.

With --rlhf: an iteration of learning from a reward by such a recipe: its
rollouts with their KV cache, the scores and the updates, counted or, with
--topology, compiled. --set of task, optimizer and microbatch_rows changes the
recipe; all else is of the config, whose mesh and compute gptjax.rlhf is then
given with --set."""
OF_RECIPE = ("task.", "optimizer.", "microbatch_rows=")  # fields that a pre-trained config lacks
EXAMPLE = """\
python -m gptjax.plan --config=gpt3_small --set "model.attention=Dense()"
  python -m gptjax.plan --config=gpt3_175b --topology=v5p:8x8x8
  python -m gptjax.plan --config=gpt3_xl --topology=v5p-32 --grid "compute.remat=full|attention+mid"
  python -m gptjax.plan --config=gpt3_xl --topology=v5p-32 --search
  python -m gptjax.plan --config=gpt3_175b --rlhf=instructgpt_ppo_ptx --reward=gpt3_6b7
  python -m gptjax.plan --config=gpt3_xl --rlhf=instructgpt_ppo_ptx --topology=v5p-32"""


def main(argv: list[str]) -> int | None:
    """Runs the program; the exit status is 1 if the config does not fit the topology."""
    parser = cli.make_config_parser("plan", DESCRIPTION, EXAMPLE)
    parser.add_argument("--json", action="store_true", help="print JSON, numbers in plain units")
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="chips to compile for: v5p-1024 or v5p:8x8x8, v6e-8, 2xv5p-128, h100-8",
    )
    parser.add_argument(
        "--rlhf", metavar="RECIPE", help="a recipe of gptjax.rlhf: what its iterations cost"
    )
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="with --rlhf: config of the reward model and value function (default: --config's)",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--search", action="store_true", help="compile meshes by what layers save, and rank them"
    )
    ways.add_argument(
        "--grid",
        metavar="PATH=A|B",
        action="append",
        default=[],
        help="an axis of a grid of which every point is compiled, and ranked; repeatable",
    )
    args = parser.parse_args(argv)
    points = sweep.grid(*map(sweep.parse_axis, args.grid)) if args.grid else ()
    if args.rlhf is None and args.reward is not None:
        raise ValueError("--reward is of --rlhf=RECIPE: give that, too")
    if args.rlhf is not None:
        if args.search or args.grid:
            raise ValueError("--search and --grid are of the training step: leave out --rlhf")
        return plan_and_report_rlhf(args)
    if args.topology is not None:
        config = cli.resolve_config(args)
        return compile_and_report(config, args.topology, args.search, points, args.json)
    if args.search or args.grid:
        raise ValueError(
            "--search and --grid compile for chips: say which with --topology=NAME, for example "
            "--topology=v5p:8x8x8"
        )
    if args.config is None and not args.assignments:
        plans = [plan_config(registry.config(name)) for name in registry.config_names()]
        print(json.dumps(plans, indent=1) if args.json else render_list(plans))
        return
    figures = plan_config(cli.resolve_config(args))
    print(json.dumps(figures, indent=1) if args.json else render_plan(figures))


def compile_and_report(
    config: Config, name: str, search: bool, points: sweep.Points, as_json: bool
) -> int:
    """Compiles for a topology and prints the estimate; with `search` or points, of each candidate.
    Returns 0 if the config, or a candidate, fits.
    """
    _use_no_accelerator()
    from gptjax.aot import compile, report, step_time
    from gptjax.aot import search as searching
    from gptjax.sharding import topology

    target = topology.from_name(name)

    def summarize(config: Config) -> dict[str, Any]:
        compiled = compile.compile_step(config, target)
        return step_time.summarize(compiled, step_time.estimate(compiled))

    if not search and not points:
        try:
            summary = summarize(config)
        except MemoryError as error:
            print(error, file=sys.stderr)
            return 1
        print(json.dumps(summary, indent=1) if as_json else report.render(summary))
        return 0 if summary["fits"] else 1
    rows: list[tuple[str, Any]] = []
    choices = list(searching.candidates(config, target, points))
    for i, (assignments, candidate) in enumerate(choices):
        print(f"{i + 1} of {len(choices)}: {assignments}", file=sys.stderr, flush=True)
        try:
            rows.append((assignments, summarize(candidate)))
        except (ValueError, MemoryError) as error:
            if errors.classify_error(error)[0] == 1 and not isinstance(error, MemoryError):
                raise  # a bug
            rows.append((assignments, str(error)))
    print(json.dumps(dict(rows), indent=1) if as_json else report.render_ranking(rows))
    return 0 if any(isinstance(row, dict) and row["fits"] for _, row in rows) else 1


def _use_no_accelerator() -> None:
    """Nothing runs here, so a TPU or GPU on this machine is left to others."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def plan_config(config: Config) -> dict[str, Any]:
    """Returns every figure by name. Bytes are over all devices; tokens, steps and PF-days end at
    train.steps.
    """
    model, batches = config.model, BatchSchedule(config)
    tokens = min(config.train.total_tokens, batches.tokens(batches.n_steps))
    printed_params, printed_pf_days = _paper_figures(config)
    cache_dtype = count.kv_cache_dtype(config)
    return {
        "name": config.name,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "d_head": model.d_head,
        "d_model": model.d_model,
        "d_ff": model.d_ff,
        "n_ctx": model.n_ctx,
        "n_vocab": model.n_vocab,
        "params": count.parameters(model),
        "params_active": count.active_parameters(model),
        "n_experts": model.mlp.n_experts if isinstance(model.mlp, Experts) else None,
        "experts_per_token": model.mlp.top_k if isinstance(model.mlp, Experts) else None,
        "params_non_embedding": count.non_embedding_parameters(model),
        "params_paper": printed_params,
        "flops_by_kind": [
            _pattern_flops(config, pattern) for pattern in dict.fromkeys(model.attention)
        ]
        + [{"kind": "output", "layers": None, "forward": count.logits_flops(model)}],
        "forward_flops_per_token": count.forward_flops_per_token(model),
        "train_flops_per_token": count.train_flops_per_token(model),
        "hardware_flops_per_token": count.hardware_flops_per_token(config),
        "remat": config.compute.remat,
        "state_bytes": count.state_bytes(model),
        "gradient_bytes": count.gradient_bytes(model),
        "row_bytes_float32": count.activation_bytes(config, 1, "float32"),
        "row_bytes_bfloat16": count.activation_bytes(config, 1, "bfloat16"),
        "kv_cache_dtype": cache_dtype,
        "kv_cache_bytes": count.kv_cache_bytes(model, model.n_ctx, cache_dtype),
        "kv_cache_bytes_per_token": count.kv_cache_bytes(model, 1, cache_dtype),
        "tokens_per_step": config.train.batch_tokens,
        "first_tokens_per_step": batches.rows(0) * model.n_ctx,
        "ramp_tokens": None
        if config.train.batch_ramp is None
        else config.train.batch_ramp.over_tokens,
        "steps": batches.n_steps,
        "tokens": tokens,
        "pf_days": count.pf_days(model, tokens),
        "pf_days_6nd": count.paper_pf_days(model, tokens),
        "pf_days_paper": printed_pf_days,
    }


def plan_and_report_rlhf(args: Any) -> int:
    """Prints the plan of an iteration of --rlhf; returns 0 unless it does not fit --topology."""
    of_recipe = [text for text in args.assignments if text.startswith(OF_RECIPE)]
    recipe = overrides.override(registry.rlhf_recipe(args.rlhf), *of_recipe)
    args.assignments = [text for text in args.assignments if text not in of_recipe]
    config = cli.resolve_config(args)
    reward = config if args.reward is None else registry.config(args.reward)
    figures = plan_rlhf(config, recipe, reward)
    if args.topology is None:
        print(json.dumps(figures, indent=1) if args.json else rlhf_plan.render(figures))
        return 0
    _use_no_accelerator()
    from gptjax.aot import rlhf, rlhf_cost
    from gptjax.sharding import topology

    target = topology.from_name(args.topology)
    try:
        compiled = rlhf.compile_iteration(
            rlhf.resolve_config(recipe, config),
            reward,
            target,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    except MemoryError as error:
        print(error, file=sys.stderr)
        return 1
    summary = {"policy": config.name} | rlhf_cost.summarize(compiled)
    print(json.dumps(summary, indent=1) if args.json else rlhf_cost.render(summary))
    return 0 if summary["fits"] else 1


def plan_rlhf(config: Config, recipe: RlhfRecipe, reward: Config) -> dict[str, Any]:
    """Returns every figure of an iteration of a recipe of gptjax.rlhf. reward: of the reward model
    and value function. Raises ValueError if prompts and answers do not fit into the context."""
    task = recipe.task
    for name, n_ctx in {c.name: c.model.n_ctx for c in (config, reward)}.items():
        if task.row_tokens > n_ctx:
            raise ValueError(
                f"{recipe.name} has prompts and answers of {task.row_tokens:,} tokens, and {name} "
                f"a context of {n_ctx:,}: choose a model with a longer one, or --set model.n_ctx"
            )
    names = {"name": config.name, "recipe": recipe.name, "reward": reward.name}
    return names | count_rlhf.programs(config, task, reward)


def _pattern_flops(config: Config, pattern: Attention) -> dict[str, Any]:
    layers = count.layer_counts(config.model)[pattern]
    return {
        "kind": repr(pattern),
        "layers": layers,
        "forward": layers * count.layer_flops(config.model, pattern),
    }


def _paper_figures(config: Config) -> tuple[str | None, float | None]:
    """Returns the paper's figures, as long as the config still has the paper's model and, for
    compute, its length.
    """
    if config.name not in registry.config_names():
        return None, None
    original = registry.config(config.name)
    params, pf_days = registry.paper_figures(config.name)
    same_model = config.model == original.model
    same_length = (config.train.total_tokens, config.train.steps) == (
        original.train.total_tokens,
        original.train.steps,
    )
    return params if same_model else None, pf_days if same_model and same_length else None


# --- as text, at most 80 columns wide -------------------------------------------------------------


def render_plan(p: dict[str, Any]) -> str:
    """Formats the plan of one config."""
    printed = "" if p["params_paper"] is None else f"paper {p['params_paper']}"
    printed_pf_days = "" if p["pf_days_paper"] is None else f"paper {sig3(p['pf_days_paper'])}"
    ramp = (
        ""
        if p["ramp_tokens"] is None
        else f"from {p['first_tokens_per_step']:,} over {si(p['ramp_tokens'])}"
    )
    rows = [
        ("parameters", f"{p['params']:,}", printed),
        ("  without embeddings", f"{p['params_non_embedding']:,}", ""),
        *([("  active for a token", f"{p['params_active']:,}", "")] if p["n_experts"] else []),
        (),
        ("FLOPs per token", "forward", "training"),
        *((_layers_label(k), si(k["forward"]), si(3 * k["forward"])) for k in p["flops_by_kind"]),
        ("  all", si(p["forward_flops_per_token"]), si(p["train_flops_per_token"])),
        (f"  in all, remat {p['remat']}", "", si(p["hardware_flops_per_token"])),
        (),
        ("memory, over all devices", "", ""),
        ("  state: parameters, Adam", human_bytes(p["state_bytes"]), ""),
        ("  gradients, in a step", human_bytes(p["gradient_bytes"]), ""),
        (
            "  activations of a row",
            human_bytes(p["row_bytes_float32"]),
            f"{human_bytes(p['row_bytes_bfloat16'])} in bfloat16",
        ),
        (
            f"  KV cache of a row, {p['kv_cache_dtype']}",
            human_bytes(p["kv_cache_bytes"]),
            f"{human_bytes(p['kv_cache_bytes_per_token'])} a token",
        ),
        (),
        ("tokens per step", f"{p['tokens_per_step']:,}", ramp),
        ("steps", f"{p['steps']:,}", ""),
        ("tokens", f"{p['tokens']:,}", ""),
        (),
        ("PF-days, attention counted", sig3(p["pf_days"]), ""),
        ("  as 6 x parameters x tokens", sig3(p["pf_days_6nd"]), printed_pf_days),
    ]
    shape = (
        f"{p['n_layers']} layers, {p['d_model']:,} wide, {p['n_heads']} heads, context "
        f"{p['n_ctx']:,}"
    )
    is_gpt = (p["n_kv_heads"], p["d_ff"]) == (p["n_heads"], 4 * p["d_model"])
    if not is_gpt:
        shape += f"\n  {p['n_kv_heads']} key and value heads, {p['d_head']} wide, MLP {p['d_ff']:,}"
    if p["n_experts"]:
        shape += f",\n  {p['n_experts']} experts of which a token has {p['experts_per_token']}"
    shape += f", vocabulary {p['n_vocab']:,}"
    return "\n".join(
        [
            f"{p['name']}: {shape}",
            "",
            *(
                f"{rlhf_plan.pad_name(a)}{b:>17}  {c:>22}".rstrip()
                for a, b, c in (row or ("", "", "") for row in rows)
            ),
        ]
    )


def render_list(plans: list[dict[str, Any]]) -> str:
    """Formats a line per config."""
    head = (
        f"{'config':<17}{'parameters':>15}{'context':>9}{'batch':>11}{'tokens':>8}"
        f"{'steps':>11}{'PF-days':>9}"
    )
    lines = [
        f"{p['name']:<17}{p['params']:>15,}{p['n_ctx']:>9,}{p['tokens_per_step']:>11,}{si(p['tokens']):>8}{p['steps']:>11,}"
        f"{sig3(p['pf_days']):>9}"
        for p in plans
    ]
    return "\n".join(
        [
            head,
            *lines,
            "",
            "batch: tokens per step, once grown; PF-days: attention counted. --config=NAME",
            "shows one in full.",
        ]
    )


def _layers_label(kind: dict[str, Any]) -> str:
    return f"  {kind['kind']}" if kind["layers"] is None else f"  {kind['layers']} x {kind['kind']}"


if __name__ == "__main__":
    cli.run(main)
