"""Talk to a model that was trained to chat: `python -m gptjax.chat --model=DIR`. Answers are
streamed, and the KV cache is kept between turns.
"""

import argparse
import contextlib
import json
import pathlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

from gptjax import cli, sample
from gptjax.config import parse
from gptjax.runtime import atomic, errors

EXAMPLE = "python -m gptjax.chat --model=SmolLM2-135M-Instruct.Q4_1.gguf --temperature=0.7"
COMMANDS = {
    "/system": ("/system TEXT", "sets what stands before all messages; without TEXT: nothing"),
    "/retry": ("/retry", "another answer to the last message"),
    "/undo": ("/undo", "takes back the last message and its answer"),
    "/reset": ("/reset", "forgets the conversation; the system message stays"),
    "/save": ("/save FILE", "writes the conversation as JSON; keeps a file of others"),
    "/load": ("/load FILE", "goes on with a conversation that was saved"),
    "/help": ("/help", "shows this"),
    "/quit": ("/quit", "ends, as Ctrl-D does"),
}
KEYS = {
    "\\ at a line's end": "the message goes on in the next line",
    '"""': "around a message of several lines, which may begin with /",
    "Ctrl-C": "stops the answer; at the prompt it ends the program",
}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser(
        "chat",
        "Talk to the newest checkpoint of a run, or to weights of others, by the chat template "
        "that they come with. /help shows what may be typed. From a pipe each line is a message.",
        EXAMPLE,
    )
    sample.add_model_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="what stands before all messages")
    sample.add_sampling_flags(parser, 512)
    return parser


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args = make_parser().parse_args(arguments)
    sample.check_stops(args.stop)
    read_line = sample.line_reader()

    from gptjax.generate import conversation
    from gptjax.report import console

    out = console.Console(quiet=False, vital=True)
    loaded = sample.load_model(args.model, args.assignments, out)
    options = conversation.AnswerOptions(
        max_new_tokens=args.max_new_tokens,
        sampling_params=sample.sampling_params(args),
        stops=args.stop,
        seed=args.seed or 0,
    )
    chat = Chat(
        conversation.Conversation(
            loaded.chat_template, loaded.tokenizer, loaded.inference_model, options, args.system
        ),
        out,
        options.max_new_tokens,
        loaded.config.model.n_ctx,
    )
    out.print(f"{loaded.config.name}, {loaded.description}", "bold")
    if sys.stdin.isatty():
        out.print("/help shows what may be typed; Ctrl-C stops an answer, Ctrl-D ends", "dim")
    try:
        for text, is_verbatim in read_messages(read_line):
            if not chat.handle(text, is_verbatim):
                return
    except KeyboardInterrupt:  # at the prompt of a terminal; elsewhere it is exit status 130
        if not sys.stdin.isatty():
            raise
        out.print("")


def read_messages(read_line: Callable[[str], str]) -> Iterator[tuple[str, bool]]:
    '''Yields what is typed, until the end of the input, and whether it stood between """, so that
    it is no command whatever it begins with. read_line: as sample.line_reader returns it.'''
    with contextlib.suppress(EOFError):
        while True:
            line = read_line("> ")
            is_verbatim = line.lstrip().startswith('"""')
            if is_verbatim:
                text = _read_block(line.lstrip().removeprefix('"""'), read_line)
            else:
                while line.endswith("\\"):
                    line = line[:-1] + "\n" + _read_more(read_line)
                text = line
            if text.strip():
                yield text.strip(), is_verbatim


def _read_block(line: str, read_line: Callable[[str], str]) -> str:
    """The text up to the line that ends in three quotes, or to the end of the input."""
    lines = [line]
    while not lines[-1].rstrip().endswith('"""'):
        try:
            lines.append(read_line(". "))
        except EOFError:
            break
    return "\n".join(lines).rstrip().removesuffix('"""')


def _read_more(read_line: Callable[[str], str]) -> str:
    try:
        return read_line(". ")
    except EOFError:
        return ""


