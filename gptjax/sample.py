"""Let a trained run speak: `python -m gptjax.sample --run=DIR --prompt=TEXT`."""

from pathlib import Path

from gptjax.config import command, run
from gptjax.config.data import SentencePiece

EXAMPLE = "python -m gptjax.sample --run=runs/nano --prompt='def ' --temperature=0.8 --top_k=40 --n=3"


def main(arguments: list[str]) -> None:
    parser = command.bare_parser("sample", "Continue a prompt with the newest checkpoint of a run.", EXAMPLE)
    parser.add_argument("--run", metavar="DIR", required=True, help="the run's directory")
    parser.add_argument("--prompt", metavar="TEXT", default="\n", help="the text to continue (default: a newline)")
    parser.add_argument("--n", type=int, default=1, help="how many continuations (default: 1)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of each (default: 128)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    parser.add_argument("--top_k", type=int, default=None, help="sample among the k likeliest tokens (default: all)")
    parser.add_argument("--top_p", type=float, default=None, help="sample among the likeliest that make up this probability (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    args = parser.parse_args(arguments)
    for name in ("n", "tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)}: give at least 1")
    directory = Path(args.run)
    config = run.config(directory)

    import jax

    from gptjax.data import tokenizer
    from gptjax.generate import choose, decode
    from gptjax.learn import checkpoint, state, step
    from gptjax.mesh import devices
    from gptjax.model import reading
    from gptjax.report import console

    out = console.Console(quiet=False)
    sampling = choose.Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    spec = config.data.tokenizer
    text = tokenizer.tokenizer(SentencePiece(path=str(directory / "tokenizer.model")) if isinstance(spec, SentencePiece) else spec)
    mesh = devices.mesh(config.mesh)
    built = step.build(config, jax.devices()[0].platform, mesh, text.end_of_text)
    wanted = {"params": state.abstract(config, built.model, built.tx, mesh).params}
    restored = checkpoint.Saved(directory / "checkpoints", out.warn).restore(wanted, part="params/")
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
    said = decode.continuations(reader, [prompt] * args.n, args.tokens, sampling, jax.random.key(args.seed), text.end_of_text)
    out.say(f"{config.name}, step {at:,}")
    out.samples([text.decode([*prompt, *new]) for new in said])


if __name__ == "__main__":
    command.run(main)
