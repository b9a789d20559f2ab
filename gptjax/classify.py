"""Label new texts with a fine-tuned run: `python -m gptjax.classify --model=DIR --text=FILE` prints
one line per text, with the probability of every label.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax import cli
from gptjax.config import find_files, parse
from gptjax.config.classification import ClassificationTask
from gptjax.data import unicode
from gptjax.runtime import atomic

if TYPE_CHECKING:
    from gptjax.training.classification import text_classifier

FORMATS = ("txt", "tsv", "csv", "jsonl")
EXAMPLE = """python -m gptjax.classify --model=runs/own --text=new.txt
  grep -v '^#' reviews | python -m gptjax.classify --model=runs/own --text=- --as=tsv"""


def main(arguments: list[str]) -> int:
    """Runs the program; returns exit status 0."""
    parser = cli.make_parser(
        "classify", "Label new texts with a fine-tuned run, by its best epoch.", EXAMPLE
    )
    parser.add_argument(
        "--model", metavar="DIR", required=True, help="the run that gptjax.finetune made"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        required=True,
        help=(
            "a text a line (.txt), or the task's columns (.tsv, .csv, .jsonl); - reads standard "
            "input"
        ),
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="what FILE holds (default: by its name; of - and other names a text a line)",
    )
    parser.add_argument(
        "--as",
        choices=("jsonl", "tsv"),
        default="jsonl",
        dest="form",
        help="what is written (default: jsonl)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=parse.path_argument,
        help="where to (default: standard output)",
    )
    args = parser.parse_args(arguments)

    import rich.console

    from gptjax.report import console
    from gptjax.training.classification import text_classifier

    run = text_classifier.open_run(args.model)
    examples = read_examples(run.task, args.text, args.format)
    out = console.Console(quiet=False, terminal=rich.console.Console(stderr=True, highlight=False))
    lines = label(run, examples, out)
    output = "".join(
        f"{line}\n"
        for line in (to_jsonl(lines) if args.form == "jsonl" else to_tsv(run.task, lines))
    )
    if args.out is not None:
        atomic.save(args.out, output.encode())
    else:
        print(output, end="", flush=True)
    return 0


def read_examples(task: ClassificationTask, text: str, file_format: str | None) -> list[Any]:
    """Reads the examples in a file or, if `text` is -, in standard input. Raises a one-line
    ValueError for input without examples of this task.
    """
    from gptjax.training.classification import examples, rows

    where = "standard input" if text == "-" else str(parse.path(text))
    if text != "-" and parse.path(text).exists() and not parse.path(text).is_file():
        raise ValueError(f"{where} is not a file: give one, or - to read standard input")
    try:
        content = sys.stdin.buffer.read() if text == "-" else parse.path(text).read_bytes()
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror or error}") from None
    suffix = (
        "jsonl"
        if find_files.file_type(Path(text)) == (".jsonl", "")
        else Path(text).suffix.removeprefix(".").lower()
    )
    file_format = file_format or (suffix if suffix in FORMATS else "txt")
    if file_format != "txt":
        new_examples = examples.parse_unlabeled(
            task, rows.parse_rows(content, f".{file_format}", where)
        )
    else:
        if task.kind != "classification":
            columns = ", ".join([*task.fields, *task.answers])
            raise ValueError(
                f"{where} has one text a line, and this task reads {columns}: give a .tsv, .csv or "
                ".jsonl file with these columns"
            )
        new_examples = examples.parse_unlabeled(
            task, rows.text_lines(content, where, task.fields[0])
        )
    if not new_examples:
        raise ValueError(f"{where} holds no text to label")
    return new_examples


def label(
    run: "text_classifier.ClassifierRun", examples: list[Any], out: Any
) -> list[dict[str, Any]]:
    """Returns {"index", "label" (or "score"), "probabilities": {label: p}} for each example."""
    from gptjax.training.classification import text_classifier, transformations

    classifier = text_classifier.Classifier(run, out.warn)
    parts = transformations.tokenize_examples(examples, classifier.tokenizer, lambda line: None)
    encoded = classifier.encode(examples, parts)
    if encoded.n_truncated:
        out.warn(
            f"{encoded.n_truncated:,} of {len(examples):,} texts are longer than "
            f"{classifier.n_ctx} tokens and were truncated"
        )
    y_BC = classifier.predict(encoded.rows, classifier.microbatch_rows)
    return to_results(run.task, examples, y_BC)


def to_results(
    task: ClassificationTask, examples: Sequence[Any], y_BC: Any
) -> list[dict[str, Any]]:
    """Returns what `label` does. y_BC: the outputs of the model, in the order of task.labels."""
    from gptjax.training.classification import metrics, text_classifier

    p_BC = text_classifier.probabilities(y_BC)
    results = []
    for example, answer, p_C in zip(
        examples, metrics.predicted_classes(task.metric, y_BC), p_BC, strict=True
    ):
        answer_fields = (
            {"score": round(float(answer), 6)}
            if task.metric == "pearson"
            else {"label": task.labels[int(answer)]}
        )
        probabilities = {
            label: round(float(p), 6) for label, p in zip(task.labels, p_C, strict=True)
        }
        results.append({"index": example.index, **answer_fields, "probabilities": probabilities})
    return results


def to_jsonl(lines: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Formats the results as lines of JSON."""
    return map(json.dumps, lines)


def to_tsv(task: ClassificationTask, lines: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Formats the results as lines of index, label (or score), and the probability of
    each label.
    """

    def row(cells: Iterable[Any]) -> str:
        return "\t".join(" ".join(unicode.replace_surrogates(str(cell)).split()) for cell in cells)

    answer = "score" if task.metric == "pearson" else "label"
    yield row(["index", answer, *task.labels])
    for line in lines:
        yield row([line["index"], line[answer], *line["probabilities"].values()])


if __name__ == "__main__":
    cli.run(main)
