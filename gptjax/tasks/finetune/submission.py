"""A task's answers as files: GLUE's format for its server, and everything for those who look closer."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config.task import Task
from gptjax.data import saving
from gptjax.tasks.finetune import inputs, scores
from gptjax.tasks.finetune.examples import Example


def concluded(session, asked, put, params, name: str, examples: list[Example], rows: np.ndarray) -> dict[str, Any]:
    """The score on the split `name` (None without labels), how many examples it has; its answers are written to predictions/, or a warning
    says why not. ValueError for scores that are NaN or infinite."""
    task: Task = session.config.task
    y_BC, _ = scores.answered(asked, params, rows, session.microbatch, put)
    scores.check_finite(y_BC)  # on all processes alike, before one writes
    known = rows[:, 0] >= 0
    value = scores.score(task.metric, y_BC[known], rows[known, 0] / inputs.PARTS) if known.any() else None
    if session.party.process == 0:
        folder = session.directory / "predictions"
        try:
            folder.mkdir(exist_ok=True)
            written(folder, task, name, examples, y_BC)
        except OSError as error:
            session.out.warn(f"the answers of {name} cannot be written to {folder}: {error.strerror or error}")
    return {name: value, f"{name}_examples": len(rows)}


def written(folder: Path, task: Task, name: str, examples: list[Example], y_BC: np.ndarray) -> None:
    """NAME.jsonl: index, label, answer and scores of every example; of a test set also GLUE's TASK.tsv: index and
    prediction, which is a label's name for entailment tasks, a number for others."""
    answers = [spelled(task, answer) for answer in scores.answers(task.metric, y_BC)]
    lines = [
        {"index": example.index, "label": example.label, "answer": answer, "scores": [round(float(y), 6) for y in y_C]}
        for example, answer, y_C in zip(examples, answers, y_BC, strict=True)
    ]
    saving.save(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    if name == "test" and task.submission:
        numbered = sorted(zip((int(example.index) for example in examples), answers, strict=True))  # TFDS has them shuffled
        table = "".join(f"{index}\t{answer}\n" for index, answer in numbered)
        saving.save(folder / f"{task.submission}.tsv", f"index\tprediction\n{table}".encode())


def spelled(task: Task, answer: float) -> str:
    if task.metric == "pearson":
        return f"{answer:.3f}"
    return task.labels[int(answer)] if task.kind == "entailment" else str(int(answer))
