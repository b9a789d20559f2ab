"""A run of 9 steps of `smoke`, for tests of how runs go on; tests/e2e/conftest.py has it as a
fixture."""

from gptjax import train
from gptjax.report import events

LINES = "".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000))


def go(text, directory, *changes, flags=()):
    """Status of `smoke`, one layer, 8 rows a batch, saved every 4 steps, with changes."""
    usual = [
        f"data.sources=Text(path='{text}')",
        "data.validation=Tail(fraction=0.1)",
        "model.n_layers=1",
        "train.total_tokens=2304",
    ]
    usual += ["loop.every_save=4", "loop.every_eval=100", "loop.sample_tokens=1"]
    return train.main(
        [
            "--config=smoke",
            f"--run_dir={directory}",
            *flags,
            *[p for c in (*usual, *changes) for p in ("--set", c)],
        ]
    )


def bytes_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def losses(directory):
    return [line["loss"] for line in events.read(directory) if "loss" in line]


def curve(directory):
    """Every line of the record, times left out."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")}
        for line in events.read(directory)
    ]


def edited(name, change):
    return lambda directory: (directory / name).write_bytes(change((directory / name).read_bytes()))
