"""Generate text from a run or other weights: `python -m gptjax.sample --model=DIR --prompt=TEXT`. A
single continuation is streamed, several are shown at the end.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gptjax import cli
from gptjax.config import evaluation, parse
from gptjax.runtime import errors

EXAMPLE = (
    "python -m gptjax.sample --model=runs/nano --prompt='def ' --temperature=0.8 --top_k=40 "
    "--num_samples=3"
)
MAX_PROMPT_BYTES = 1 << 26  # bytes of a file that is a prompt
MAX_SAMPLES, MAX_TOKENS = evaluation.MAX_BEAM_WIDTH, 1_000_000


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser(
        "sample",
        "Continue a prompt with the newest checkpoint of a run, or with weights of others.",
        EXAMPLE,
    )
    sample_count = parse.int_argument(1, MAX_SAMPLES)
    add_model_flags(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the text to continue, '' for none (default: a newline)"
    )
    parser.add_argument(
        "--prompt_file",
        metavar="FILE",
        help="a file whose text is the prompt, to its last byte; - is stdin",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="continue each line of standard input; Ctrl-D ends",
    )
    parser.add_argument("--chat", action="store_true", help="answer the prompt as a chat message")
    parser.add_argument(
        "--num_samples", type=sample_count, default=1, help="how many continuations (default: 1)"
    )
    add_sampling_flags(parser, 128)
    add_beam_flags(parser)
    return parser


def add_model_flags(parser: argparse.ArgumentParser, is_required: bool = True) -> None:
    """Adds the flags of which model it is, for `load_model`."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        required=is_required,
        help="a run's directory, or a folder of weights",
    )
    cli.add_set_flag(parser, "how it computes, as compute.kv_cache_dtype=int8; repeatable")


def add_sampling_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds the flags of how a text is sampled. max_new_tokens: that flag's default."""
    parser.add_argument(
        "--max_new_tokens",
        type=parse.int_argument(1, MAX_TOKENS),
        default=max_new_tokens,
        help=f"the most tokens of each text (default: {max_new_tokens})",
    )
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end before this text; repeatable",
    )
    parser.add_argument(
        "--temperature", type=parse.float_argument(0, 1e300), help="0 is greedy (default: 1)"
    )
    parser.add_argument(
        "--top_k",
        type=parse.int_argument(1),
        help="sample among the k likeliest tokens (default: all)",
    )
    parser.add_argument(
        "--top_p",
        type=parse.float_argument(0, 1, above=True),
        help="sample among the likeliest that make up this probability (default: all)",
    )
    parser.add_argument(
        "--seed", type=parse.seed_argument, default=None, help="same seed, same text (default: 0)"
    )


def sampling_params(args: argparse.Namespace) -> Any:
    """Returns generate.sampling.SamplingParams of those flags."""
    from gptjax.generate import sampling

    temperature = 1.0 if args.temperature is None else args.temperature
    return sampling.SamplingParams(temperature=temperature, top_k=args.top_k, top_p=args.top_p)


