"""ReCoRD (Zhang et al. 2018): which name from an article fills the gap in a sentence?

GPT-3 Figure G.6: the article, its highlights as a list, and the sentence as the next list entry,
once for each name; any of the correct names counts. The 10,000 problems of the development set. Not
stated [chosen]: examples are joined by two newlines.
"""

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt3_scores

GAP = "@placeholder"


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a query: the sentence with each name."""
    article, *highlights = (part.strip() for part in row["passage"].split("@highlight"))
    context = f"{article}\n\n" + "\n".join(f"- {text}" for text in highlights)
    names = list(dict.fromkeys(row["entities"]))
    completions = tuple(f"\n- {row['query'].strip().replace(GAP, name)}" for name in names)
    right = tuple(number for number, name in enumerate(names) if name in row["answers"])
    return [
        Item(
            id=row["id"],
            contexts=(context.rstrip(),),
            completions=completions,
            right=right,
            facts={"names": names},
        )
    ]


def score(metric: str, prediction: str, item: Item) -> float:
    """Best word F1 of the chosen name with a correct one; the official evaluate.py."""
    choice = [completion.strip() for completion in item.completions].index(prediction)
    return max(
        (
            scorers.word_f1(item.facts["names"][choice], item.facts["names"][right])
            for right in item.right
        ),
        default=0.0,
    )


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    index = row["idx"]
    columns = {name: row[name] for name in ("passage", "query", "entities", "answers")}
    return {"id": f"{index['passage']}-{index['query']}"} | columns


TASKS = (
    Task(
        name="record",
        summary="which name of an article fills a gap (the test server: 90.2)",
        protocol=Protocol(shots=32, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "passage": "text: an article, and after each @highlight one of its highlights",
            "query": f"text: a sentence with {GAP} for the gap",
            "entities": "[text]: the names",
            "answers": "[text]: those that are right; empty if not known",
        },
        example={
            "id": "0",
            "passage": "Mayor Ines Falk opened the bridge over the Lund on "
            "Friday. The old one fell in "
            "2009, when Per Dahl was mayor."
            "\n@highlight\nThe bridge cost nine million\n@highlight\nThe old one was built in 1911",
            "query": "Under @placeholder the town was without a bridge for a year.",
            "entities": ["Ines Falk", "Lund", "Per Dahl"],
            "answers": ["Per Dahl"],
        },
        tfds="super_glue/record",
        from_tfds=from_tfds,
        data_hint=(
            "val.jsonl and train.jsonl of ReCoRD, super.gluebenchmark.com/tasks, a line a query, "
            "with the texts of the entities"
        ),
        score=score,
        scorer_source=(
            "exact match with any of the right names; sheng-z.github.io/ReCoRD-explorer, "
            "evaluate.py"
        ),
        paper_scores=gpt3_scores(  # of lower confidence (task.gpt3_scores)
            "accuracy",
            "70.8/78.5/82.1/84.1/86.2/88.6/89.0/90.2",
            "69.8/77.0/80.7/83.0/85.9/88.0/88.8/90.2",
            "69.8/77.2/81.3/83.1/86.6/87.9/88.9/89.0",
        )
        + gpt3_scores("f1", few="91.1"),  # the test server's
    ),
)
