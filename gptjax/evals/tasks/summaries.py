"""Summaries of CNN and Daily Mail articles with the hint `TL;DR:`. GPT-2 section 3.6, Table 4.

100 tokens, each sampled among the two most likely; their first three sentences are the summary.
prompt_variant=no_hint gives the article alone. Not stated [chosen]: a newline before the hint;
sentence splitting (rouge_bleu.split_sentences); an article that exceeds the context loses its end,
since news states the essentials first (OpenAI's later summaries, in lm-human-preferences, truncate
there too).
"""

from gptjax.config.evaluation import Protocol, TopK
from gptjax.evals import rouge_bleu
from gptjax.evals.task import Item, Row, Task, gpt2_scores, prompt_variant

PROTOCOL = Protocol(shots=0, method=TopK(n_tokens=100, k=2), metric="rouge")


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of an article, followed by the hint."""
    hint = {"tldr": "\nTL;DR:", "no_hint": "\n"}[prompt_variant(protocol, "tldr", "no_hint")]
    summary = row["highlights"]
    one_line = " ".join(summary.split())
    facts = {"sentences": 3, "hint": hint}
    return [
        Item(
            id=row["id"],
            contexts=(row["article"] + hint,),
            completions=(f" {one_line}",),
            answers=(summary,),
            facts=facts,
        )
    ]


TASKS = (
    Task(
        name="cnn_dailymail",
        summary="summaries of news by TL;DR:, ROUGE",
        protocol=PROTOCOL,
        items=items,
        schema={"article": "text", "highlights": "text: the summary, a sentence a line"},
        example={
            "id": "0",
            "article": (
                "The bridge at Old Ferry was closed on Monday. Engineers found a crack in a pier. "
                "Buses will go by the north road."
            ),
            "highlights": "Bridge at Old Ferry is closed .\nA pier has a crack .",
        },
        splits=("test", "train"),
        tfds="cnn_dailymail",
        data_hint=(
            "the non-anonymised test set of github.com/abisee/cnn-dailymail (Hugging Face "
            "datasets: abisee/cnn_dailymail 3.0.0)"
        ),
        score=rouge_bleu.rouge,
        scorer_source="ROUGE-1.5.5 -m, by google-research rouge-score",
        paper_scores=(
            *gpt2_scores("rouge_1", 29.34),
            *gpt2_scores("rouge_2", 8.27),
            *gpt2_scores("rouge_l", 26.58),
            *gpt2_scores("rouge", 21.40),
        ),
        conventions={
            "no_hint": Protocol(
                shots=0, method=TopK(n_tokens=100, k=2), metric="rouge", prompt_variant="no_hint"
            )
        },  # 15.03
    ),
)