def add_beam_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a beam search."""
    parser.add_argument(
        "--num_beams",
        type=parse.int_argument(1, MAX_SAMPLES),
        help="do not sample: show the n best of a beam search of this width",
    )
    parser.add_argument(
        "--length_penalty",
        type=parse.float_argument(0, evaluation.MAX_ALPHA),
        help="its length penalty (default: 0.6, as GPT-3's)",
    )


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args = make_parser().parse_args(arguments)
    check_args(args)
    prompt = read_prompt(args)

    from gptjax.generate import streaming
    from gptjax.model import inference
    from gptjax.report import console

    out = console.Console(quiet=False, vital=True)
    loaded = load_model(args.model, args.assignments, out)
    if args.chat:
        end = loaded.chat_template.end_of_turn
        args.stop = [*args.stop, *([end] if end else [])]
    streaming.normalize_stops(loaded.tokenizer, args.stop)  # raises before anything is generated
    sampler = Sampler(args, loaded, out)
    out.print(f"{loaded.config.name}, {loaded.description}")
    if prompt is not None:
        sampler.generate(prompt)
        return
    for number, line in enumerate(read_lines()):
        try:
            sampler.generate(line, number)
        except (
            ValueError
        ) as error:  # of this line, as too long a one for a beam; of the model none will do
            if errors.classify_error(error)[0] != 2 or isinstance(error, inference.NonFiniteLogits):
                raise
            out.warn(str(error))
        except (
            KeyboardInterrupt
        ):  # enough of this one; a second one, at the prompt, ends the program
            if not sys.stdin.isatty():
                raise
            out.print("")


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for combinations of flags that make no sense."""
    if args.chat and not args.interactive and args.prompt is args.prompt_file is None:
        raise ValueError("--chat answers a message: give --prompt=TEXT, a file, or --interactive")
    check_stops(args.stop)
    sources = [
        f"--{name}"
        for name in ("prompt", "prompt_file", "interactive")
        if getattr(args, name) not in (None, False)
    ]
    if len(sources) > 1:
        raise ValueError(f"{' and '.join(sources)} each say what to continue: give one of them")
    others = ("temperature", "top_k", "top_p", "seed") if args.num_beams else ("length_penalty",)
    given_flags = [f"--{name}" for name in others if getattr(args, name) is not None]
    if given_flags and args.num_beams:
        raise ValueError(
            "--num_beams searches for the likeliest text and does not sample: leave out "
            f"{', '.join(given_flags)}"
        )
    if given_flags:
        raise ValueError("--length_penalty is for a beam search: give --num_beams too")
    if args.num_beams and args.num_samples > args.num_beams:
        raise ValueError(
            f"--num_beams={args.num_beams} finds {args.num_beams} texts and not "
            f"--num_samples={args.num_samples}: widen the beam"
        )


def check_stops(stops: list[str]) -> None:
    """Raises ValueError for a --stop that no text is without."""
    if "" in stops:
        raise ValueError("--stop= is in every text: give at least one character")


# --- what to continue -----------------------------------------------------------------------------


def read_prompt(args: argparse.Namespace) -> str | None:
    """Returns the prompt; None if lines are read one by one. Raises ValueError for a file that
    cannot be a prompt.
    """
    if args.interactive:
        return None
    if args.prompt_file is None:
        return "\n" if args.prompt is None else args.prompt
    if args.prompt_file == "-":
        return read_text(_stdin().buffer, "standard input")
    path = parse.path(args.prompt_file)
    try:
        with path.open("rb") as stream:
            return read_text(stream, str(path))
    except OSError as error:
        raise ValueError(
            f"--prompt_file={path} cannot be read: {error.strerror or error}"
        ) from None


def read_text(stream: BinaryIO, where: str) -> str:
    """Reads a stream as text. Raises ValueError if it is not UTF-8, or longer than any prompt."""
    content = stream.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise ValueError(
            f"{where} is longer than {MAX_PROMPT_BYTES:,} bytes: give less of it as a prompt"
        )
    return parse.utf8(content, where)


def read_lines() -> Iterator[str]:
    """Yields the lines of standard input, as `line_reader` reads them."""
    read = line_reader()
    while True:
        try:
            yield read("> ")
        except EOFError:
            return


def line_reader() -> Callable[[str], str]:
    """Returns a function that reads a line of standard input; EOFError at the end. On a terminal it
    shows its argument before the line, which can be edited. Bytes that are not UTF-8 are passed
    through.
    """
    stream = _stdin()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if stream.isatty():
        import readline  # noqa: F401  input() then edits, and remembers what was typed

        def read_terminal(prompt: str) -> str:
            try:
                return input(prompt)
            except EOFError:
                print()
                raise

        return read_terminal

    def read_pipe(prompt: str) -> str:
        line = stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read_pipe


def _stdin() -> Any:
    if sys.stdin is None:
        raise ValueError("standard input is closed: give --prompt=TEXT or --prompt_file=FILE")
    return sys.stdin


# --- who continues it -----------------------------------------------------------------------------


