"""What came out of bench.rlhf_sentiment, which calls this: thresholds, fits and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Written down before any run of PPO.
MIN_RISE = 1.0  # of mean gold, in standard deviations of the gold scores of the initial model
TARGET_KL, KL_TOLERANCE = 6.0, 0.3  # mean of the last third of the iterations (nats of an answer)
MIN_TAKEN_BACK = 0.5  # share of the loss on Brown that PPO costs, at equal proxy score

SEEDS = (0, 1, 2)
COEFS = (0.0, 0.03, 0.1, 0.3, 1.0, 2.0)
# Runs with a fixed KL coefficient and seed 0, by proxy, of all rankings or of a few: iterations of
# each coefficient. The first has twice as many to show that nothing moves any more.
SWEEPS = {"fixed": {coef: 80 if coef == 0 else 40 for coef in COEFS}, "few": {0.0: 40}}
TITLES = {"fixed": "proxy of all rankings", "few": "proxy of 200 rankings"}
SAVED_EVERY = 10  # iterations


FORMS = ("d (a - b d)", "d (a - b log d)")  # of best-of-n, and of reinforcement learning


def fit(kl: np.ndarray, gain: np.ndarray, form: str) -> dict[str, Any]:
    """Gao et al.'s form (2210.10760, equation 1) of the gain of gold over d = sqrt(KL), by least
    squares: d (alpha - beta d) of best-of-n, d (alpha - beta log d) of reinforcement learning."""
    d = np.sqrt(kl)
    design = np.stack([d, -d * (d if form == FORMS[0] else np.log(d))], axis=1)
    parameters, *_ = np.linalg.lstsq(design, gain, rcond=None)
    residuals = gain - design @ parameters
    return {
        "alpha": float(parameters[0]),
        "beta": float(parameters[1]),
        "rms": float(np.sqrt(np.mean(residuals**2))),
        "residuals": residuals.tolist(),
    }


def smooth(values: Sequence[float], n: int = 5) -> np.ndarray:
    """Means of n iterations after each other."""
    return np.asarray(values)[: len(values) // n * n].reshape(-1, n).mean(axis=1)


def verdicts(results: dict[str, Any]) -> dict[str, Any]:
    """What the thresholds are compared with, for the runs that there are."""
    found: dict[str, Any] = {}
    initial = results["initial"]
    for name in (f"ppo-{seed}" for seed in SEEDS):
        if name in results:
            run = results[name]
            rise = (run["final"]["gold"] - initial["gold"]) / initial["gold_std"]
            kl = float(np.mean(run["kl"][-(len(run["kl"]) // 3) :]))
            found[name] = {
                "rise": rise,
                "rises": rise >= MIN_RISE,
                "last_third_kl": kl,
                "holds_kl": abs(kl - TARGET_KL) <= KL_TOLERANCE,
            }
    if "ptx-0" in results:
        found["ptx-0"] = taken_back(results)
    for what, (kl, gain) in points(results).items():
        for form in FORMS:
            found[f"{what}, {form}"] = fit(kl, gain, form)
    return found


def points(results: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(KL, gain of gold) that are fitted: without a penalty, means of the iterations of each half
    unit of sqrt(KL), so that a run that stands still does not count for more; and best-of-n."""
    out = {}
    for sweep in SWEEPS:
        if f"{sweep}-0.0" in results:
            kl, gold = (np.array(results[f"{sweep}-0.0"][key]) for key in ("kl", "gold"))
            bins = np.floor(2 * np.sqrt(np.maximum(kl, 0)))
            means = [(kl[bins == i].mean(), gold[bins == i].mean()) for i in np.unique(bins) if i]
            kl, gold = np.array(means).T
            out[f"{sweep}, coefficient 0"] = kl, gold - results["initial"]["gold"]
    if "best-of-n" in results:
        rows = results["best-of-n"]["rows"]
        kl, gold = (np.array([row[key] for row in rows[1:]]) for key in ("kl", "gold"))
        out["best of n"] = kl, gold - rows[0]["gold"]
    return out


def taken_back(results: dict[str, Any]) -> dict[str, Any]:
    """The loss on Brown of PPO-ptx, and of PPO at equal proxy score: between the checkpoints of its
    beginning, in which the score rises. The score of a checkpoint is that of the ten iterations
    before it."""
    run, start = results["ptx-0"], results["lm"]["brown_loss"]
    losses = run["brown_without"]
    scores = smooth(results["ppo-0"]["proxy"], SAVED_EVERY)[: len(losses)]
    score = smooth(run["proxy"], SAVED_EVERY)[-1]
    equal = float(np.interp(score, scores, losses))
    share = (equal - run["brown"]) / (equal - start)
    return {
        "proxy": float(score),
        "is_between": bool(scores[0] <= score <= scores[-1] and np.all(np.diff(scores) > 0)),
        "before": start,
        "ppo": losses[-1],
        "ppo_at_equal_score": equal,
        "ptx": run["brown"],
        "share": share,
        "takes_back": share >= MIN_TAKEN_BACK,
    }


