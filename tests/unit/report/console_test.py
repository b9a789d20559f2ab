"""The console says what it was told, aligned and unharmed by markup; the bar is for terminals,
and its time left is about right."""

import io
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import rich.console
import rich.live
import rich.text

from gptjax.report import console, formats

STEP = {
    "tokens": 4_096_000,
    "loss": 3.41234,
    "lr": 2.9e-4,
    "tokens_per_s": 1843.2,
    "skipped_in_row": 0,
    "grad_norm": 1.0,
}
VALID = {
    "tokens": 4_096_000,
    "validation_loss": 3.50111,
    "perplexity": 33.15,
    "bits_per_byte": 1.20349,
}


class Screen:
    """A console on a string: a terminal `width` wide, or a pipe."""

    def __init__(self, width=80, terminal=False, quiet=False, encoding="utf-8"):
        self.file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        self.console = console.Console(
            quiet,
            rich.console.Console(
                file=self.file, width=width, force_terminal=terminal, color_system=None
            ),
        )

    def text(self):
        self.file.flush()
        return self.file.buffer.getvalue().decode()

    def lines(self):
        """What was shown line by line, the bar's redrawings included, without the terminal's
        control sequences."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


# --- lines, tables, samples -----------------------------------------------------------------------


def test_a_line_is_printed_whole_and_never_as_markup():
    screen = Screen(width=20)
    screen.console.print("[bold]x[/bold] [/] " + "word " * 10 + "end")
    screen.console.warn("mind [this]")
    assert screen.text() == "[bold]x[/bold] [/] " + "word " * 10 + "end\nwarning: mind [this]\n"


def test_parts_of_a_text_go_on_where_the_last_ended():
    screen = Screen(width=20)
    parts = ["[b]def f():", "\n", "    return", " 1\n\n", "", " ", "\x1b[2J" + "word " * 10, "end"]
    for part in parts:
        screen.console.write(part)
    assert screen.text() == "".join(parts).replace("\x1b", "\u241b")


def test_status_is_shown_only_on_a_terminal_and_then_removed():
    pipe, screen = Screen(), Screen(terminal=True)
    for shown in (pipe, screen):
        with shown.console.status("thinking") as show:
            show("still thinking")
    assert pipe.text() == "" and "still thinking" in screen.text()


ODD = [
    "[/b]",
    "[red]x",
    "[bold",
    "]",
    "[[]]",
    ":warning:",
    "\x1b[31m",
    "\udce9",
    "$x^{$",
    "a\\[b]",
    "[link=file:///x]y[/link]",
]


def spoken(screen, text):
    """The text, as everything that is shown: lines, tables, titles, samples, statuses, bars."""
    out = screen.console
    out.print(text)
    out.warn(text)
    out.write(text + "\n")
    out.print_table(text, [(text, text), (text, Path(text))])
    out.print_samples([text], [text])
    with out.status(text) as show:
        show(text)
    with out.progress_bar(text) as advance:
        advance(0.5)
    with out.training_display(3) as progress:
        progress.update(1, STEP)
        out.print(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", ODD)
def test_no_text_is_markup_anywhere(text, terminal):
    screen = Screen(terminal=terminal, width=100)
    spoken(screen, text)
    shown = text.replace("\x1b", "\u241b").replace("\udce9", "\\udce9")
    assert screen.text().count(shown) >= (11 if terminal else 9), screen.text()
    assert "\u26a0" not in screen.text() and "[31m" not in screen.text().replace(shown, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_characters_cuts_nothing(encoding, monkeypatch):
    """Even rich's own: an ellipsis where a long name is cut, bars, spinners, boxes."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = console.stdout_console()
    spoken(
        types.SimpleNamespace(console=console.Console(False, out)), "caf\u00e9 \u4f60 " + "x" * 200
    )
    with rich.live.Live(rich.text.Text("y" * 200, overflow="ellipsis", no_wrap=True), console=out):
        pass
    file.flush()
    said = file.buffer.getvalue().decode(encoding)
    assert "\\u4f60" in said and "y?" in said


