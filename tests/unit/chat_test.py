"""python -m gptjax.chat: what may be typed, what is shown and what is kept."""

import io
import json
import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
import types

import pytest

from gptjax import chat, sample
from gptjax.data.tokenizers import build, chat_template
from gptjax.generate import prefix_cache
from gptjax.runtime import errors
from tests.unit.generate import conversation_test as conversations

TITLE = "tiny, step 3\n"


def model(n_ctx=4096, kind="qwen"):
    """A model whose answers are those of conversation_test.Scripted."""
    template = conversations.make_template(kind)
    conversations.Scripted.tokenizer = template._tokenizer
    sizes = types.SimpleNamespace(n_ctx=n_ctx)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(name="tiny", model=sizes),
        description="step 3",
        chat_template=template,
        tokenizer=template._tokenizer,
        inference_model=types.SimpleNamespace(model=types.SimpleNamespace(config=sizes)),
    )


@pytest.fixture
def talk(monkeypatch, capsys):
    """A function: lines that are typed into a pipe, answers -> what is printed after the title."""
    monkeypatch.setattr(prefix_cache, "PrefixCache", conversations.Scripted)

    def run(lines: str, answers=(), *flags, **sizes) -> str:
        monkeypatch.setattr(sample, "load_model", lambda *given: model(**sizes))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        conversations.Scripted.script = list(answers)
        conversations.Scripted.prompts.clear()
        chat.main(["--model=x", *flags])
        printed = capsys.readouterr().out
        assert printed.startswith(TITLE)
        return printed.removeprefix(TITLE)

    return run


def test_each_line_of_a_pipe_is_a_turn_of_one_conversation(talk):
    assert talk("a\n\n  \nb", ["one\ntwo", "three"]) == "one\ntwo\nthree\n"
    assert conversations.prompts() == [
        conversations.chatml("a"),
        conversations.chatml("a", "one\ntwo", "b"),
    ]
    assert talk("") == ""


def test_messages_of_several_lines(talk):
    typed = 'a\\\nb\\\n\nc\n"""d\n\n/e""" \n"""/f"""\n"""\ng\n"""\n""""""\nh\\'
    talk(typed, "12345678")
    messages = ["a\nb", "c", "d\n\n/e", "/f", "g", "h"]
    pairs = [text for i, message in enumerate(messages) for text in (message, str(i + 1))]
    assert conversations.prompts()[-1] == conversations.chatml(*pairs[:-1])
    talk('"""a\nb', "1")  # the input ends before the block
    assert conversations.prompts() == [conversations.chatml("a\nb")]


def test_markup_and_control_characters_are_text(talk):
    said = "[bold]x[/bold] [/] :smile: \x1b[2J"
    assert talk("[red]a[/red]", [said]) == said.replace("\x1b", "\u241b") + "\n"
    assert "[red]a[/red]" in conversations.prompts()[0]


def test_commands(talk):
    shown = talk(
        "/system Be brief.\na\n/retry\nb\n/undo\n/nothing [x]\n/reset\n/system\nc\n/quit\nd\n",
        ["1", "2", "3", "4", "5"],
    )
    assert shown.splitlines() == [
        "(the system message is set)",
        "1",
        "2",
        "3",
        "(taken back: b)",
        "warning: no command is called /nothing; there are /system, /retry, /undo, /reset, /save, "
        '/load, /help, /quit; a message that begins with / stands between """',
        "(a new conversation)",
        "(no system message)",
        "4",
    ]
    assert conversations.prompts()[0] == conversations.chatml("system:Be brief.", "a")
    assert conversations.prompts()[-1] == conversations.chatml("c")
    assert talk("/undo\n/retry\n/save x\n/save\n/load\n").count("warning: ") == 5


def test_help_names_every_command(talk):
    shown = talk("/help\n")
    assert all(re.search(rf"^  {name}\b.*\w", shown, re.M) for name in chat.COMMANDS)
    handled = set(re.findall(r'case "(/\w+)"', pathlib.Path(chat.__file__).read_text()))
    assert handled == set(chat.COMMANDS)


