"""Scaling laws: the loss as a function of size, data or compute, fitted to runs, with intervals,
and what it predicts for a larger model.

Kaplan et al. 2020 (2001.08361): L(x) = (x0 / x)^a for each of N, D and C alone (equations 1.1 to
1.3), and L(N, D) (1.5). Hoffmann et al. 2022 (2203.15556): L(N, D) = E + A / N^a + B / D^b
(equation 2), and the same with one term.

Fitted as Hoffmann et al. do (section 3.3): Huber's loss of the residuals of log L, delta 1e-3, from
many beginnings; by SciPy's least squares where they have L-BFGS: the same minimum, 20 times sooner.
Kaplan et al. do not say how they fit. Intervals [chosen: the papers give none]: 95% by a
studentised parametric bootstrap. Each draw moves every arm, with all its seeds, by a normal error
as large as those of the arms around the law, fits again, and notes how far it has come in errors of
its own: so few arms widen an interval as in Student's t. Of laws that are known they held 95% (160
fits through five arms of three seeds, 60 through eight) to 98% (40 of Kaplan's form). They are of
the law, not of a single run, whose seed comes on top.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize

HUBER_DELTA = 1e-3  # of Huber's loss: Hoffmann et al. section 3.3
N_DRAWS = 200  # of the bootstrap
MIN_SPREAD = 1e-12  # a spread below this is none
# of a log loss that is no number, and the largest logarithm of a parameter or a loss: exp has no
# more
MAX_LOG = 700.0
GPT3_LAW = (2.57, 0.048)  # L = 2.57 C^-0.048, C in PF-days: GPT-3 Figure 3.1


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """A parametric form of the loss. log_loss(parameters, arrays of the variables) returns log L.
    Parameters are positive and fitted as logarithms. starts: for each parameter, the values from
    which the search starts."""

    formula: str
    parameters: tuple[str, ...]
    variables: tuple[str, ...]
    log_loss: Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]
    starts: tuple[tuple[float, ...], ...]

    @np.errstate(all="ignore")  # far off, powers overflow
    def predict_log(self, parameters: np.ndarray, variables: Sequence) -> np.ndarray:
        """Returns log L for given values of the variables, at most MAX_LOG."""
        log_losses = self.log_loss(parameters, [np.asarray(x, float) for x in variables])
        return np.clip(np.nan_to_num(log_losses, nan=MAX_LOG), -MAX_LOG, MAX_LOG)


EXPONENT_STARTS = (0.05, 0.2, 0.5)
SCALE_STARTS = (1e3, 1e8, 1e13)
COEFFICIENT_STARTS = (1.0, 30.0, 1000.0)
FLOOR_STARTS = (0.3, 1.0, 2.0)
FORMS = {
    "power": ScalingLaw(
        "(x0/x)^a",
        ("x0", "a"),
        ("x",),
        lambda p, x: p[1] * np.log(p[0] / x[0]),
        (SCALE_STARTS, EXPONENT_STARTS),
    ),
    "offset": ScalingLaw(
        "E + A/x^a",
        ("E", "A", "a"),
        ("x",),
        lambda p, x: np.log(p[0] + p[1] * x[0] ** -p[2]),
        (FLOOR_STARTS, COEFFICIENT_STARTS, EXPONENT_STARTS),
    ),
    "kaplan": ScalingLaw(
        "[(Nc/N)^(aN/aD) + Dc/D]^aD",
        ("Nc", "aN", "Dc", "aD"),
        ("N", "D"),
        lambda p, x: p[3] * np.log((p[0] / x[0]) ** (p[1] / p[3]) + p[2] / x[1]),
        (SCALE_STARTS, EXPONENT_STARTS, SCALE_STARTS, EXPONENT_STARTS),
    ),
    "chinchilla": ScalingLaw(
        "E + A/N^a + B/D^b",
        ("E", "A", "a", "B", "b"),
        ("N", "D"),
        lambda p, x: np.log(p[0] + p[1] * x[0] ** -p[2] + p[3] * x[1] ** -p[4]),
        (FLOOR_STARTS, COEFFICIENT_STARTS, EXPONENT_STARTS, COEFFICIENT_STARTS, EXPONENT_STARTS),
    ),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law. parameters: by name; spread: standard deviation of arms around the law, in log
    L; bootstrap: both, for each resample. relative_error: root mean square of the residuals of log
    L, that is, of the relative errors of L."""

    form: ScalingLaw
    parameters: np.ndarray
    spread: float
    bootstrap: tuple[tuple[np.ndarray, float], ...]
    relative_error: float

    def predict(self, *inputs: float) -> float:
        return float(np.exp(self.form.predict_log(self.parameters, inputs)))

    def predict_interval(self, *inputs: float) -> tuple[float, float]:
        """Returns the 95% prediction interval of the loss."""
        low, high = self._bootstrap_interval(lambda p: self.form.predict_log(p, inputs))
        return float(low), float(high)

    def parameter_intervals(self) -> dict[str, tuple[float, float, float]]:
        """Returns name -> (value, low, high) of each parameter."""
        low, high = self._bootstrap_interval(np.log)
        return {
            name: (float(v), float(a), float(b))
            for name, v, a, b in zip(self.form.parameters, self.parameters, low, high, strict=True)
        }

    def _bootstrap_interval(
        self, log_value: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the 95% interval of a quantity whose logarithm `log_value` computes from the
        parameters."""
        value = log_value(self.parameters)
        errors = [(log_value(parameters) - value) / spread for parameters, spread in self.bootstrap]
        low, high = np.quantile(
            errors, [0.025, 0.975], axis=0, method="weibull"
        )  # of any number of draws 95% lie between, on average
        bounds = np.clip([value - high * self.spread, value - low * self.spread], -MAX_LOG, MAX_LOG)
        return np.exp(bounds[0]), np.exp(bounds[1])


def fit(
    form: ScalingLaw,
    variables: Sequence[Sequence[float]],
    losses: Sequence[float],
    arms: Sequence[int],
    seed: int = 0,
) -> Fit:
    """Fits a law to runs, given the variables, the loss and the arm of each run. ValueError for
    fewer arms than parameters: such a fit would be exact and could not be assessed."""
    x, log_loss, arm = (
        [np.asarray(v, float) for v in variables],
        np.log(np.asarray(losses, float)),
        np.asarray(arms),
    )
    names = np.unique(arm)
    if len(names) <= len(form.parameters):
        raise ValueError(
            f"{form.formula} has {len(form.parameters)} parameters: give "
            f"{len(form.parameters) + 1} arms or more, not {len(names)}"
        )
    parameters = _minimize(form, x, log_loss, itertools.product(*form.starts))
    predicted, arm_index = form.predict_log(parameters, x), np.searchsorted(names, arm)

    def means(residuals):
        return np.bincount(arm_index, residuals) / np.bincount(arm_index)

    def deviation(residuals):
        return max(
            float(np.sqrt(np.sum(means(residuals) ** 2) / (len(names) - len(form.parameters)))),
            MIN_SPREAD,
        )

    residuals, noise = (
        log_loss - predicted,
        np.random.default_rng(seed).standard_normal((N_DRAWS, len(names))),
    )
    seed_residuals, draws = residuals - means(residuals)[arm_index], []
    for errors in deviation(residuals) * noise:
        sample = predicted + errors[arm_index] + seed_residuals
        draw = _minimize(form, x, sample, [parameters])
        draws.append((draw, deviation(sample - form.predict_log(draw, x))))
    return Fit(
        form, parameters, deviation(residuals), tuple(draws), float(np.sqrt(np.mean(residuals**2)))
    )


@np.errstate(all="ignore")
def _minimize(form: ScalingLaw, x: list[np.ndarray], log_loss: np.ndarray, starts) -> np.ndarray:
    """Returns the parameters with the smallest objective over all starting points."""

    def residuals(logs):
        return form.predict_log(_exp_parameters(logs), x) - log_loss

    def squares(start):
        return scipy.optimize.least_squares(residuals, start, method="lm", max_nfev=1000)

    def huber(start):
        return scipy.optimize.least_squares(
            residuals, start, loss="huber", f_scale=HUBER_DELTA, max_nfev=200
        )

    # Far from the minimum Huber's loss is flat, and its search stops: squares lead to it.
    candidates = sorted(
        (np.log(np.asarray(start, float)) for start in starts),
        key=lambda logs: np.abs(residuals(logs)).sum(),
    )[:16]
    minima = sorted(map(squares, candidates), key=lambda minimum: minimum.cost)[:3]
    return _exp_parameters(
        min((huber(minimum.x) for minimum in minima), key=lambda minimum: minimum.cost).x
    )


def _exp_parameters(logs: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(logs, -MAX_LOG, MAX_LOG))


def pareto_frontier(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Returns those (compute, loss) points of several runs that no cheaper point matches: the
    envelope of GPT-3's Figure 3.1."""
    best, points = np.inf, []
    for compute, loss in sorted(point for curve in curves for point in curve):
        if loss < best:
            best = loss
            points.append((compute, loss))
    return points
