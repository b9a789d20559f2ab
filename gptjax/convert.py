"""Convert weights of Hugging Face and OpenAI, both ways.

A folder of Hugging Face's or OpenAI's becomes a run of gptjax, a run a folder for Hugging Face. The
content of --from decides which. Weights bring their sizes; the rest of the run's config is the
recipe's (--config, --set).
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax import cli
from gptjax.config import count, overrides, parse
from gptjax.runtime import units

EXAMPLE = """# model.safetensors, or OpenAI's own files
  python -m gptjax.convert --from=gpt2/ --to=runs/gpt2
  python -m gptjax.sample --model=runs/gpt2 --prompt='In the beginning'
  # for transformers' from_pretrained
  python -m gptjax.convert --from=runs/gpt2 --to=exported"""


def main(arguments: list[str]) -> None:
    """Runs the program."""
    parser = cli.make_config_parser("convert", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--from",
        metavar="DIR",
        dest="source",
        type=parse.path_argument,
        required=True,
        help="a folder of weights, a .safetensors file, or a run",
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        type=parse.path_argument,
        required=True,
        help="a directory that is not there yet, or empty",
    )
    args = parser.parse_args(arguments)
    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise ValueError(
            f"--to={args.to} is there already: give a directory that is not, or an empty one"
        )

    from gptjax.report import console
    from gptjax.sharding import xla_options
    from gptjax.weights import export_hf, load, open_model

    xla_options.configure_runtime()
    out, start_time = console.Console(quiet=False), time.perf_counter()
    weights = load.load(args.source, args.assignments, args.config, out.warn)
    is_export = isinstance(weights, load.RunWeights)
    if is_export:
        if args.config is not None:
            raise ValueError(
                f"--config={args.config} is of weights that become a run: {args.source} is one, "
                "and has its config; leave it out"
            )
        # Raises for models that have no equivalent, before anything is read.
        export_hf.choose_format(weights.config.model)
    with atomic_dir(args.to) as folder, out.status(f"reading {args.source}") as progress:
        loaded = open_model.read_model(weights, progress)
        if is_export:
            kind = write_hf(
                loaded.config,
                loaded.params,
                loaded.tokenizer,
                folder,
                lambda done, name: progress(f"{done:4.0%} written: {name}"),
                out.warn,
            )
        else:
            progress("writing the checkpoint of step 0")
            kind = write_run(loaded.config, loaded.params, loaded.tokenizer, folder, out.warn)
    out.print_table(
        f"{weights.kind} -> {kind}",
        summary_rows(weights, args.to, time.perf_counter() - start_time),
    )
    if not is_export:
        out.print(f"sample from it: python -m gptjax.sample --model={args.to} --prompt='...'")


@contextlib.contextmanager
def atomic_dir(directory: Path) -> Iterator[Path]:
    """Yields a temporary directory that becomes `directory` at the end, or is removed
    on any error.
    """
    directory = directory.resolve()
    created_dirs = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f"{directory.name[:100]}.", suffix=".partial", dir=directory.parent)
    )
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        partial.rename(
            directory
        )  # an empty one that is there is replaced; one that was filled meanwhile is an OSError
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in created_dirs:
                parent.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_run(config: Any, params: Any, tokenizer: Any, folder: Path, warn: Any) -> str:
    """Writes a run whose checkpoint of step 0 has the parameters, but no optimizer moments."""
    from gptjax.data.tokenizers import build
    from gptjax.runtime import atomic, run_dir
    from gptjax.training import checkpoint

    build.save_files(tokenizer, config.data.tokenizer, folder)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, tokenizer=build.without_path(config.data.tokenizer)),
    )
    atomic.save(folder / "config.json", run_dir.config_bytes(config))
    metadata = {
        "config": overrides.flatten(config),
        "microbatch_rows": None,
        "tokenizer": tokenizer.digest,
    }
    with checkpoint.CheckpointManager(folder / "checkpoints", 1, None, warn) as checkpoints:
        checkpoints.save(0, {"params": params}, metadata)
    return f"run of {config.name}"


def write_hf(
    config: Any, params: Any, tokenizer: Any, folder: Path, advance: Any, warn: Any
) -> str:
    """Writes a Hugging Face folder."""
    from gptjax.weights import export_hf

    return f"Hugging Face {export_hf.save(folder, config, params, tokenizer, advance, warn=warn)}"


def summary_rows(weights: Any, to: Path, seconds: float) -> list[tuple[str, str]]:
    """Rows of the summary table."""
    model = weights.config.model
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    return [
        (
            "model",
            f"{count.parameters(model):,} parameters; {model.n_layers} layers, {model.n_heads} "
            f"heads, {model.d_model} wide",
        ),
        ("context", f"{model.n_ctx:,} tokens of {model.n_vocab:,} ids"),
        ("tokenizer", str(weights.config.data.tokenizer)),
        ("written", f"{to}: {units.human_bytes(size)} in {seconds:.1f} s"),
    ]


if __name__ == "__main__":
    cli.run(main)
