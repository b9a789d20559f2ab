"""Print an sbatch script that trains on H100 nodes of Slurm.

It starts one process per GPU, which jax detects under Slurm.
"""

import argparse
import shlex
import sys

from gptjax import cli
from gptjax.config import parse
from gptjax.distributed import cluster
from gptjax.launch import checks

EXAMPLE = """python -m gptjax.launch.slurm --nodes=4 --time=3-00:00:00 -- --config=gpt3_xl --run_dir=/shared/runs/xl | sbatch
  tail -F gptjax-JOB.log"""  # noqa: E501
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
{more}export {nonce}=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')
srun --kill-on-bad-exit=1 --label {python} -m {program} {arguments}
"""  # noqa: E501


def main(arguments: list[str]) -> int:
    """Prints the sbatch script of the arguments."""
    own_args, train_args = checks.split_arguments(
        arguments, "slurm", "--config=gpt3_xl --run_dir=/shared/runs/xl"
    )
    print(
        make_script(
            "gptjax.train", shlex.join(train_args), **vars(make_parser().parse_args(own_args))
        ),
        end="",
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's settings."""
    parser = cli.make_parser(
        "slurm", "Print an sbatch script that runs gptjax.train with what stands after --.", EXAMPLE
    )
    parser.prog = "python -m gptjax.launch.slurm"
    parser.add_argument("--name", default="gptjax", help="of the job (default: gptjax)")
    count = parse.int_argument(1, checks.MAX_COUNT)
    parser.add_argument("--nodes", metavar="N", type=count, default=1, help="nodes (default: 1)")
    parser.add_argument(
        "--gpus", metavar="N", type=count, default=8, help="of each node (default: 8)"
    )
    parser.add_argument(
        "--cpus", metavar="N", type=count, default=8, help="for each GPU (default: 8)"
    )
    parser.add_argument(
        "--time", default="1-00:00:00", help="the longest it may take (default: a day)"
    )
    seconds = parse.int_argument(0, 65535)  # as sbatch has it
    parser.add_argument(
        "--grace",
        metavar="S",
        type=seconds,
        default=300,
        help="seconds before that end at which it stops with a checkpoint",
    )
    sbatch_help = "another of sbatch's, as --partition=gpu; repeatable"
    parser.add_argument(
        "--sbatch",
        metavar="FLAG",
        type=parse.line_argument,
        action="append",
        default=[],
        help=sbatch_help,
    )
    parser.add_argument(
        "--python",
        metavar="FILE",
        type=parse.line_argument,
        default=sys.executable,
        help="the interpreter on each node, with gptjax there (default: this one)",
    )
    return parser


def make_script(
    program: str,
    arguments: str,
    name: str,
    time: str,
    sbatch: list[str],
    python: str,
    **numbers: int,
) -> str:
    """Returns the sbatch script. arguments: of the program, quoted for a shell. The others are the
    parser's flags. Raises ValueError for values that sbatch would refuse or misread.
    """
    checks.check_match(
        name, "[A-Za-z0-9._-]{1,100}", "--name", "up to 100 letters, digits, dots, - and _"
    )
    checks.check_match(
        time,
        r"[0-9]{1,6}(-[0-9]{1,2})?(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE",
        "--time",
        "MINUTES, H:M:S, D-H, D-H:M:S or UNLIMITED",
    )
    for flag in sbatch:
        checks.check_match(flag, "-[^#]+", "--sbatch", "a flag of sbatch, as --partition=gpu")
    lines = "".join(f"#SBATCH {flag}\n" for flag in sbatch)
    fields = {"name": name, "time": time, "python": shlex.quote(python), "nonce": cluster.NONCE_ENV}
    return SCRIPT.format(program=program, arguments=arguments, more=lines, **fields, **numbers)


if __name__ == "__main__":
    cli.run(main)
