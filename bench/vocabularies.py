"""How many bytes of held-out text a token has, by vocabularies that were trained on the rest of it
and by GPT-2's, each of the same number of ids.

    python -m bench.vocabularies [--text FILE ...] [--n_vocab 1024 4096 16384]

Without --text: the embedded corpus. The last tenth of each document is held out. GPT-2's vocabulary
of n ids has its 256 bytes, its first merges, and end-of-text.
"""

import argparse

from gptjax.config import data, parse
from gptjax.data import run_tokenizer, validation_split
from gptjax.data.sources import open
from gptjax.data.tokenizers import build, byte_level_bpe, gpt2_bpe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", help="files, directories or globs")
    parser.add_argument(
        "--n_vocab", nargs="+", type=parse.int_argument(), default=[1024, 4096, 16384]
    )
    args = parser.parse_args()
    sources = tuple(data.Text(path=path) for path in args.text or ()) or (data.Embedded(),)
    rule = data.Tail(fraction=0.1)
    held_out = [
        text
        for source in sources
        for document in open.documents(source)
        for split, text in validation_split.split_document(document, rule)
        if split == "validation"
    ]
    n_bytes = sum(len(text.encode()) for text in held_out)
    print(f"{n_bytes / 1e6:.2f} MB held out; bytes of it per token:")
    merges = gpt2_bpe.Gpt2Tokenizer(None).merges
    for n in (*args.n_vocab, len(merges) + 257):
        tokenizers: dict[str, build.Tokenizer] = {
            "GPT-2": byte_level_bpe.ByteLevelTokenizer(merges[: n - 257], "")
        }
        if n in args.n_vocab:
            for spec in (data.TrainedBpe(n_vocab=n), data.SentencePiece(n_pieces=n)):
                tokenizers[type(spec).__name__] = build.build(
                    spec, None, lambda: run_tokenizer.sample_texts(sources, rule)
                )
        counts = {
            name: sum(map(len, tokenizer.encode_batch(held_out)))
            for name, tokenizer in tokenizers.items()
        }
        print(f"{n:6,} ids: " + ", ".join(f"{k} {n_bytes / v:.3f}" for k, v in counts.items()))


if __name__ == "__main__":
    main()
