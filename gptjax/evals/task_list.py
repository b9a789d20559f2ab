"""The list of all tasks, as `evaluate --list` prints it: K, method and metric of each in its paper,
and the source of its data."""

import textwrap
from typing import Any

from gptjax.evals import registry
from gptjax.report import console


def print_tasks(out: console.Console) -> None:
    """Prints all tasks by family, then the groups that are no family."""
    all_tasks = [task for members in registry.families().values() for task in members]
    name = max(len(task.name) for task in all_tasks)
    form = f"  {{:<{name}}}  {{:>3}}  {{:<13}}  {{:<18}}  {{}}"
    indent = len(form.format("", "", "", "", ""))
    data_width = out.width - indent

    def print_row(data: str, *cells: Any, style: str = "") -> None:
        """A line; what has no room after the other columns stands in lines below them."""
        lines = (
            textwrap.wrap(data, data_width)
            if data_width >= 20
            else ["", *textwrap.wrap(data, out.width - 6)]
        )
        out.print(form.format(*cells, lines[0]).rstrip(), style)
        for line in lines[1:]:
            out.print(" " * (indent if data_width >= 20 else 6) + line, style)

    print_row("data", "task", "K", "method", "metric", style="bold")
    for family, members in registry.families().items():
        out.print(family, "bold")
        for task in members:
            protocol = task.protocol
            also = f"; conventions: {', '.join(task.conventions)}" if task.conventions else ""
            source = "made from the seed" if task.make_rows else task.tfds or "a .jsonl file"
            print_row(
                source + also,
                task.name,
                protocol.shots,
                type(protocol.method).__name__,
                protocol.metric,
            )
    extra_groups = {
        name: len(members)
        for name, members in registry.groups().items()
        if members != registry.families().get(name)
    }
    out.print(
        f"groups: each heading; {', '.join(f'{name} ({n})' for name, n in extra_groups.items())}"
    )
