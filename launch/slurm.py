"""Train on a Slurm cluster of H100 nodes: prints an sbatch script with one process a GPU, as jax finds them under Slurm."""

import argparse
import shlex

from gptjax.config import command

EXAMPLE = """python -m launch.slurm --nodes=4 --time=3-00:00:00 -- --config=gpt3_xl --run=/shared/runs/xl | sbatch
  tail -F gptjax-JOB.log"""
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output=gptjax-%j.log
#SBATCH --open-mode=append
# The tasks get SIGTERM so long before the end, for a checkpoint; a job that loses a node starts again, and continues the run.
#SBATCH --signal=TERM@{grace}
#SBATCH --requeue
{more}srun --kill-on-bad-exit=1 --label {python} -m {program} {arguments}
"""


def main(arguments: list[str]) -> int:
    own, theirs = command.passed_on(arguments)
    args = parser().parse_args(own)
    if not theirs:
        raise ValueError("run what? give gptjax.train's arguments after --, as in -- --config=gpt3_xl --run=/shared/runs/xl")
    print(script("gptjax.train", shlex.join(theirs), **vars(args)), end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """What is asked of sbatch."""
    parser = command.bare_parser("slurm", "Print an sbatch script that runs gptjax.train with what stands after --.", EXAMPLE)
    parser.prog = "python -m launch.slurm"
    parser.add_argument("--name", default="gptjax", help="of the job (default: gptjax)")
    parser.add_argument("--nodes", metavar="N", type=int, default=1, help="(default: 1)")
    parser.add_argument("--gpus", metavar="N", type=int, default=8, help="of each node (default: 8)")
    parser.add_argument("--cpus", metavar="N", type=int, default=8, help="for each GPU (default: 8)")
    parser.add_argument("--time", default="1-00:00:00", help="the longest it may take (default: a day)")
    parser.add_argument("--grace", metavar="S", type=int, default=300, help="seconds before that end at which it stops with a checkpoint")
    parser.add_argument("--sbatch", metavar="FLAG", action="append", default=[], help="another of sbatch's, as --partition=gpu; repeatable")
    parser.add_argument("--python", default=".venv/bin/python", help="(default: .venv/bin/python)")
    return parser


def script(program: str, arguments: str, sbatch: list[str], **values) -> str:
    """The sbatch script; arguments: of the program, as a shell reads them; values: what the parser's flags are called."""
    lines = "".join(f"#SBATCH {flag}\n" for flag in sbatch)
    return SCRIPT.format(program=program, arguments=arguments, more=lines, **values)


if __name__ == "__main__":
    command.run(main)