def load_model(run: str, assignments: list[str], out: Any) -> Any:
    """Loads the model at a local path or in a bucket. assignments: of --set."""
    from gptjax.weights import open_model

    with out.status(f"reading {run}") as progress:
        return open_model.open_model(run, assignments, progress, out.warn)


class Sampler:
    """Continues prompts as `args` specify. loaded: a weights.open_model.LoadedModel."""

    def __init__(self, args: argparse.Namespace, loaded: Any, out: Any):
        self._args, self._tokenizer, self._out = args, loaded.tokenizer, out
        self._inference_model = loaded.inference_model
        self._chat_template = loaded.chat_template if args.chat else None
        self._sampling_params = sampling_params(args)

    def generate(self, prompt: str, index: int = 0) -> None:
        """Prints continuations of a prompt. index: number of the prompt, each with its own random
        numbers. A prompt without tokens starts as texts do.
        """
        tokens, prefix = self._read(prompt)
        if self._args.num_beams is None:
            self._sample(tokens, prefix, index)
        else:
            self._search(tokens, prefix)

    def _read(self, prompt: str) -> tuple[list[int], str]:
        """Returns the ids of a prompt, and what of it is shown before what the model writes: of a
        message nothing."""
        from gptjax.data.tokenizers import build

        if self._chat_template is not None:
            return self._chat_template.encode([{"role": "user", "content": prompt}]), ""
        encoded = self._tokenizer.encode(prompt)
        tokens = build.encode_prompt(self._tokenizer, prompt)
        # What is shown is what was read: a tokenizer may lower-case or respace it. A special token
        # stands before a text and is none of it; a newline is.
        prefix = self._tokenizer.decode(encoded or tokens)
        return tokens, "" if not encoded and prefix.strip() else prefix

    def _sample(self, prompt: list[int], prefix: str, index: int) -> None:
        """Prints n continuations: a single one as it is generated, several at the end."""
        from gptjax.generate import decode, sampling, streaming

        args, out = self._args, self._out
        key = sampling.random_key(args.seed or 0, *([index] if index else []))
        steps_per_call = 1 if args.num_samples == 1 else decode.STEPS_PER_CALL
        stream = streaming.stream(
            self._inference_model,
            self._tokenizer,
            [prompt] * args.num_samples,
            args.max_new_tokens,
            self._sampling_params,
            key,
            args.stop,
            steps_per_call,
        )
        if args.num_samples == 1:
            out.write(prefix)
            for (new,) in stream:
                out.write(new)
            out.print("")
            return
        texts = [prefix] * args.num_samples
        with out.status("generating") as progress:
            for new in stream:
                texts = [text + more for text, more in zip(texts, new, strict=True)]
                progress(f"generating, {max(map(len, texts)) - len(prefix):,} characters so far")
        out.print_samples(texts)

    def _search(self, prompt: list[int], prefix: str) -> None:
        """Prints the n best results of a beam search, with their scores."""
        from gptjax.generate import beam, streaming

        args, tokenizer = self._args, self._tokenizer
        stops = streaming.normalize_stops(tokenizer, args.stop)

        def is_end(tokens):
            return tokens[-1] == tokenizer.end_of_text or any(
                stop in tokenizer.decode(tokens) for stop in stops
            )

        with self._out.status("searching"):
            (hypotheses,) = beam.search(
                self._inference_model,
                [prompt],
                args.max_new_tokens,
                is_end,
                args.num_beams,
                0.6 if args.length_penalty is None else args.length_penalty,
            )
        texts = []
        for hypothesis in hypotheses[: args.num_samples]:
            detokenizer = streaming.StreamingDetokenizer(tokenizer, prompt, args.stop)
            new = detokenizer.add(
                [token for token in hypothesis.tokens if token != tokenizer.end_of_text]
            )
            texts.append(prefix + new + detokenizer.end())
        titles = [
            f"score {x.score:.3f}, log-probability {x.log_prob:.2f} over {len(x.tokens)} tokens"
            for x in hypotheses[: args.num_samples]
        ]
        self._out.print_samples(texts, titles)


if __name__ == "__main__":
    cli.run(main)
