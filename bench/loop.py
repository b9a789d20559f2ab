"""What the host does while a run trains: the share of its time that data and logging take, compared
with dispatching steps and waiting for them.

    python -m bench.loop [--config=nano] [--steps=50]

The shares are those of `python -m gptjax.train --profile`. Data and logging together must take less
than a fifth of the time that the steps take; the exit status is 1 if they take more. Measure on a
machine with nothing else to do: other programs delay data and logging, too.
"""

import pathlib
import tempfile

from gptjax import cli, train
from gptjax.config import parse
from gptjax.report import profile

MAX_RATIO = 0.2  # of the time of data and logging to that of the steps


def main(arguments: list[str]) -> int:
    parser = cli.make_parser("loop", __doc__ or "", "python -m bench.loop --config=nano")
    parser.prog = "python -m bench.loop"
    parser.add_argument("--config", default="nano")
    parser.add_argument("--steps", type=parse.int_argument(), default=50, help="steps traced")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = pathlib.Path(directory) / "run"
        n_steps = args.steps + 3  # the trace starts with the third
        status = train.main(
            [
                f"--config={args.config}",
                f"--run_dir={run_dir}",
                f"--profile={args.steps}",
                *("--set", f"train.steps={n_steps}", "--set", "loop.every_sample=None"),
            ]
        )
        if status:
            return status
        shares = profile.time_shares(run_dir / "profile")
    ratio = (shares["data"] + shares["log"]) / (shares["step"] + shares["wait"])
    print(", ".join(f"{name} {share:.2%}" for name, share in shares.items()))
    print(f"data and logging to steps: {ratio:.4f} (less than {MAX_RATIO} is required)")
    return 0 if ratio < MAX_RATIO else 1


if __name__ == "__main__":
    cli.run(main)
