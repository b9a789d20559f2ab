"""Let a trained run speak: `python -m gptjax.sample --run=DIR --prompt=TEXT`. One continuation is shown as it comes, several at the end."""

import argparse
from typing import Any

from gptjax.config import command, run
from gptjax.config.data import SentencePiece
from gptjax.report import copies

EXAMPLE = "python -m gptjax.sample --run=runs/nano --prompt='def ' --temperature=0.8 --top_k=40 --n=3"


def main(arguments: list[str]) -> None:
    parser = command.bare_parser("sample", "Continue a prompt with the newest checkpoint of a run.", EXAMPLE)
    parser.add_argument("--run", metavar="DIR", required=True, help="the run's directory")
    parser.add_argument("--prompt", metavar="TEXT", default="\n", help="the text to continue (default: a newline)")
    parser.add_argument("--n", type=int, default=1, help="how many continuations (default: 1)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of each (default: 128)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before this text; repeatable")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: 1)")
    parser.add_argument("--top_k", type=int, default=None, help="sample among the k likeliest tokens (default: all)")
    parser.add_argument("--top_p", type=float, default=None, help="sample among the likeliest that make up this probability (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="same seed, same text (default: 0)")
    parser.add_argument("--beams", type=int, default=None, help="do not sample: show the n best of a beam search of this width")
    parser.add_argument("--alpha", type=float, default=None, help="the beam search's length penalty (default: 0.6, as GPT-3's)")
    args = parser.parse_args(arguments)
    check(args)
    directory, bucket = run.directory(args.run), run.bucket(args.run)
    copies.Copies(directory, bucket).fetch()
    config = run.config(directory)
    if config.task is not None:
        raise ValueError(
            f"{directory} was fine-tuned on {config.name}: it answers, in predictions/, and does not speak; give another --run"
        )

    import jax

    from gptjax.data import tokenizer
    from gptjax.learn import checkpoint, state, step
    from gptjax.mesh import devices
    from gptjax.model import reading
    from gptjax.report import console

    out = console.Console(quiet=False, vital=True)
    spec = config.data.tokenizer
    text = tokenizer.tokenizer(SentencePiece(path=str(directory / "tokenizer.model")) if isinstance(spec, SentencePiece) else spec)
    mesh = devices.mesh(config.mesh)
    built = step.build(config, jax.devices()[0].platform, mesh, text.end_of_text)
    wanted = {"params": state.abstract(config, built.model, built.tx, mesh).params}
    stored = directory / "checkpoints" if bucket is None else f"{bucket}/checkpoints"
    restored = checkpoint.Saved(stored, out.warn).restore(wanted, part="params/")
    if restored is None:
        raise ValueError(f"{directory} has no checkpoint yet; let python -m gptjax.train run until it saves one")
    at, saved, about = restored
    if about["tokenizer"] != text.digest:
        raise ValueError(
            f"{directory} was trained with a tokenizer of digest {about['tokenizer'][:12]}, but {spec} is {text.digest[:12]} here; "
            f"give it back the files that it had"
        )
    prompt = text.encode(args.prompt)
    if not prompt:
        raise ValueError("--prompt is empty: give at least one character")
    reader = reading.reader(built.model, saved["params"])
    out.say(f"{config.name}, step {at:,}")
    if args.beams is None:
        sampled(args, reader, text, prompt, out)
    else:
        searched(args, reader, text, prompt, out)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be asked."""
    for name in ("n", "tokens", "beams"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)}: give at least 1")
    if "" in args.stop:
        raise ValueError("--stop= is in every text: give at least one character")
    others = ("temperature", "top_k", "top_p", "seed") if args.beams else ("alpha",)
    given = [f"--{name}" for name in others if getattr(args, name) is not None]
    if given and args.beams:
        raise ValueError(f"--beams searches for the likeliest text and does not sample: leave out {', '.join(given)}")
    if given:
        raise ValueError("--alpha is for a beam search: give --beams too")
    if args.beams and args.n > args.beams:
        raise ValueError(f"--beams={args.beams} finds {args.beams} texts and not --n={args.n}: widen the beam")


def sampled(args: argparse.Namespace, reader: Any, text: Any, prompt: list[int], out: Any) -> None:
    """n continuations: one as it comes, several at the end."""
    import jax

    from gptjax.generate import choose, decode, telling

    sampling = choose.Sampling(temperature=1.0 if args.temperature is None else args.temperature, top_k=args.top_k, top_p=args.top_p)
    said, key = [args.prompt] * args.n, jax.random.key(args.seed or 0)
    stream = telling.stream(reader, text, [prompt] * args.n, args.tokens, sampling, key, args.stop, 1 if args.n == 1 else decode.AT_ONCE)
    if args.n == 1:
        out.part(args.prompt)
        for (new,) in stream:
            out.part(new)
        out.say("")
        return
    with out.working("speaking") as show:
        for new in stream:
            said = [before + more for before, more in zip(said, new, strict=True)]
            show(f"speaking: {max(map(len, said)) - len(args.prompt):,} characters")
    out.samples(said)


def searched(args: argparse.Namespace, reader: Any, text: Any, prompt: list[int], out: Any) -> None:
    """The n best of a beam search, with their scores."""
    from gptjax.generate import beam, telling

    def ends(tokens):
        return tokens[-1] == text.end_of_text or any(stop in text.decode(tokens) for stop in args.stop)

    with out.working("searching"):
        (found,) = beam.search(reader, [prompt], args.tokens, ends, args.beams, 0.6 if args.alpha is None else args.alpha)
    texts = []
    for best in found[: args.n]:
        new = telling.Telling(text, prompt, args.stop)
        texts.append(args.prompt + new.add([token for token in best.tokens if token != text.end_of_text]) + new.end())
    facts = [f"score {x.score:.3f}, log-probability {x.log_probability:.2f} over {len(x.tokens)} tokens" for x in found[: args.n]]
    out.samples(texts, facts)


if __name__ == "__main__":
    command.run(main)
