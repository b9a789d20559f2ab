"""Console output: lines, tables, samples, and the live display of training.

Only process 0 prints: other processes make a quiet Console. Apart from this module, only programs
whose result is a table, such as plan, print. On a terminal training shows a progress bar; otherwise
(a pipe, CI) only its lines. Text is never interpreted as rich's markup.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from gptjax.report import formats
from gptjax.runtime import errors

if TYPE_CHECKING:
    import rich.console

NOT_IN_NARROW_LINES = ("tokens", "mfu", "margin")  # the first are left out first
TASK_METRICS = ("accuracy", "f1", "matthews", "pearson")  # in percent
# Seconds after which a measured speed counts half: long enough that an evaluation does not make the
# remaining time jump.
SPEED_HALF_LIFE = 600.0


class Stream:
    """Standard output for rich. A write error (full disk, closed pipe or terminal) does not end the
    program: it is reported once on standard error, and later output is dropped.

    vital: the output is the program's result, so a write error raises OSError. Characters of rich's
    own that cannot be encoded become "?".
    """

    def __init__(self, stream: TextIO | None, vital: bool = False):
        self._stream, self._vital = stream, vital

    @property
    def encoding(self) -> str:
        """Encoding of the underlying stream."""
        return (self._stream and self._stream.encoding) or "utf-8"

    def isatty(self) -> bool:
        """Whether the underlying stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Writes text."""
        self._try(
            lambda stream: stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        )
        return len(text)

    def flush(self) -> None:
        """Flushes the underlying stream."""
        self._try(lambda stream: stream.flush())

    def _try(self, fn: Callable[[TextIO], Any]) -> None:
        if self._stream is None:
            return
        try:
            fn(self._stream)
        except OSError as error:
            if self._vital:
                raise
            errors.mute(self._stream)
            self._stream = None
            with contextlib.suppress(OSError):
                print(
                    f"warning: standard output: {error.strerror}; no more output is shown, the "
                    "work continues",
                    file=sys.stderr,
                    flush=True,
                )


def stdout_console(vital: bool = False) -> "rich.console.Console":
    """Returns a rich console on standard output. vital: see Stream."""
    import rich.console

    class Standard(rich.console.Console):
        def on_broken_pipe(self) -> None:
            raise  # instead of rich's exit with status 1; noqa: PLE0704

    return Standard(
        file=cast(IO[str], Stream(sys.stdout, vital)),
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,  # a notebook gets the lines of a pipe, not a piece of HTML for each,
        # though its kernel sets FORCE_COLOR
        force_terminal=False if "ipykernel" in sys.modules else None,
    )


class Console:
    """Prints to standard output unless `quiet`, or to the rich console `terminal`. vital: see
    Stream.
    """

    def __init__(
        self, quiet: bool, terminal: "rich.console.Console | None" = None, vital: bool = False
    ):
        self._rich = terminal or stdout_console(vital)
        self._rich.quiet = quiet

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 if there is none."""
        return self._rich.width

    def print(self, line: str, style: str = "") -> None:
        """Prints one line of any length. A terminal too narrow for it gets it broken between words,
        unless it holds a command, which must stay whole to be copied.
        """
        self._print(line, "\n", style, soft_wrap=not self._rich.is_terminal or "python -m" in line)

    def warn(self, line: str) -> None:
        """Prints a warning."""
        self.print(f"warning: {line}", "yellow")

    def write(self, text: str) -> None:
        """Writes text that continues where the last part ended."""
        self._print(text, "", "", soft_wrap=True)

    def _print(self, text: str, end: str, style: str, soft_wrap: bool) -> None:
        self._rich.print(
            self._escape(text),
            end=end,
            style=style or None,
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=soft_wrap,
        )

    def print_table(self, title: str, rows: Iterable[tuple[str, Any]]) -> None:
        """Prints names and values in two aligned columns under a title, wrapping long values within
        their column.
        """
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name, value in rows:
            grid.add_row(Text(f"  {self._escape(name)}", "dim"), Text(self._escape(str(value))))
        self.print(title, "bold")
        self._rich.print(grid)

    def print_samples(self, texts: list[str], titles: list[str] | None = None) -> None:
        """Prints generated texts, each in a panel. titles: of the panels (default: the sample's
        number).
        """
        from rich.panel import Panel
        from rich.text import Text

        for i, text in enumerate(texts):
            title = Text(
                f"sample {i + 1} of {len(texts)}" if titles is None else self._escape(titles[i])
            )
            self._rich.print(
                Panel(Text(self._escape(text)), title=title, title_align="left", border_style="dim")
            )

    @contextlib.contextmanager
    def status(self, line: str) -> Iterator[Callable[[str], None]]:
        """Shows `line`, and updates given to the yielded function, during a long operation; only on
        a terminal, and removed at the end.
        """
        if self._rich.quiet or not self._rich.is_terminal:
            yield lambda line: None
            return
        from rich.text import Text

        with self._rich.status(Text(self._escape(line))) as status:
            yield lambda line: status.update(Text(self._escape(line)))

    @contextlib.contextmanager
    def progress_bar(self, label: str) -> Iterator[Callable[[float], None]]:
        """Shows a progress bar with the remaining time; yields a function that takes the fraction
        done.
        """
        from rich import progress

        columns = (
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(
            progress.TextColumn("{task.description}", markup=False), *columns, console=self._rich
        ) as bar:
            task = bar.add_task(self._escape(label), total=1.0)
            yield lambda done: bar.update(task, completed=done)

    @contextlib.contextmanager
    def training_display(
        self, total_steps: int, first_step: int = 0, every_log: int = 1
    ) -> Iterator["TrainingDisplay"]:
        """Shows the live display of steps first_step to total_steps, with a permanent line every
        `every_log` steps and for each evaluation.
        """
        from rich import progress

        bar = progress.Progress(
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.description}", markup=False),
            console=self._rich,
            expand=True,
            transient=True,
            refresh_per_second=4,
            disable=self._rich.quiet or not self._rich.is_terminal,
        )
        with bar:
            yield TrainingDisplay(self, bar, total_steps, first_step, every_log)

    def _escape(self, text: str) -> str:
        """Replaces control characters by their Unicode pictures, so that no text can control the
        terminal, and characters that it cannot encode by escapes, which --set accepts in quotes.
        """
        text = "".join(
            chr(0x2400 + ord(c))
            if c < " " and c not in "\n\t"
            else "\u2421"
            if "\x7f" <= c < "\xa0"
            else c
            for c in text
        )
        return text.encode(self._rich.encoding, "backslashreplace").decode(self._rich.encoding)


