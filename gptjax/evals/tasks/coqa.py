"""CoQA (Reddy et al. 2019): a story and a sequence of questions about it. GPT-3 section 3.5, GPT-2
section 3.5.

The story, then the earlier questions with their answers, then the next question and `A:`. Correct
answers are those of several people. The blank lines are from GPT-3's figure in Appendix G;
prompt_variant=gpt2 puts a question and its answer on consecutive lines, as in its Table 16, and
decodes greedily.
"""

from gptjax.config.evaluation import Beam, Greedy, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt2_scores, gpt3_scores, prompt_variant


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """An item per question of a story, after the earlier ones."""
    gap = {"gpt3": "\n\n", "gpt2": "\n"}[prompt_variant(protocol, "gpt3", "gpt2")]
    if not len(row["questions"]) == len(row["answers"]) or not all(row["answers"]):
        raise ValueError(
            f"coqa, row {row['id']}: {len(row['questions'])} questions, {len(row['answers'])} "
            "lists of answers; give one each"
        )
    context, result = row["story"], []
    for turn, (question, right) in enumerate(zip(row["questions"], row["answers"], strict=True)):
        context += f"\n\nQ: {question}{gap}A:"
        result.append(
            Item(
                id=f"{row['id']}-{turn}",
                contexts=(context,),
                completions=(f" {right[0]}",),
                answers=tuple(right),
            )
        )
        context += f" {right[0]}"
    return result


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    return {
        "story": row["story"],
        "questions": row["questions"],
        "answers": [[answer] for answer in row["answers"]["input_text"]],
    }


TASKS = (
    Task(
        name="coqa",
        summary="a conversation about a story",
        protocol=Protocol(shots=5, method=Beam(n_tokens=48), metric="f1"),
        items=items,
        schema={
            "story": "text",
            "questions": "[text]",
            "answers": "[[text]]: of each question, every person's; the first is shown",
        },
        example={
            "id": "0",
            "story": "Ida has a boat. She rows to the island each Sunday with her dog Rex.",
            "questions": ["What does Ida have?", "Where does she go?", "With whom?"],
            "answers": [
                ["a boat", "a boat", "boat"],
                ["to the island", "the island"],
                ["her dog", "Rex", "her dog Rex"],
            ],
        },
        splits=("test", "train"),
        tfds="coqa",
        from_tfds=from_tfds,
        data_hint="coqa-dev-v1.0.json of stanfordnlp.github.io/coqa, its "
        "answers and additional_answers: "
        "the paper's score needs the "
        "latter, which TFDS lacks",
        score=scorers.coqa,
        scorer_source="stanfordnlp.github.io/coqa evaluate-v1.0.py",
        paper_scores=(
            *gpt2_scores("f1", 55),
            *gpt3_scores(
                "f1",
                "34.5/55.0/61.8/65.3/71.1/72.8/76.3/81.5",
                "30.6/52.1/61.6/66.1/71.8/75.1/77.9/84.0",
                "31.1/52.0/62.7/66.8/73.2/77.3/79.9/85.0",
            ),
        ),
        conventions={
            "gpt2": Protocol(
                shots=0, method=Greedy(n_tokens=48), metric="f1", prompt_variant="gpt2"
            )
        },
    ),
)
