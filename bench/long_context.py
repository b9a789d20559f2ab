"""A small model trained at 512 tokens and continued at 2,048 and 8,192 by each method, and what a
long prompt costs.

    python -m bench.long_context [--out=docs/results/long-context] [--only=train|prefill|draw]

train: two models, of learned and of rotary positions, read text of Python's standard library at
512 tokens. Each row of training holds a passkey of one character, "#=Q", in the middle of the text
and wants it 16 to 48 times later, "#?Q". Each method then goes on from them at 2,048 and, from
there, at 8,192 tokens for a few steps, as train --init does. Measured on other text: the loss by
position, and the share of rows at whose end the passkey, wanted once, is the likeliest of 128
characters, by depth of the passkey and length of the row.

prefill: temporary bytes (of the compiled program) and seconds of a prompt, whole and in chunks, of
dense and of banded layers, by its length.

Writes OUT.json after each result and draws OUT-loss.png, OUT-passkey.png and OUT-prefill.png.
"""

import argparse
import dataclasses
import json
import string
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gptjax
from gptjax.config import continuation, parse, schema
from gptjax.config.schema import Rotary
from gptjax.data.sources import stdlib_corpus
from gptjax.model import embedding, gpt, inference

SHORT, LENGTHS = 512, (512, 2048, 8192)
BATCH_TOKENS = 4096  # or one row, if that is longer
DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
LETTERS = string.ascii_letters + string.digits
FAMILIES: dict[str, dict[str, Any]] = {"learned": {}, "rotary": {"positions": (Rotary(),)}}
SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 64, "n_vocab": 128}


def methods(n_ctx: int) -> dict[str, dict[str, Any]]:
    """Changes of the model, by name of the method, at a context of n_ctx."""
    factor = n_ctx / SHORT

    def rotary(scaling):
        return {"positions": (Rotary(scaling=scaling),)}

    return {
        "learned, repeated": {"init": schema.Init(longer_positions="repeat")},
        "learned, interpolated": {"init": schema.Init(longer_positions="interpolate")},
        "rotary": {"positions": (Rotary(),)},
        "rotary, linear": rotary(schema.LinearScaling(factor=factor)),
        "rotary, Llama 3.1's": rotary(schema.Llama31Scaling(factor=factor, original_context=SHORT)),
        "rotary, YaRN": rotary(schema.Yarn(factor=factor, original_context=SHORT)),
    }


def make_config(n_ctx: int, peak_lr: float, steps: int, **changes: Any) -> schema.Config:
    """A config of the model at n_ctx, for `steps` steps."""
    config = gptjax.config("smoke")
    batch_tokens = max(BATCH_TOKENS, n_ctx)
    n_tokens = steps * batch_tokens
    schedule = schema.Cosine(
        peak_lr=peak_lr, warmup_tokens=n_tokens // 10, decay_tokens=n_tokens, final_fraction=0.1
    )
    train = schema.Train(total_tokens=n_tokens, batch_tokens=batch_tokens, schedule=schedule)
    model = schema.Model(**SIZES, n_ctx=n_ctx, **changes)
    return dataclasses.replace(config, model=model, train=train)


# --- text -----------------------------------------------------------------------------------------


def read_text() -> tuple[np.ndarray, np.ndarray]:
    """(training text, other text): ASCII codes of Python's standard library, the last tenth
    apart."""
    texts = (d.text for d in stdlib_corpus.documents())
    codes = np.frombuffer("\n".join(texts).encode("ascii", "ignore"), np.uint8).astype(np.int32)
    return codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]


def put(row: np.ndarray, position: int, text: str) -> None:
    row[position : position + len(text)] = [ord(c) for c in text]


def passkey(rng: np.random.Generator) -> str:
    return LETTERS[rng.integers(len(LETTERS))]