def test_a_conversation_is_saved_whole_and_loaded(talk, tmp_path):
    file = tmp_path / "folder" / "a b.jsonl"
    shown = talk(f"a\n/save {file}\nb\\\n\u2028é\n/save\n/reset\n/save {file}\n", ["1", "2\n"])
    assert f"(saved: 1 turn, {file})\n" in shown and f"(saved: 2 turns, {file})\n" in shown
    assert shown.endswith("warning: there is nothing to save yet\n")
    (line,) = file.read_text(encoding="utf-8").split("\n")[:-1]
    assert [tuple(m.values()) for m in json.loads(line)["messages"]] == [
        ("user", "a"), ("assistant", "1"), ("user", "b\n\u2028é"), ("assistant", "2\n"),
    ]  # fmt: skip
    before = file.read_bytes()
    shown = talk(f"x\n/save {file}\n/load {file}\nc\n/save {file}\n", ["y", "z"])
    assert f"warning: {file} exists and is not this conversation: give another name" in shown
    assert conversations.prompts()[-1] == conversations.chatml("a", "1", "b\n\u2028é", "2\n", "c")
    assert len(file.read_bytes()) > len(before) and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content, line", [
    (None, "No such file or directory"),
    (b"", "JSON"),
    (b'{"messages": []}\n{"messages": []}\n', "JSON"),
    (b'{"text": "x"}', "has no messages: give a file that /save has written"),
    (b'{"messages": "x"}', "give a list of at least one message"),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "the roles assistant: give user"),
    (b"\xff", "is not UTF-8 text"),
])  # fmt: skip
def test_a_file_that_is_no_conversation_changes_nothing(talk, tmp_path, content, line):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    shown = talk(f"a\n/load {file}\nb\n", "12")
    warning = shown.splitlines()[1]
    assert warning.startswith("warning: ") and line in warning and str(file) in warning
    assert conversations.prompts()[-1] == conversations.chatml("a", "1", "b")


def test_a_file_that_cannot_be_written_is_one_line(talk, tmp_path):
    (tmp_path / "file").write_text("")
    shown = talk(f"a\n/save {tmp_path / 'file' / 'x'}\nb\n", "12").splitlines()
    assert shown[1].startswith("warning: ") and shown[2] == "2"


def test_a_long_conversation_says_how_much_is_dropped_and_a_long_message_is_refused(talk):
    lines = "".join(f"message {i}\n" for i in range(7)) + "x y" * 60 + "\nlast\n"
    shown = talk(lines, [f"answer {i}" for i in range(8)], "--max_new_tokens=16", n_ctx=128)
    notes = [line for line in shown.splitlines() if line.startswith("(")]
    form = r"\(the context of 128 tokens is full: the model no longer sees the first \d turns?\)$"
    assert len(notes) > 1 and all(re.match(form, note) for note in notes)
    (refused,) = (line for line in shown.splitlines() if line.startswith("warning"))
    assert "the message is too long" in refused and shown.splitlines()[-1] == "answer 7"


def test_how_an_answer_ended_is_shown_unless_the_model_ended_it(talk):
    shown = talk("a\nb\n", ["one two three", "x"], "--max_new_tokens=2")
    assert shown.splitlines()[1:] == ["(cut after 2 tokens; see --max_new_tokens)", "x"]
    shown = talk("a\n", ["x y " * 99], n_ctx=64)
    assert shown.splitlines()[-1] == "(cut where the context of 64 tokens was full)"


def test_flags_reach_the_conversation(talk):
    talk("a\n", ["one. two"], "--system=Be", "--stop=.", "--seed=5", "--top_k=3")
    assert conversations.prompts() == [conversations.chatml("system:Be", "a")]
    for flags in (["--stop="], ["--temperature=-1"], ["--seed=x"], ["--max_new_tokens=0"], []):
        with pytest.raises((ValueError, SystemExit)) as error:
            chat.main([*flags, *["--model=x"] * bool(flags)])
        assert errors.classify_error(error.value)[0] == 2 or error.value.code == 2  # type: ignore


