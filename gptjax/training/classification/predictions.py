"""The predictions of a task as files: one with every detail, and GLUE's submission format."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config.classification import ClassificationTask
from gptjax.runtime import atomic
from gptjax.training.classification import metrics, transformations
from gptjax.training.classification.examples import Example


def final_scores(
    context, score_fn, put_on_mesh, params, name: str, examples: list[Example], rows: np.ndarray
) -> dict[str, Any]:
    """Returns the score on the split `name` (None without labels) and its number of examples. The
    predictions are written to predictions/; if that fails, a warning says why. ValueError for
    scores that are NaN or infinite."""
    task: ClassificationTask = context.config.task
    y_BC, _ = metrics.predict(score_fn, params, rows, context.microbatch_rows, put_on_mesh)
    metrics.check_finite(y_BC)  # on all processes alike, before one writes
    is_labeled = rows[:, 0] >= 0
    score = (
        metrics.score(
            task.metric, y_BC[is_labeled], rows[is_labeled, 0] / transformations.LABEL_SCALE
        )
        if is_labeled.any()
        else None
    )
    if context.processes.process_id == 0:
        folder = context.directory / "predictions"
        try:
            folder.mkdir(exist_ok=True)
            write_predictions(folder, task, name, examples, y_BC)
        except OSError as error:
            context.out.warn(
                f"the answers of {name} cannot be written to {folder}: {error.strerror or error}"
            )
    return {name: score, f"{name}_examples": len(rows)}


def write_predictions(
    folder: Path, task: ClassificationTask, name: str, examples: list[Example], y_BC: np.ndarray
) -> None:
    """NAME.jsonl: index, label, answer and scores of every example; of a test set also GLUE's
    TASK.tsv:
    index and prediction, which is a label's name for entailment tasks, a number for others."""
    predictions = [
        label_text(task, prediction) for prediction in metrics.predicted_classes(task.metric, y_BC)
    ]
    lines = [
        {
            "index": example.index,
            "label": example.label,
            "answer": prediction,
            "scores": [round(float(y), 6) for y in y_C],
        }
        for example, prediction, y_C in zip(examples, predictions, y_BC, strict=True)
    ]
    atomic.save(
        folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    if name == "test" and task.submission:
        by_index = sorted(
            zip((int(example.index) for example in examples), predictions, strict=True)
        )  # TFDS has them shuffled
        table = "".join(f"{index}\t{prediction}\n" for index, prediction in by_index)
        atomic.save(folder / f"{task.submission}.tsv", f"index\tprediction\n{table}".encode())


def label_text(task: ClassificationTask, prediction: float) -> str:
    """Returns a prediction as text: a score, the name of a label, or an answer's number."""
    if task.metric == "pearson":
        return f"{prediction:.3f}"
    return task.labels[int(prediction)] if task.kind == "entailment" else str(int(prediction))