def training_rows(rng: np.random.Generator, text: np.ndarray, n_ctx: int) -> np.ndarray:
    """int32 (B, n_ctx + 1): text with a passkey and 16 to 48 questions for it."""
    rows = []
    for _ in range(max(1, BATCH_TOKENS // n_ctx)):
        start = rng.integers(0, len(text) - n_ctx - 1)
        row = text[start : start + n_ctx + 1].copy()
        key, at = passkey(rng), int(rng.integers(0, n_ctx // 2))
        put(row, at, f"\n#={key}\n")
        for place in rng.integers(at // 8 + 1, n_ctx // 8, int(rng.integers(16, 49))) * 8:
            if place > at + 8:
                put(row, int(place), f"\n#?{key}\n")
        rows.append(row)
    return np.stack(rows)


def question_rows(
    rng: np.random.Generator, text: np.ndarray, length: int, depth: float, n: int
) -> np.ndarray:
    """int32 (n, length): text with a passkey at `depth` and the question for it at the end."""
    rows = []
    for _ in range(n):
        start, key = rng.integers(0, len(text) - length), passkey(rng)
        row = text[start : start + length].copy()
        put(row, int(depth * (length - 16)), f"\n#={key}\n")
        put(row, length - 4, f"\n#?{key}")
        rows.append(row)
    return np.stack(rows)


# --- training -------------------------------------------------------------------------------------


def train(config: schema.Config, params: Any, text: np.ndarray, seed: int) -> tuple[Any, float]:
    """(parameters, seconds) after the config's steps from `params`."""
    state, step_fn = gptjax.make_train_step(config, params)
    rng, start = np.random.default_rng(seed), time.monotonic()
    steps = config.train.total_tokens // config.train.batch_tokens
    for step in range(steps):
        state, metrics = step_fn(state, training_rows(rng, text, config.model.n_ctx))
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"  step {step + 1} loss {float(metrics['loss']):.3f}", flush=True)
    return state.params, time.monotonic() - start


def continue_at(params: Any, old: schema.Model, new: schema.Model) -> Any:
    """The parameters as train --init takes them over."""
    continuation.check("the short model", old, new, larger_vocab=False)
    if "position_TD" not in params:
        return params
    table = embedding.resize_positions(params["position_TD"], new.n_ctx, new.init.longer_positions)
    return params | {"position_TD": table}


def measure(model: schema.Model, params: Any, text: np.ndarray, n: int) -> dict[str, Any]:
    """Loss by position, in 32 parts of the context, and passkey accuracy by length and depth."""
    net = gpt.GPT(model, gpt.execution_policy(schema.Compute(), "cpu"))

    @jax.jit
    def nll_and_hits(params, tokens_BT):
        """float32 (B, T - 1): of each token but the first; whether it is the likeliest."""
        x_BTD = net.apply({"params": params}, tokens_BT[:, :-1])
        y_BTV = gpt.logits(x_BTD, gpt.output_table(params), model.n_vocab)
        target_BT = tokens_BT[:, 1:]
        log_prob_BTV = jax.nn.log_softmax(y_BTV)
        nll_BT = -jnp.take_along_axis(log_prob_BTV, target_BT[..., None], -1)[..., 0]
        return nll_BT, y_BTV.argmax(-1) == target_BT

    rng = np.random.default_rng(7)
    length = model.n_ctx
    starts = rng.integers(0, len(text) - length - 1, n)
    losses = [
        np.asarray(nll_and_hits(params, text[None, s : s + length + 1])[0][0]) for s in starts
    ]
    by_position = np.mean(losses, axis=0).reshape(32, -1).mean(1)
    accuracy = {}
    for rows_length in (x for x in LENGTHS if x <= length):
        accuracy[rows_length] = {}
        for depth in DEPTHS:
            rows = question_rows(rng, text, rows_length, depth, n)
            hits = [bool(np.asarray(nll_and_hits(params, row[None])[1][0, -1])) for row in rows]
            accuracy[rows_length][depth] = float(np.mean(hits))
    return {"loss": by_position.tolist(), "passkey": accuracy}


def run_training(out: Path, results: dict[str, Any], args: argparse.Namespace) -> None:
    """Trains and measures every method, and saves each result."""
    text, other = read_text()
    results["training"] = {
        "sizes": SIZES,
        "steps": args.steps,
        "batch_tokens": BATCH_TOKENS,
        "peak_lr": args.peak_lr,
    }
    results["training"] |= {"items": args.items, "results": {}}

    def finish(name, config, params, seconds):
        result = measure(config.model, params, other, args.items)
        key = f"{name} at {config.model.n_ctx}"
        results["training"]["results"][key] = result | {"seconds": seconds}
        save(out, results)
        rates = {k: [round(x, 2) for x in v.values()] for k, v in result["passkey"].items()}
        print(f"{key}: loss {np.mean(result['loss']):.3f}, passkey {rates}", flush=True)

    short = {}
    for name, changes in FAMILIES.items():
        if name not in args.families:
            continue
        config = make_config(SHORT, args.peak_lr, args.steps[0], **changes)
        print(f"{name} at {SHORT}", flush=True)
        params, seconds = train(config, None, text, 0)
        short[name] = config.model, params
        finish(name, config, params, seconds)
    for name in methods(SHORT):
        family = name.partition(",")[0]
        if family not in args.families:
            continue
        old, params = short[family]
        for n_ctx, steps in zip(LENGTHS[1:], args.steps[1:], strict=True):
            config = make_config(n_ctx, args.peak_lr / 3, steps, **methods(n_ctx)[name])
            params = continue_at(params, old, config.model)
            print(f"{name} at {n_ctx}", flush=True)
            params, seconds = train(config, params, text, n_ctx)
            finish(name, config, params, seconds)
            old = config.model


# --- prefill --------------------------------------------------------------------------------------

PATTERNS = {"dense": (schema.Dense(),), "banded, window 256": (schema.Banded(window=256),)}
PREFILL_LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]
CHUNKS = {"whole, reference": None, "whole, tiles": None, "in chunks of 512": 512}


def run_prefill(out: Path, results: dict[str, Any], args: argparse.Namespace) -> None:
    """Memory and time of a prompt by its length."""
    rows = []
    for pattern, attention in PATTERNS.items():
        for way, chunk in CHUNKS.items():
            for length in args.prefill_lengths:
                kernel = "reference" if "reference" in way else "auto"
                if kernel == "reference" and length > 4096:
                    continue
                config = make_config(length, 1e-3, 1, attention=attention)
                compute = schema.Compute(attention_kernel=kernel, prefill_chunk=chunk)
                model = gpt.GPT(config.model, gpt.execution_policy(compute, "cpu"))
                params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
                lm = inference.prepare(model, params)
                tokens, count = jnp.zeros((1, length), jnp.int32), jnp.array([length])
                prefill = jax.jit(inference.prefill, static_argnames="capacity")
                compiled = prefill.lower(lm, tokens, count, capacity=length).compile()
                analysis = compiled.memory_analysis()
                seconds = []
                for _ in range(3):
                    start = time.perf_counter()
                    jax.block_until_ready(compiled(lm, tokens, count))
                    seconds.append(time.perf_counter() - start)
                row = {"pattern": pattern, "way": way, "length": length}
                row |= {"bytes": analysis.temp_size_in_bytes, "seconds": min(seconds)}
                print(row, flush=True)
                rows.append(row)
                results["prefill"] = {"sizes": SIZES, "rows": rows}
                save(out, results)


# --- pictures -------------------------------------------------------------------------------------


def draw(out: Path, results: dict[str, Any]) -> None:
    """OUT-loss.png, OUT-passkey.png and OUT-prefill.png of the results that there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if "training" in results:
        found = results["training"]["results"]
        _draw_loss(plt, found).savefig(f"{out}-loss.png", dpi=130)
        _draw_passkey(plt, found).savefig(f"{out}-passkey.png", dpi=130)
    if "prefill" in results:
        _draw_prefill(plt, results["prefill"]["rows"]).savefig(f"{out}-prefill.png", dpi=130)


def _draw_loss(plt, found):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, n_ctx in zip(axes, LENGTHS[1:], strict=True):
        for name in methods(SHORT):
            if (key := f"{name} at {n_ctx}") in found:
                loss = found[key]["loss"]
                axis.plot((np.arange(32) + 0.5) * n_ctx / 32, loss, label=name)
        axis.axvline(SHORT, color="gray", linestyle=":", linewidth=1)
        axis.set(title=f"continued at {n_ctx:,} tokens", xlabel="position", xlim=(0, n_ctx))
    axes[0].set_ylabel("loss on other text, nats per character")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8
    )
    return figure


def _draw_passkey(plt, found):
    names = [name for name in methods(SHORT) if f"{name} at {LENGTHS[-1]}" in found]
    figure, axes = plt.subplots(
        2, len(names), figsize=(2.1 * len(names) + 1, 4.4), layout="constrained", squeeze=False
    )
    for row, n_ctx in enumerate(LENGTHS[1:]):
        for axis, name in zip(axes[row], names, strict=True):
            passkey = found[f"{name} at {n_ctx}"]["passkey"]
            lengths = [str(x) for x in LENGTHS if x <= n_ctx]
            grid = [[passkey[x][str(depth)] for x in lengths] for depth in DEPTHS]
            axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for y, values in enumerate(grid):
                for x, value in enumerate(values):
                    color = "white" if value < 0.6 else "black"
                    text = f"{value:.0%}"
                    axis.text(x, y, text, ha="center", va="center", color=color, fontsize=7)
            axis.set_xticks(range(len(lengths)), lengths, fontsize=7)
            axis.set_yticks(range(len(DEPTHS)), [f"{d:.0%}" for d in DEPTHS], fontsize=7)
            if row == 0:
                axis.set_title(name.replace(", ", ",\n"), fontsize=8)
            if name == names[0]:
                axis.set_ylabel(f"at {n_ctx:,}: depth of the passkey", fontsize=8)
            if row:
                axis.set_xlabel("length of the text", fontsize=8)
    return figure


def _draw_prefill(plt, rows):
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharex=True)
    for column, pattern in enumerate(PATTERNS):
        for way in CHUNKS:
            points = [r for r in rows if (r["pattern"], r["way"]) == (pattern, way)]
            lengths = [r["length"] for r in points]
            for axis, key, unit in (
                (axes[0][column], "bytes", 2**20),
                (axes[1][column], "seconds", 1),
            ):
                axis.loglog(lengths, [r[key] / unit for r in points], marker="o", label=way)
        axes[0][column].set_title(pattern)
        axes[1][column].set_xlabel("tokens of the prompt")
    axes[0][0].set_ylabel("temporary memory, MiB")
    axes[1][0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    return figure


def save(out: Path, results: dict[str, Any]) -> None:
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=parse.path_argument,
        default=Path("docs/results/long-context"),
        help="without suffix",
    )
    parser.add_argument(
        "--steps",
        type=parse.int_argument(),
        nargs=3,
        default=[1000, 80, 16],
        help="of training at 512, 2,048 and 8,192 tokens",
    )
    parser.add_argument("--peak_lr", type=parse.float_argument(0.0), default=3e-3)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument(
        "--items", type=parse.int_argument(), default=12, help="rows of each cell of the passkeys"
    )
    parser.add_argument("--only", choices=["train", "prefill", "draw"], help="one part of the work")
    parser.add_argument(
        "--prefill_lengths", type=parse.int_argument(), nargs="+", default=PREFILL_LENGTHS
    )
    args = parser.parse_args()
    file = args.out.with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    if args.only in (None, "train"):
        run_training(args.out, results, args)
    if args.only in (None, "prefill"):
        run_prefill(args.out, results, args)
    draw(args.out, json.loads(file.read_text()))


if __name__ == "__main__":
    main()