class TrainingDisplay:
    """The live display of training; made by Console.training_display."""

    def __init__(self, console: Console, bar, total_steps: int, first_step: int, every_log: int):
        self._console, self._bar, self._every_log = console, bar, every_log
        self._n_steps, self._position = total_steps, float(first_step)
        # When _position was reached; None until the first report, so that compiling does not count.
        self._last_time: float | None = None
        # Steps and seconds, with exponential decay.
        self._recent_steps = self._recent_seconds = 0.0
        self._values = {"state": "compiling"}
        self._task = bar.add_task(self._description(), total=total_steps, completed=first_step)

    def update(self, step: int, values: dict[str, Any]) -> None:
        """Shows the values of step `step` (from 1): tokens, loss, accuracy, margin, lr,
        tokens_per_s, mfu and skipped_in_row; or, of an evaluation, tokens, validation_loss,
        validation_accuracy, perplexity and bits_per_byte. Of a run that learns from a reward: score
        and kl in place of tokens, and validation_score and validation_kl.
        """
        if "validation_loss" in values or "validation_score" in values:
            self._console.print(self._format_validation(step, values), "bold cyan")
            return
        self._update_speed(step)
        self._values = formats.format_values(values)
        self._draw()
        skipped = bool(values.get("skipped_in_row"))
        if skipped or step % self._every_log == 0 or step == self._n_steps:
            ends = ["not finite: update skipped"] * skipped
            ends += [self._time_left()] * bool(self._bar.disable and self._time_left())
            words = formats.format_values(values, aligned=True)
            for name in NOT_IN_NARROW_LINES:
                line = "  ".join([self._format_step(step), *words.values(), *ends])
                if self._bar.disable or len(line) <= self._console.width:
                    break
                words.pop(name, None)
            line = "  ".join([self._format_step(step), *words.values(), *ends])
            self._console.print(line, "yellow" if skipped else "")

    def update_fraction(self, step: int, done: float, tokens_per_s: float | None = None) -> None:
        """Shows that a fraction of step `step` is done, for steps that take minutes; only on a
        terminal.
        """
        self._update_speed(step - 1 + done)
        self._values.pop("state", None)
        if tokens_per_s is not None:
            self._values |= formats.format_values({"tokens_per_s": tokens_per_s})
        self._draw()

    def _update_speed(self, position: float) -> None:
        now = time.perf_counter()
        if self._last_time is not None and position > self._position:
            seconds = now - self._last_time
            decay = 0.5 ** (seconds / SPEED_HALF_LIFE)
            self._recent_seconds = decay * self._recent_seconds + seconds
            self._recent_steps = decay * self._recent_steps + position - self._position
        self._last_time, self._position = now, position

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self._position, description=self._description())

    def _description(self) -> str:
        words = [
            f"{math.ceil(self._position):,}/{self._n_steps:,}",
            *self._values.values(),
            self._time_left(),
        ]
        return "  ".join(word for word in words if word)

    def _time_left(self) -> str:
        if not self._recent_steps or self._position >= self._n_steps:
            return ""
        seconds = (self._n_steps - self._position) * self._recent_seconds / self._recent_steps
        return f"{human_duration(seconds)} left"

    def _format_step(self, step: int) -> str:
        return f"step {step:>{len(f'{self._n_steps:,}')},}"

    def _format_validation(self, step: int, values: dict[str, Any]) -> str:
        """The line of an evaluation; without tokens where it would not fit on the terminal."""
        is_scored = "validation_score" in values  # whose tokens say little
        tokens = {k: v for k, v in values.items() if k == "tokens" and not is_scored}
        start = self._format_step(step)
        words = formats.format_validation(values)
        line = "  ".join([start, *formats.format_values(tokens, aligned=True).values(), *words])
        fits = self._bar.disable or len(line) <= self._console.width
        return line if fits else "  ".join([start, *words])


def human_duration(seconds: float) -> str:
    """Formats a duration in suitable units: "12 s", "3 min 20 s", "5.1 h", "12 days",
    "3.2 years".
    """
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    hours = rounded / 3600
    if hours < 48:
        return f"{hours:.1f} h"
    if hours < 2 * 365.25 * 24:
        return f"{hours / 24:.0f} days"
    years = hours / 24 / 365.25
    return f"{years:.1f} years" if years < 100 else f"{years:,.0f} years"