def test_a_model_that_does_not_chat_is_one_line(monkeypatch):
    class Model:
        chat_template = property(lambda self: chat_template.of(build.ByteTokenizer()))

    monkeypatch.setattr(sample, "load_model", lambda *given: Model())
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    with pytest.raises(ValueError, match="has no chat template: it continues text; one that") as e:
        chat.main(["--model=x"])
    assert errors.classify_error(e.value)[0] == 2


def test_logits_that_are_nan_end_the_program(talk):
    with pytest.raises(ValueError, match="NaN or infinite"):
        talk("a\nb\n", [[None], "x"])


# --- on a terminal --------------------------------------------------------------------------------


PROGRAM = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background ignores it
os.open(os.ttyname(0), os.O_RDWR)  # from here on it is the terminal that sends Ctrl-C
from gptjax import chat, sample
from gptjax.generate import prefix_cache
from tests.unit import chat_test
from tests.unit.generate.conversation_test import Scripted

class Slow(Scripted):
    script = ["one " * 400, "fine", "[bold]words[/bold] " * 24 + "LAST"]
    def stream(self, *given):
        for token in super().stream(*given):
            time.sleep(0.01)
            yield token

prefix_cache.PrefixCache = Slow
sample.load_model = lambda *given: chat_test.model()
chat.main(["--model=x"])
print("ended", len(Scripted.prompts), repr(Scripted.tokenizer.decode(Scripted.prompts[1])))
"""


class Terminal:
    """A program on a pseudo-terminal of 80 columns."""

    def __init__(self, program: str, **variables: str):
        self.shown = ""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"COLUMNS": "80", "TERM": "xterm-256color", **variables},
        )  # fmt: skip
        os.close(slave)

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_until_it_waits(self) -> None:
        """Until the program has slept for half a second, waiting for a key: CPython's readline does
        not see a signal that comes between its prompt and its wait."""
        file, last = pathlib.Path(f"/proc/{self._process.pid}/status"), ""
        end = time.monotonic() + 60
        while time.monotonic() < end and file.exists():
            lines = file.read_text().splitlines()
            # The state of its first thread, and how often that gave up its processor.
            now = " ".join(x for x in lines if x.startswith(("State", "voluntary_ctxt_switches")))
            if "sleeping" in now and now == last:
                return
            last = now
            time.sleep(0.5)
        time.sleep(1)  # not Linux

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What is shown up to the end of the text, which is then gone."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, f"{text} is not in {self.shown!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def close(self) -> int:
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            os.close(self._master)


def test_ctrl_c_stops_the_answer_and_at_the_prompt_the_program():
    terminal = Terminal(PROGRAM, NO_COLOR="1")
    try:
        terminal.wait_for("> ")
        terminal.send("count\n")
        terminal.wait_for("one one one")
        terminal.send("\x03")
        terminal.wait_for("(stopped; what was written stays in the conversation)")
        terminal.wait_for("> ")
        terminal.send("go on\n")
        terminal.wait_for("fine")
        terminal.wait_for("> ")
        terminal.send("more\n")
        shown = terminal.wait_for("LAST") + terminal.wait_for("> ")
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown).split("\n")
        lines = [line for line in lines if "words" in line]
        assert len(lines) == 6 and all(line.startswith("[bold]words[/bold]") for line in lines)
        terminal.wait_until_it_waits()
        terminal.send("\x03")
        terminal.wait_for("ended 3 ")
        last = terminal.wait_for("<think>")
        # What was written before it was stopped, up to any byte, is what the model reads.
        form = r"assistant\\n([^<]*)<\|im_end\|>\\n<\|im_start\|>user\\ngo on<"
        written = re.search(form, last)
        assert written and len(written[1]) >= len("one one one"), last
        assert len(written[1]) < 1600 and ("one " * 400).startswith(written[1]), last
    finally:
        status = terminal.close()
    assert status == 0
