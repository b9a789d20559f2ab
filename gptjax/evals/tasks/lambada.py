"""LAMBADA (Paperno et al. 2016): the last word of a passage, which people can guess only from the
whole passage.

GPT-3 section 3.1.2: zero-shot the plain text; few-shot a blank and an arrow, under a heading.
prompt_variant=plain and prompt_variant=blank force one of them; the default, paper, depends on the
number of demonstrations. The heading appears once, before the demonstrations, like headings in
Appendix G's other examples [chosen]. Demonstrations are from the development set.

GPT-2's Table 3 says the last word, with an unpublished stop word filter; its accuracies are those
of the last token alone, as others found with the released weights (EleutherAI/lm-evaluation-harness
issues 350 and 356). So the convention "gpt2" has two units: accuracy is of the word's last token,
given the ones before it; perplexity is of whole words, as in lm-evaluation-harness, while the unit
of the table's 35.13 is unknown. Its text, prompt_variant=gpt2, is the preprocessing posted in
openai/gpt-2 issue 131, as replications have it: straight quotation marks, a newline at the start.
"""

import functools

from gptjax.config.evaluation import LastToken, LastWord, Protocol
from gptjax.evals.task import Item, Row, Task, gpt2_scores, gpt3_scores, prompt_variant

QUOTE_MARKS = ("\u201c", "\u201d", "''", "``")  # made straight by issue 131's preprocessing


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a passage: its last word after the rest."""
    variant = prompt_variant(protocol, "paper", "plain", "blank", "gpt2")
    text = row["text"].strip()
    if variant == "gpt2":
        text = functools.reduce(lambda text, mark: text.replace(mark, '"'), QUOTE_MARKS, text)
    if len(text.split()) < 2:
        raise ValueError(f"lambada, row {row['id']}: a passage has two words or more")
    before, last = text.rsplit(maxsplit=1)
    if variant in ("plain", "gpt2") or (variant == "paper" and shots == 0):
        start = "\n" if variant == "gpt2" else ""
        return [Item(id=row["id"], contexts=(start + before,), completions=(text[len(before) :],))]
    return [
        Item(
            id=row["id"],
            contexts=(f"{text[: len(text) - len(last)]}____. ->",),
            completions=(f" {last}",),
        )
    ]


TASKS = (
    Task(
        name="lambada",
        summary="the last word of a passage",
        protocol=Protocol(
            shots=15,
            method=LastWord(),
            metric="accuracy",
            description="Fill in blank:",
            description_min_shots=1,
        ),
        items=items,
        schema={"text": "text: a passage, its last word included"},
        example={
            "id": "0",
            "text": (
                '"We need a lamp," said Ida. The cellar was dark, and its stairs steep. Her '
                "brother went up and came back with a lamp"
            ),
        },
        splits=("test", "train"),
        tfds="lambada",
        from_tfds=lambda row: {"text": row["passage"].strip()},
        data_hint="OpenAI's "
        "openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl is what the "
        "papers read, its natural text; "
        "TFDS has the lower-cased one, its train split being the development set",
        paper_scores=(
            *gpt2_scores("accuracy", 45.99, 55.48, 60.12, 63.24),
            *gpt2_scores("perplexity", 35.13, 15.60, 10.87, 8.63),
            *gpt3_scores(
                "accuracy",
                "42.7/54.3/60.4/63.6/67.1/70.3/72.5/76.2",
                "22.0/47.1/52.6/58.3/61.1/65.4/69.0/72.5",
                "22.0/40.4/63.2/57.0/78.1/79.1/81.3/86.4",
            ),
            *gpt3_scores(
                "perplexity",
                "18.6/9.09/6.53/5.44/4.60/4.00/3.56/3.00",
                "165/11.6/8.29/6.46/5.53/4.61/4.06/3.35",
                "165/27.6/6.63/7.45/2.89/2.56/2.56/1.92",
            ),
        ),
        conventions={
            "gpt2": Protocol(shots=0, method=LastToken(), metric="accuracy", prompt_variant="gpt2"),
            "stop_words": Protocol(
                shots=0, method=LastWord(stop_words=True), metric="accuracy", prompt_variant="plain"
            ),
            "plain": Protocol(
                shots=15, method=LastWord(), metric="accuracy", prompt_variant="plain"
            ),  # GPT-3 Appendix C: 77.8 few-shot
        },
    ),
)
