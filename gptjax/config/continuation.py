"""What a model that begins with another's parameters may change: its context, and how rotary or
learned positions reach it."""

from gptjax.config import parse
from gptjax.config.model import Model
from gptjax.config.positions import Learned, Llama31Scaling, LongRope, Rotary, Yarn


def changes(old: Model, new: Model) -> list[str]:
    """The lines that a run prints of what it changes. old: the model of the parameters. Both have
    passed `check`."""
    lines = []
    if old.n_ctx != new.n_ctx:
        lines.append(f"model.n_ctx: {old.n_ctx:,} -> {new.n_ctx:,}")
    if old.positions == (Learned(),) and new.n_ctx < old.n_ctx:
        lines.append(f"learned positions: the first {new.n_ctx:,} of {old.n_ctx:,} rows")
    if old.positions == (Learned(),) and new.n_ctx > old.n_ctx:
        rule = {
            "repeat": "again and again",
            "interpolate": f"stretched by {new.n_ctx / old.n_ctx:g}, interpolated between",
        }[new.init.longer_positions]
        lines.append(f"learned positions: the {old.n_ctx:,} rows {rule}, to {new.n_ctx:,}")
    if old.positions != new.positions:
        lines.append(f"model.positions: {old.positions!r} -> {new.positions!r}")
    for position in dict.fromkeys(new.positions):
        match position:
            case Rotary(scaling=(Llama31Scaling() | Yarn() | LongRope()) as scaling):
                if old.positions != new.positions and scaling.original_context != old.n_ctx:
                    lines.append(
                        f"note: {type(scaling).__name__}.original_context="
                        f"{scaling.original_context:,}, but the weights are of a context of "
                        f"{old.n_ctx:,}"
                    )
    return lines


def check(where: object, old: Model, new: Model, larger_vocab: bool) -> None:
    """Raises ValueError, with the field, unless a model `new` can begin with the parameters of
    `old`, which are in `where`. Allowed are another context and other rotary positions, and with
    larger_vocab a larger vocabulary. Learned positions that are to become more need a rule
    (Init.longer_positions)."""
    for name, (before, after) in _differences(old, new).items():
        match name:
            case "n_ctx" if old.positions != (Learned(),) or after < before:
                continue
            case "n_ctx":
                if new.init.longer_positions != "refuse":
                    continue
                raise ValueError(
                    f"the weights in {where} have learned {before:,} positions, but "
                    f"model.n_ctx={after}: say how they become more with "
                    "--set model.init.longer_positions=repeat or =interpolate, or give "
                    f'--set "model.n_ctx={before}"'
                )
            case "n_vocab" if larger_vocab and after > before:
                continue
            case "positions" if all(isinstance(p, Rotary) for p in (*before, *after)):
                continue
        raise ValueError(
            f"the weights in {where} have {name} {parse.one_line(repr(before), 300)}, but "
            f"model.{name}={parse.one_line(repr(after), 300)}: give the config that belongs "
            f'to them, or --set "model.{name}={parse.one_line(repr(before), 300)}"'
        )


def _differences(old: Model, new: Model) -> dict[str, tuple]:
    """(old, new) value of each field that differs and that parameters depend on."""
    values = vars(new.without_training())
    pairs = {name: (a, values[name]) for name, a in vars(old.without_training()).items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
