"""The papers' scores of each task: `python -m tests.golden.published > tests/golden/published.txt` writes them anew. A test compares."""

from collections.abc import Iterator

from gptjax.evals import registry


def lines() -> Iterator[str]:
    """Smallest model first; fewer scores than models are of the largest."""
    for task in registry.every().values():
        for one in task.published:
            yield f"{task.name} {one.paper} {one.metric} {one.shots} {'/'.join(f'{score:g}' for score in one.scores.values())}"


if __name__ == "__main__":
    print("\n".join(lines()))
