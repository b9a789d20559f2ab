"""GPT-1's metrics, each as its benchmark defines it."""

from collections.abc import Callable, Container, Iterable
from typing import Any

import jax
import numpy as np


def best_steps(
    records: Iterable[dict[str, Any]], metric: str, saved_steps: Container[int]
) -> list[int]:
    """Returns the steps that have a checkpoint and a finite score, best first; of equal scores the
    earliest first."""
    score_by_step = {
        r["step"]: r[metric]
        for r in records
        if metric in r and r["step"] in saved_steps and np.isfinite(r[metric])
    }
    return sorted(score_by_step, key=lambda step: (-score_by_step[step], step))


def score(metric: str, y_BC: np.ndarray, labels_B: np.ndarray) -> float:
    """In percent, from scores of classes and labels (classes, or numbers between two). f1: of class
    1, as GLUE has it for MRPC and QQP.
    0 where a correlation or F1 is not defined, since all answers are one; NaN where a score of a
    class is NaN or infinite."""
    if not np.isfinite(y_BC).all():
        return float("nan")
    answers_B = predicted_classes(metric, y_BC)
    match metric:
        case "accuracy":
            return 100 * float(np.mean(answers_B == labels_B))
        case "f1":
            true_positives = np.sum((answers_B == 1) & (labels_B == 1))
            n_positives = np.sum(answers_B == 1) + np.sum(labels_B == 1)
            return 100 * float(2 * true_positives / n_positives) if n_positives else 0.0
        case (
            "matthews" | "pearson"
        ):  # Matthews' is Pearson's of two binary variables; STS-B reports Pearson's
            is_defined = np.ptp(answers_B) > 0 and np.ptp(labels_B) > 0
            return 0.0 if not is_defined else 100 * float(np.corrcoef(answers_B, labels_B)[0, 1])
        case _:
            raise AssertionError(metric)


def check_finite(y_BC: np.ndarray) -> None:
    """Raises ValueError, in one line, for scores that are NaN or infinite."""
    bad = int((~np.isfinite(y_BC)).any(1).sum())
    if bad:
        raise ValueError(
            f"the model's scores of {bad:,} of {len(y_BC):,} examples are NaN or infinite: it "
            "diverged, or is damaged"
        )


def predicted_classes(metric: str, y_BC: np.ndarray) -> np.ndarray:
    """Returns the class with the highest score; for the metric pearson the expected class, as in
    Tai et al. (1503.00075), equation 18. ValueError for scores that are not finite, of which argmax
    would choose the first class."""
    check_finite(y_BC)
    if metric != "pearson":
        return y_BC.argmax(1)
    weights_BC = np.exp(y_BC - y_BC.max(1, keepdims=True))
    return (weights_BC @ np.arange(y_BC.shape[1])) / weights_BC.sum(1)


def predict(
    score_fn: Callable, params: Any, rows: np.ndarray, microbatch_rows: int, put_on_mesh: Callable
) -> tuple[np.ndarray, float]:
    """(scores (B, classes), mean loss in nats of those with a label) of rows of EncodedExamples, in
    microbatches padded with copies. score_fn: jitted (params, rows) -> (scores (B, classes),
    losses (B,)); put_on_mesh(array, letters) places a host array on the mesh."""
    score_batches, losses = [], []
    for first in range(0, len(rows), microbatch_rows):
        batch = rows[first : first + microbatch_rows]
        padded = np.concatenate([batch, np.repeat(batch[:1], microbatch_rows - len(batch), axis=0)])
        y_BC, loss_B = jax.device_get(score_fn(params, put_on_mesh(padded, "B1")))
        score_batches.append(y_BC[: len(batch)])
        losses.append(loss_B[: len(batch)])
    is_labeled = rows[:, 0] >= 0
    return np.concatenate(score_batches), float(
        np.concatenate(losses)[is_labeled].mean()
    ) if is_labeled.any() else float("nan")