class Failing(io.StringIO):
    """A standard output that cannot be written: a full disk, a reader or a terminal that is
    gone."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        BrokenPipeError(32, "Broken pipe"),
        OSError(5, "I/O error"),
    ],
)
def test_a_write_error_does_not_end_the_program(error, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    spoken(types.SimpleNamespace(console=console.Console(quiet=False)), "x")
    assert (
        capfd.readouterr().err
        == f"warning: standard output: {error.strerror}; no more output is shown, the work "
        "continues\n"
    )
    with pytest.raises(OSError) as caught:
        console.Console(quiet=False, vital=True).print("x")
    assert caught.value is error


def test_no_standard_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    spoken(types.SimpleNamespace(console=console.Console(quiet=False)), "x")


def test_a_quiet_console_says_nothing():
    screen = Screen(terminal=True, quiet=True)
    screen.console.print("x")
    screen.console.warn("x")
    screen.console.print_table("x", [("a", 1)])
    screen.console.print_samples(["x"])
    with screen.console.training_display(10) as progress:
        progress.update_fraction(1, 0.5)
        progress.update(1, STEP)
        progress.update(1, VALID)
    assert screen.text() == ""


def test_a_table_aligns_its_facts_and_wraps_the_long_ones():
    screen = Screen(width=40)
    screen.console.print_table(
        "nano",
        [("parameters", "1,234"), ("corpus", "one two three four five six seven [x]"), ("seed", 0)],
    )
    assert screen.lines() == [
        "nano",
        "  parameters  1,234",
        "  corpus      one two three four five",
        "              six seven [x]",
        "  seed        0",
    ]


def test_samples_keep_their_text_and_cannot_control_the_terminal():
    screen = Screen(width=60, terminal=True)
    screen.console.print_samples(["def f():\n    return [bold]1[/bold]\x1b[2J\x07\x9b", "two"])
    text = screen.text()
    assert "\x1b[2J" not in text and "\x07" not in text and "\x9b" not in text
    lines = screen.lines()
    assert "sample 1 of 2" in lines[0] and "sample 2 of 2" in lines[4]
    assert "    return [bold]1[/bold]\u241b[2J\u2407\u2421" in lines[2]


def test_a_terminal_breaks_lines_between_words_but_no_command():
    text, command = "warning: the words of this line", "then: python -m gptjax.sample --model=x"
    for terminal in (True, False):
        screen = Screen(width=20, terminal=terminal)
        screen.console.print(text)
        screen.console.print(command)
        words = ["warning: the words", "of this line"] if terminal else [text]
        assert screen.lines() == [*words, command]


def test_an_evaluation_takes_one_line_of_a_terminal(clock):
    line = "step 1,000  validation loss 3.5011  perplexity 33.15  bits per byte 1.2035"
    for width, shown in ((80, line), (100, line.replace("  val", "  tokens  4.1M  val"))):
        screen = Screen(width=width, terminal=True)
        with screen.console.training_display(1000) as progress:
            progress.update(1000, VALID)
        assert shown in screen.lines()


def test_what_the_terminal_cannot_encode_is_an_escape():
    screen = Screen(encoding="ascii", width=40)
    screen.console.print("caf\u00e9")
    screen.console.print_samples(["\u4f60\u597d"])
    assert (
        screen.lines()[0] == "caf\\xe9"
        and "| \\u4f60\\u597d" in screen.text()
        and screen.text().isascii()
    )


# --- training -------------------------------------------------------------------------------------


def test_a_pipe_gets_one_aligned_line_a_log_and_each_evaluation(clock):
    screen = Screen(width=40)
    with screen.console.training_display(1000, first_step=1, every_log=2) as progress:
        for step in (2, 3, 4, 1000):
            clock[0] += 5
            progress.update_fraction(step, 0.5, 5.0)
            clock[0] += 5
            progress.update(step, STEP | {"loss": 10.5 if step == 2 else 3.41234})
        progress.update(1000, VALID)
    assert screen.text().splitlines() == [
        "step     2  tokens  4.1M  loss 10.5000  lr 2.90e-04    1,843 tok/s  2.8 h left",
        "step     4  tokens  4.1M  loss  3.4123  lr 2.90e-04    1,843 tok/s  2.8 h left",
        "step 1,000  tokens  4.1M  loss  3.4123  lr 2.90e-04    1,843 tok/s",
        "step 1,000  tokens  4.1M  validation loss 3.5011  perplexity 33.15  bits per byte 1.2035",
    ]


def test_mfu_is_shown_where_it_is_known_and_a_skipped_update_always(clock):
    screen = Screen()
    with screen.console.training_display(100, every_log=50) as progress:
        progress.update(7, STEP | {"loss": math.nan, "skipped_in_row": 1})
        progress.update(50, STEP | {"mfu": 0.4567})
        progress.update(60, STEP | {"mfu": None})
    lines = screen.lines()
    assert len(lines) == 2
    assert (
        lines[0].endswith("not finite: update skipped")
        and "loss     nan" in lines[0]
        and "MFU" not in lines[0]
    )
    assert "MFU 45.7%" in lines[1]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_a_bar_of_one_line_above_which_the_lines_stay(clock, width):
    screen = Screen(width=width, terminal=True)
    with screen.console.training_display(95_367, first_step=40_000, every_log=1) as progress:
        progress._bar.refresh()
        for step in (40_001, 40_002):
            clock[0] += 1e6
            progress.update(step, STEP | {"mfu": 0.38, "tokens": 123.4e9, "tokens_per_s": 0.24})
            progress._bar.refresh()
    bars = [line for line in screen.lines() if "/95,367" in line]
    assert any(line.endswith("40,000/95,367  compiling") for line in bars)
    assert any(
        line.endswith(
            "40,002/95,367  123B tokens  loss 3.412  0.2 tok/s  MFU 38%  1,754 years left"
        )
        for line in bars
    )
    assert all(len(line) <= width and line[0] in "\u2501\u2578\u257a" for line in bars)
    stay = [line for line in screen.lines() if line.startswith("step")]
    assert [line[:11] for line in stay] == ["step 40,001", "step 40,002"] and all(
        line.endswith("MFU 38.0%") for line in stay
    )


def test_a_narrow_terminal_cuts_the_bar_to_one_line(clock):
    screen = Screen(width=30, terminal=True)
    with screen.console.training_display(95_367) as progress:
        progress.update(1, STEP)
        progress._bar.refresh()
        assert len(progress._bar.console.render_lines(progress._bar.get_renderable())) == 1


def test_the_time_left_leaves_compiling_out_and_hardly_jumps_at_an_evaluation(clock):
    screen = Screen()
    with screen.console.training_display(1000) as progress:
        clock[0] += 500  # compiles
        progress.update(1, STEP)
        assert progress._time_left() == ""
        for step in range(2, 501):
            clock[0] += 2
            progress.update(step, STEP)
        assert progress._time_left() == "16 min 40 s left"
        clock[0] += 30  # evaluates
        progress.update(501, STEP)
        assert progress._time_left() in [f"17 min {s} s left" for s in range(60)]
        for step in range(502, 901):  # speeds up
            clock[0] += 1
            progress.update(step, STEP)
        assert (
            100 <= (1000 - 900) * progress._recent_seconds / progress._recent_steps < 150
        )  # the mean of all steps would say 159
        progress.update_fraction(1000, 1.0)
        assert progress._time_left() == ""


def test_parts_of_a_long_step_give_a_time_left_before_it_ends(clock):
    screen = Screen(terminal=True)
    with screen.console.training_display(10) as progress:
        for part in range(1, 5):
            clock[0] += 3600
            progress.update_fraction(1, part / 8, tokens_per_s=3.25)
        progress._bar.refresh()
    assert "1/10  3.2 tok/s  3 days left" in screen.text()


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1.0 h"),
        (18_360, "5.1 h"),
        (172_799, "48.0 h"),
    ]
    + [
        (12 * 86400, "12 days"),
        (700 * 86400, "700 days"),
        (3.2 * 31_557_600, "3.2 years"),
        (4.1e12, "129,921 years"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert console.human_duration(seconds) == text


@pytest.mark.parametrize(
    "n,text",
    [
        (0, "0"),
        (7, "7"),
        (512, "512"),
        (999.7, "1k"),
        (12_345, "12.3k"),
        (999_950, "1M"),
        (4_096_000, "4.1M"),
        (300e9, "300B"),
    ]
    + [(1.2e12, "1.2T"), (3e15, "3000T"), (-20_000, "-20k"), (0.25, "0.25")],
)
def test_quantities_have_three_digits(n, text):
    assert formats.si(n) == text


def test_importing_the_reports_imports_nothing_slow():
    code = (
        "import sys, gptjax.report.console, gptjax.report.events, gptjax.report.loss_plot; "
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gptjax.report.loss_plot" in loaded
    assert not {"rich", "matplotlib", "tensorboardX", "jax", "numpy"} & set(loaded)
