"""374 SAT analogies from before 2005 (Turney et al. 2003), GPT-3 section 3.9.3: of five pairs of
words, the one that is related like the first pair.

OpenAI did not release its data. "lull is to trust as" is followed by "cajole is to compliance"
(Figure G.12); the separator of examples is not stated [chosen: two newlines]. Guessing scores 20%,
college applicants 57%.
"""

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def format_pair(words: list[str]) -> str:
    """ "A is to B" for two words."""
    return f"{words[0]} is to {words[1]}"


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question: the stem and five choices."""
    completions = tuple(f" {format_pair(choice)}" for choice in row["choices"])
    return [
        Item(
            id=row["id"],
            contexts=(f"{format_pair(row['stem'])} as",),
            completions=completions,
            right=(row["label"],),
        )
    ]


TASKS = (
    Task(
        name="sat_analogies",
        summary="which two words are related as two others are",
        protocol=Protocol(shots=20, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "stem": "[text]: two words",
            "choices": "[[text]]: pairs of words",
            "label": "number: of the right pair, from 0",
        },
        example={
            "id": "0",
            "stem": ["kitten", "cat"],
            "choices": [
                ["puppy", "dog"],
                ["hen", "egg"],
                ["leaf", "tree"],
                ["cow", "milk"],
                ["nest", "bird"],
            ],
            "label": 0,
        },
        splits=("test", "test"),
        data_hint=(
            "374 questions, which Peter Turney gives to researchers who ask "
            "(aclweb.org/aclwiki/SAT_Analogy_Questions)"
        ),
        scorer_source="accuracy; aclweb.org/aclwiki/SAT_Analogy_Questions_(State_of_the_art)",
        paper_scores=gpt3_scores(
            "accuracy",
            "35.6/39.0/45.2/44.1/50.0/49.2/52.7/53.7",
            "30.5/41.2/43.1/46.5/55.1/54.3/53.5/59.1",
            "30.5/40.4/42.8/40.6/48.4/51.9/53.5/65.2",
        ),
    ),
)