def table(results: dict[str, Any]) -> str:
    """A table in Markdown: the runs, by their answers to held-out prompts."""
    rows = ["| run | gold | proxy | KL | KL, last third | coefficient | seconds |"]
    rows += ["|---|---|---|---|---|---|---|"]
    for name, run in results.items():
        if "final" in run:
            final, course = run["final"], "| "
            if "kl" in run:  # of reinforcement learning
                last_third = np.mean(run["kl"][-(len(run["kl"]) // 3) :])
                course = f"{last_third:.2f} | {run['kl_coef'][-1]:.2f}"
            rows.append(
                f"| {name} | {final['gold']:.3f} +- {final['gold_error']:.3f} | "
                f"{final['proxy']:.2f} | {final['kl']:.1f} | {course} | {run['seconds']:.0f} |"
            )
    for row in results["best-of-n"]["rows"] if "best-of-n" in results else ():
        rows.append(
            f"| best of {row['n']} | {row['gold']:.3f} +- {row['gold_error']:.3f} | "
            f"{row['proxy']:.2f} | {row['kl']:.3f}, estimated {row['kl_estimate']:.3f} +- "
            f"{row['kl_error']:.3f} | | | |"
        )
    return "\n".join(rows)


def draw(results: dict[str, Any], found: dict[str, Any], out: str) -> None:
    """Writes OUT-ppo.png and OUT-overoptimization.png."""
    from matplotlib import figure

    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")
    picture = figure.Figure(figsize=(9, 3), layout="constrained")
    axes = picture.subplots(1, 3)
    for seed, color in zip(SEEDS, colors, strict=False):
        if f"ppo-{seed}" in results:
            run = results[f"ppo-{seed}"]
            for ax, key in zip(axes, ("gold", "kl", "kl_coef"), strict=True):
                ax.plot(range(1, len(run[key]) + 1), run[key], color=color, label=f"seed {seed}")
    initial = results["initial"]
    goal = initial["gold"] + MIN_RISE * initial["gold_std"]
    axes[0].axhline(goal, color="gray", linestyle="--")
    axes[0].text(1, goal, "one standard deviation", color="gray", va="bottom", fontsize=8)
    axes[1].axhspan(TARGET_KL - KL_TOLERANCE, TARGET_KL + KL_TOLERANCE, color="lightgray")
    names = ("gold score", "KL, nats of an answer", "KL coefficient")
    for ax, name in zip(axes, names, strict=True):
        ax.set(xlabel="iteration", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    picture.savefig(f"{out}-ppo.png", dpi=120)

    picture = figure.Figure(figsize=(10, 6), layout="constrained")
    grid = picture.subplots(2, 3)
    for row, (sweep, title) in enumerate(TITLES.items()):
        for column, key in enumerate(("proxy", "gold")):
            ax = grid[row, column]
            for coef in SWEEPS[sweep]:
                if f"{sweep}-{coef}" in results:
                    run, label = results[f"{sweep}-{coef}"], f"{coef:g}"
                    d = np.sqrt(np.maximum(smooth(run["kl"], 2), 0))
                    color = colors[COEFS.index(coef)]
                    ax.plot(d, smooth(run[key], 2), ".-", color=color, label=label, ms=4, lw=0.8)
            if sweep == "fixed" and "best-of-n" in results:
                rows = results["best-of-n"]["rows"]
                d, y = np.sqrt([row["kl"] for row in rows]), [row[key] for row in rows]
                ax.plot(d, y, "x--", color="gray", label="best of n")
            ax.set(xlabel="sqrt(KL)", ylabel=f"{key} score", title=title)
            if ax.lines:
                ax.legend(frameon=False, title="KL coefficient", fontsize=8)
        ax, what = grid[row, 2], f"{sweep}, coefficient 0"
        for form, marker in zip(FORMS, "x.", strict=True):
            if f"{what}, {form}" in found:
                fitted, d = found[f"{what}, {form}"], np.sqrt(points(results)[what][0])
                label = f"{form}: rms {fitted['rms']:.3f}"
                ax.plot(d, fitted["residuals"], marker, label=label)
        ax.margins(y=0.4)  # room for the legend
        if ax.lines:
            ax.legend(frameon=False, fontsize=8)
        ax.axhline(0, color="gray", lw=0.8)
        ax.set(xlabel="sqrt(KL)", ylabel="residual of gold", title="coefficient 0")
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(f"{out}-overoptimization.png", dpi=120)
