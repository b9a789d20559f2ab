"""What each task asks, as text: `python -m tests.golden.prompts > tests/golden/prompts.txt`
writes it anew. A test compares."""

from collections.abc import Iterator

from gptjax.config.evaluation import Protocol
from gptjax.evals import registry
from gptjax.evals.task import Item, Task


def lines() -> Iterator[str]:
    for task in registry.all_tasks().values():
        yield f"{task.name}: {task.summary}"
        yield from protocol_lines("", task, task.protocol, sorted({0, task.protocol.shots}))
        for name, protocol in task.conventions.items():
            yield from protocol_lines(f"{name}: ", task, protocol, [protocol.shots])
        yield ""


def protocol_lines(name: str, task: Task, protocol: Protocol, shots: list[int]) -> Iterator[str]:
    """A protocol, and the example's items as they are put; once where the number of
    demonstrations changes nothing."""
    words = (
        f", description {protocol.description!a} from {protocol.description_min_shots} shots on"
        if protocol.description
        else ""
    )
    yield (
        f"  {name}{protocol.method}, {protocol.metric}, {protocol.shots} shots, separator "
        f"{protocol.separator!a}{words}"
    )
    items_by_shots = {k: list(task.items(task.example, protocol, k)) for k in shots}
    is_same = all(items == items_by_shots[shots[0]] for items in items_by_shots.values())
    for k in shots[:1] if is_same else shots:
        for item in items_by_shots[k]:
            yield from item_lines("" if is_same else f"{k} shots", item)


def item_lines(title: str, item: Item) -> Iterator[str]:
    """Each context with the completions that follow it; a star beside those that are right."""
    for context in item.contexts:
        yield f"    {title:10}{context!a}"
    for number, completion in enumerate(item.completions):
        yield f"    {'':8}{'*' if number in item.right else ' '} -> {completion!a}"
    if item.answers and item.answers != (item.completions[0].strip(),):
        yield f"    {'':10}right: {' | '.join(ascii(answer) for answer in item.answers)}"
    if item.demonstration:
        yield f"    {'':10}shown: {item.demonstration!a}"
    if item.units:
        yield f"    {'':10}units: {item.units}"


if __name__ == "__main__":
    print("\n".join(lines()))
