"""The points of a sweep as jobs of a cluster: a Slurm array, or JobSets for Kubernetes."""

import shlex

from gptjax.launch import gke, slurm
from gptjax.sweeps.points import Point


def slurm_array(points: list[Point], sweep_args: list[str], launcher_args: list[str]) -> str:
    """Returns the script of a Slurm array whose elements run one point each. sweep_args: the
    arguments of gptjax.sweep, --dir among them; launcher_args: those of gptjax.launch.slurm."""
    args = slurm.make_parser().parse_args(launcher_args)
    args.sbatch.append(f"--array=0-{len(points) - 1}")
    arguments = shlex.join(remove_flag(sweep_args, "--launch"))
    return slurm.make_script(
        "gptjax.sweep", f'{arguments} --point="$SLURM_ARRAY_TASK_ID"', **vars(args)
    )


def jobsets(points: list[Point], recipe: str, sweep_dir: str, launcher_args: list[str]) -> str:
    """Returns the YAML of one JobSet per point, each an ordinary run of gptjax.train below
    sweep_dir. launcher_args: the arguments of gptjax.launch.gke."""
    import yaml

    args = vars(gke.make_parser().parse_args(launcher_args))
    name = args.pop("name")
    documents = [
        gke.make_jobset(
            **args,
            name=f"{name}-{i}",
            arguments=[f"--config={recipe}", f"--run_dir={sweep_dir}/{p.name}", *p.arguments],
        )
        for i, p in enumerate(points)
    ]
    return yaml.safe_dump_all(documents, sort_keys=False)


def remove_flag(arguments: list[str], flag: str) -> list[str]:
    """Returns the arguments without `--flag=value` and `--flag value`."""
    remaining = [argument for argument in arguments if not argument.startswith(f"{flag}=")]
    if flag in remaining:
        index = remaining.index(flag)
        del remaining[index : index + 2]
    return remaining