class Chat:
    """A conversation on a console: messages are answered, commands obeyed.

    talk: a generate.conversation.Conversation. out: a report.console.Console."""

    def __init__(self, talk: Any, out: Any, max_new_tokens: int, n_ctx: int):
        self._talk, self._out = talk, out
        self._max_new_tokens, self._n_ctx = max_new_tokens, n_ctx
        self._file: pathlib.Path | None = None  # where this conversation is saved

    def handle(self, text: str, is_verbatim: bool = False) -> bool:
        """Answers a message or obeys a command; False if the program is to end. What cannot be done
        is one line."""
        try:
            if is_verbatim or not text.startswith("/"):
                self._answer(lambda: self._talk.reply(text))
                return True
            command, _, rest = text.partition(" ")
            return self._obey(command, rest.strip())
        except (ValueError, OSError) as error:
            from gptjax.model import inference

            status, line = errors.classify_error(error)
            if status != 2 or isinstance(error, inference.NonFiniteLogits):
                raise
            self._out.warn(line)
            return True

    def _obey(self, command: str, text: str) -> bool:
        talk = self._talk
        match command:
            case "/system":
                talk.system = text or None
                self._note("the system message is set" if text else "no system message")
            case "/retry":
                self._answer(talk.retry)
            case "/undo":
                self._note(f"taken back: {parse.one_line(talk.undo().message, 60)}")
            case "/reset":
                talk.reset()
                self._file = None
                self._note("a new conversation")
            case "/save":
                self._save(text)
            case "/load":
                self._load(text)
            case "/help":
                rows = [*COMMANDS.values(), *KEYS.items()]
                self._out.print_table("what may be typed", rows)
            case "/quit":
                return False
            case _:
                raise ValueError(
                    f"no command is called {parse.one_line(command, 60)}; there are "
                    f'{", ".join(COMMANDS)}; a message that begins with / stands between """'
                )
        return True

    # --- answers ----------------------------------------------------------------------------------

    def _answer(self, begin: Callable[[], Generator[str, None, None]]) -> None:
        """Prints an answer as it is generated. begin: starts it."""
        from gptjax.report import word_wrap

        talk, out = self._talk, self._out
        before = talk.n_dropped
        pieces = begin()
        if talk.n_dropped > before:
            self._note(
                f"the context of {self._n_ctx:,} tokens is full: the model no longer sees the "
                f"first {n_turns(talk.n_dropped)}"
            )
        wrapper = word_wrap.WordWrapper(out.width) if sys.stdout.isatty() else None
        is_text = False
        with StopOnInterrupt() as stop, contextlib.closing(pieces):
            with out.status("reading"):
                piece = next(pieces, None)
            while piece is not None:
                is_text = True
                out.write(wrapper.add(piece) if wrapper else piece)
                if stop.is_set:
                    break
                piece = next(pieces, None)
        out.write(f"{wrapper.end() if wrapper else ''}\n")
        self._explain_ending(is_text)
        if sys.stdin.isatty():
            out.print("")

    def _explain_ending(self, is_text: bool) -> None:
        match self._talk.finish_reason:
            case "cut" if is_text:
                self._note("stopped; what was written stays in the conversation")
            case "cut":
                self._note("stopped before the answer began; the message is taken back")
            case "length" if self._talk.n_prompt + self._max_new_tokens <= self._n_ctx:
                self._note(f"cut after {self._max_new_tokens:,} tokens; see --max_new_tokens")
            case "length":
                self._note(f"cut where the context of {self._n_ctx:,} tokens was full")

    def _note(self, line: str) -> None:
        """A line of the program's own."""
        self._out.print(f"({line})", "dim")

    # --- files ------------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        path = parse.path(name) if name or self._file is None else self._file
        if not self._talk.turns:
            raise ValueError("there is nothing to save yet")
        if path.exists() and path.absolute() != self._file:
            raise ValueError(f"{path} exists and is not this conversation: give another name")
        line = json.dumps({"messages": self._talk.messages}, ensure_ascii=False)
        atomic.save(path, f"{line}\n".encode())
        self._file = path.absolute()
        self._note(f"saved: {n_turns(len(self._talk.turns))}, {path}")

    def _load(self, name: str) -> None:
        path = parse.path(name)
        row = parse.read_json(path)
        if "messages" not in row:
            raise ValueError(f"{path} has no messages: give a file that /save has written")
        try:
            self._talk.messages = row["messages"]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self._file = path.absolute()
        self._note(f"loaded: {n_turns(len(self._talk.turns))}, {path}")


def n_turns(n: int) -> str:
    """A number of turns in words."""
    return "1 turn" if n == 1 else f"{n:,} turns"


class StopOnInterrupt:
    """Makes Ctrl-C on a terminal set `is_set`, instead of raising KeyboardInterrupt wherever the
    program is, for as long as this context lasts."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> "StopOnInterrupt":
        if sys.stdin.isatty():
            self._before = signal.signal(signal.SIGINT, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stdin.isatty():
            signal.signal(signal.SIGINT, self._before)

    def _set(self, *_: object) -> None:
        self.is_set = True


if __name__ == "__main__":
    cli.run(main)
