"""Train a reward model on ranked completions, and score texts: `python -m gptjax.reward
--config=reward --init=RUN --set task.train=FILE`. InstructGPT (2203.02155) section 3.5."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax import cli, finetune, sft
from gptjax.config import find_files, parse
from gptjax.configs import registry
from gptjax.data import conversations, preferences
from gptjax.runtime import atomic

EXAMPLE = """python -m gptjax.reward --config=reward --init=runs/assistant --set task.train=r.jsonl
  python -m gptjax.reward --model=runs/reward --score=answers.jsonl --out=scores.jsonl"""


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = cli.make_config_parser(
        "reward",
        "Train a reward model, or score texts with one. The same command continues an interrupted "
        "run.",
        EXAMPLE,
    )
    finetune.add_run_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="score with the reward model of this run")
    parser.add_argument(
        "--score",
        metavar="FILE",
        help="the texts: conversations, prompt and completion, or rankings (.jsonl or .parquet)",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=parse.path_argument, help="where the scores go (.jsonl)"
    )
    args = parser.parse_args(arguments)
    if (args.model, args.score, args.out) == (None, None, None):
        from gptjax.training import reward, reward_rows

        return sft.run(
            args,
            registry.REWARD,
            reward_rows.RewardRows,
            reward.RewardObjective,
            sft.warn_of_base_model,
        )
    if None in (args.model, args.score, args.out) or args.config is not None:
        raise ValueError(
            "give --model, --score and --out to score texts, or --config and --init to train"
        )
    return score_file(args.model, args.score, args.out, args.assignments)


def score_file(model: str, path: str, out_path: Any, assignments: Sequence[str]) -> int:
    """Writes each row of the files that `path` names with `score`, a number or, for several answers
    to a prompt, one for each; of an answer that cannot be scored null. The order is kept."""
    from gptjax.report import console
    from gptjax.weights import reward_model

    out = console.Console(quiet=False)
    if find_files.file_type(out_path) != (".jsonl", ""):
        raise ValueError(f"--out={parse.one_line(str(out_path), 300)}: give a .jsonl file")
    reward = reward_model.load(model, assignments=assignments, log=out.print)
    rows, texts, notes = [], [], conversations.Notes()
    for where, row in conversations.read_rows(path):
        answers = list(_encode_answers(reward, where, row, notes))
        rows.append((row, answers))
        texts += [ids for ids in answers if ids is not None]
    if not rows:
        raise ValueError(f"{path} has nothing to score")
    notes.print(path, "answer", out.print)
    with out.status("scoring") as progress:
        scores = iter(
            reward.score(texts, lambda n: progress(f"scored {n:,} of {len(texts):,} answers"))
        )
    lines = []
    for row, answers in rows:
        values = [None if ids is None else float(next(scores)) for ids in answers]
        score = values if _has_several(row) else values[0]
        lines.append(_as_json(row | {"score": score}) + "\n")
    atomic.save(out_path, "".join(lines).encode())
    out.print(f"{len(texts):,} answers scored by {reward.description()}: {out_path}")
    return 0


def _as_json(row: dict[str, Any]) -> str:
    """A row as JSON: dates and the like as text; with escapes where it has half of a surrogate
    pair, which UTF-8 cannot hold."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=str)
    return text


def _has_several(row: dict[str, Any]) -> bool:
    """Whether a row has several answers to a prompt."""
    return "completions" in row or "rejected" in row


def _encode_answers(
    reward: Any, where: str, row: dict[str, Any], notes: conversations.Notes
) -> Iterator[list[int] | None]:
    """Yields the ids of each answer of a row; None, and a note, for one that cannot be scored."""
    if "score" in row:
        raise ValueError(f"{where} has a column 'score' already: rename it")
    if _has_several(row):
        ranking = preferences.rank(where, row, preferences.recognize(where, row))
        answers = zip(ranking.answers, ranking.ended, strict=True)
    else:
        form = conversations.recognize(where, row)
        answers = [(conversations.parse_row(where, row, form), False)]
    for messages, ended in answers:
        try:
            yield reward.encode_answer(messages, ended)
        except ValueError as error:  # of the answer, or of the template
            notes.add(f"not scored: {parse.one_line(str(error), 200)}", where)
            yield None


if __name__ == "__main__":
    cli.run(main)
