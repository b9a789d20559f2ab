"""The papers' scores of each task: `python -m tests.golden.published >
tests/golden/published.txt` writes them anew. A test compares."""

from collections.abc import Iterator

from gptjax.evals import registry


def lines() -> Iterator[str]:
    """Smallest model first; fewer scores than models are of the largest."""
    for task in registry.all_tasks().values():
        for paper in task.paper_scores:
            yield (
                f"{task.name} {paper.paper} {paper.metric} {paper.shots} "
                f"{'/'.join(f'{score:g}' for score in paper.scores.values())}"
            )


if __name__ == "__main__":
    print("\n".join(lines()))
