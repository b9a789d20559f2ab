"""Weights travel: a folder of Hugging Face's or OpenAI's becomes a run of gptjax, and a run a folder for Hugging Face.

What --from is decides which. Weights bring their sizes; everything else of the run's config is the recipe's (--config, --set)."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.config import command, count, overrides, parse
from gptjax.runtime import units

EXAMPLE = """python -m gptjax.convert --from=gpt2/ --to=runs/gpt2              # model.safetensors, or OpenAI's own files
  python -m gptjax.sample --run=runs/gpt2 --prompt='In the beginning'
  python -m gptjax.convert --from=runs/gpt2 --to=exported           # for transformers' from_pretrained"""


def main(arguments: list[str]) -> None:
    parser = command.parser("convert", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--from",
        metavar="DIR",
        dest="source",
        type=parse.path_argument,
        required=True,
        help="a folder of weights, a .safetensors file, or a run",
    )
    parser.add_argument("--to", metavar="DIR", type=parse.path_argument, required=True, help="a directory that is not there yet, or empty")
    args = parser.parse_args(arguments)
    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise ValueError(f"--to={args.to} is there already: give a directory that is not, or an empty one")

    from gptjax.data.tokenizers import build
    from gptjax.report import console
    from gptjax.sharding import xla_options
    from gptjax.weights import hf_config, load

    xla_options.begin()
    out, began = console.Console(quiet=False), time.perf_counter()
    there = load.found(args.source, args.assignments, args.config, out.warn)
    exporting = isinstance(there, load.Run)
    if exporting:
        if args.config is not None:
            raise ValueError(
                f"--config={args.config} is of weights that become a run: {args.source} is one, and has its config; leave it out"
            )
        hf_config.written(there.config.model)  # refuses what cannot be said there, before anything is read
    text = build.tokenizer(there.config.data.tokenizer)
    there.check(there.config, text)
    with whole(args.to) as folder, out.working(f"reading {args.source}") as show:
        params = read(there, text, lambda done, name: show(f"{done:4.0%} read: {name}"))
        if exporting:
            kind = exported(there.config, params, text, folder, lambda done, name: show(f"{done:4.0%} written: {name}"), out.warn)
        else:
            show("writing the checkpoint of step 0")
            kind = imported(there.config, params, text, folder, out.warn)
    out.table(f"{there.kind} -> {kind}", facts(there, args.to, time.perf_counter() - began))
    if not exporting:
        out.say(f"let it speak: python -m gptjax.sample --run={args.to} --prompt='...'")


@contextlib.contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """A directory of its own to write into, which becomes `directory` at the end, or goes if anything fails."""
    directory = directory.resolve()
    made = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{directory.name[:100]}.", suffix=".partial", dir=directory.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        partial.rename(directory)  # an empty one that is there is replaced; one that was filled meanwhile is an OSError
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(there: Any, text: Any, advance: Any) -> Any:
    """The parameters on the mesh of the weights' config."""
    import jax

    from gptjax.sharding import device_mesh, rules
    from gptjax.training import state, step

    mesh = device_mesh.mesh(there.config.mesh)
    rules.check(there.config, mesh)
    built = step.build(there.config, jax.devices()[0].platform, mesh, text.end_of_text)
    return there.params(state.abstract(there.config, built.model, built.tx, mesh).params, advance)


def imported(config: Any, params: Any, text: Any, folder: Path, warn: Any) -> str:
    """Write a run whose checkpoint of step 0 has the parameters, and no optimizer's moments."""
    from gptjax.data.tokenizers import build
    from gptjax.runtime import atomic, run_dir
    from gptjax.training import checkpoint

    build.save_files(text, config.data.tokenizer, folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=build.without_path(config.data.tokenizer)))
    atomic.save(folder / "config.json", run_dir.config_bytes(config))
    about = {"config": overrides.flat(config), "microbatch_rows": None, "tokenizer": text.digest}
    with checkpoint.Checkpoints(folder / "checkpoints", 1, None, warn) as checkpoints:
        checkpoints.save(0, {"params": params}, about)
    return f"run of {config.name}"


def exported(config: Any, params: Any, text: Any, folder: Path, advance: Any, warn: Any) -> str:
    from gptjax.weights import export_hf

    return f"Hugging Face {export_hf.save(folder, config, params, text, advance, warn=warn)}"


def facts(there: Any, to: Path, seconds: float) -> list[tuple[str, str]]:
    """What was converted, and what it came to."""
    model = there.config.model
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    return [
        ("model", f"{count.parameters(model):,} parameters; {model.n_layers} layers, {model.n_heads} heads, {model.d_model} wide"),
        ("context", f"{model.n_ctx:,} tokens of {model.n_vocab:,} ids"),
        ("tokenizer", str(there.config.data.tokenizer)),
        ("written", f"{to}: {units.in_bytes(size)} in {seconds:.1f} s"),
    ]


if __name__ == "__main__":
    command.run(main)
