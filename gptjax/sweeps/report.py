"""Writes the report of a sweep from the files of its runs, finished or not."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptjax.runtime import errors
from gptjax.sweeps import (
    comparison,
    lr_and_batch,
    report_page,
    run_status,
    scaling_report,
    waterfall,
)
from gptjax.sweeps.points import arms

PICTURES = ((report_page.plot_bars, "arms.png"), (report_page.plot_curves, "curves.png"))
SECTIONS = (
    (lr_and_batch.lr_section, "rates.png"),
    (lr_and_batch.batch_section, "batches.png"),
    (scaling_report.scaling_section, "scaling.png"),
)


def write(
    directory: Path, warn: Callable[[str], None], decode_rounds: int = 0
) -> tuple[str, list[str]]:
    """Writes report.md, report.html and their pictures into the directory of a sweep; returns (the
    text of report.md, the names of the files). ValueError if no sweep is there. decode_rounds: of
    the measured speed of decoding after each step of a sweep that has steps; 0: not measured.

    A section is left out if the points do not vary what it is about. A picture or section that
    raises an error is left out with a warning, since the table has the same numbers."""
    name, sweep, points = run_status.load(directory)
    results = comparison.compare_arms(arms(points), directory)
    failures = [f"Refused: {point.name}: {point.error}" for point in points if point.config is None]
    failures += [
        f"{run.state.capitalize()}: {run.point.name}: {run.reason}"
        for result in results
        for run in result.runs
        if run.reason
    ]

    def draw(
        parts: Sequence[tuple[Callable[..., Any], str]], drawn_arms: Sequence[comparison.ArmResult]
    ) -> list[Any]:
        drawn = []
        for draw_part, file_name in parts:
            try:
                drawn.append(draw_part(drawn_arms, directory / file_name))
            except Exception as error:
                warn(f"warning: no {file_name}: {type(error).__name__}: {errors.first_line(error)}")
        return [part for part in drawn if part is not None]

    if sweep.steps:
        steps = waterfall.name_arms(results, sweep.steps)
        results = [arm for step in steps for arm in step]
        pictures = draw(PICTURES, [waterfall.choose_arm(step)[0] for step in steps])
        section = functools.partial(
            waterfall.waterfall_section, names=sweep.steps, decode_rounds=decode_rounds
        )
        sections = draw([(section, "waterfall.png")], results)
    else:
        pictures, sections = draw(PICTURES, results), draw(SECTIONS, results)
    text = report_page.render_markdown(name, sweep.description, results, failures, sections)
    (directory / "report.md").write_text(text, encoding="utf-8")
    (directory / "report.html").write_text(
        report_page.render_html(name, sweep.description, results, failures, pictures, sections),
        encoding="utf-8",
    )
    drawn = [*pictures, *(section.picture for section in sections)]
    return text, ["report.html", "report.md", *(picture.name for picture in drawn)]
