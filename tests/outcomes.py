"""Points of sweeps, and made-up results of them."""

from gptjax.config import overrides, sweep
from gptjax.configs import registry
from gptjax.sweeps import comparison
from gptjax.sweeps import points as expansion
from gptjax.sweeps.points import Point

SMOKE = registry.config("smoke")


def expand(sweep_spec: sweep.Sweep) -> list[Point]:
    return expansion.expand(sweep_spec, registry.config(sweep_spec.recipe))


def make_result(
    *edits: str, losses=(), curve=None, noise_scale=None, check=False, label=""
) -> comparison.ArmResult:
    """An arm of smoke with these edits that came out at these losses; curve: (tokens, loss)
    before the end."""
    config = overrides.override(SMOKE, *edits)
    runs = []
    for loss in losses or (None,):
        points = [
            *(curve or []),
            *([(config.train.total_tokens, loss)] if loss is not None else []),
        ]
        point = Point("made up", edits, edits, config, holdout=check)
        runs.append(
            comparison.RunResult(
                point,
                config,
                "begun" if loss is None else "done",
                1,
                tuple(map(tuple, points)),
                1.0,
                1.0,
                noise_scale,
            )
        )
    return comparison.ArmResult(
        label or ", ".join(edits),
        tuple(runs),
        comparison.mean_interval(losses) if losses else None,
        None,
    )
