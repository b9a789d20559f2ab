"""SentencePiece: BPE with byte fallback, trained on a run's own text, exactly reversible."""

import hashlib
import io
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from gptjax.config import parse
from gptjax.data import unicode

# SentencePiece writes a space as this character, so a literal one must go by its bytes
SPACE = "\u2581"
END_OF_TEXT = "<|endoftext|>"
CHUNK_CHARS = 200_000  # characters encoded at once
# Characters that a model is trained on, spread evenly over the text. Training 4,096 pieces takes
# about 3 s on 2 cores.
SAMPLE_CHARS = 12_000_000
SENTENCE_CHARS = 4_000  # characters handed to the trainer at a time


class SentencePieceTokenizer:
    """A SentencePiece model. `encode` then `decode` is the identity on valid text when the model
    normalizes nothing, as ours do.
    """

    text_prefix: tuple[int, ...] = ()

    def __init__(self, model: bytes):
        """model: a serialized model. Raises ValueError if it is damaged."""
        import sentencepiece

        try:
            if model:  # of an empty one sentencepiece says a line of its own
                self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.n_vocab = self.processor.vocab_size() if model else 0
        except RuntimeError:
            self.n_vocab = 0
        if not self.n_vocab:
            raise ValueError(
                "the SentencePiece model is damaged: give a file that SentencePiece wrote"
            )
        end = self.processor.eos_id()
        self.end_of_text: int | None = end if end >= 0 else None
        self.unknown: int | None = self.processor.unk_id()
        self.start_of_text: int = (
            end if end >= 0 else (self.processor.encode("\n") or [self.processor.unk_id()])[-1]
        )
        self.space = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self.digest = hashlib.sha256(b"sentencepiece " + model).hexdigest()
        self.model = model

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model,)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; a character that is in no piece becomes the pieces of its
        UTF-8 bytes."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [
            [
                i
                for part in unicode.chunks(unicode.replace_surrogates(text), CHUNK_CHARS)
                for i in self._encode_chunk(part)
            ]
            for text in texts
        ]

    def _encode_chunk(self, text: str) -> Iterator[int]:
        for number, span in enumerate(text.split(SPACE)):
            if number:
                yield from self.space
            yield from self.processor.encode(span)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, with end-of-text as <|endoftext|> and bytes that are not UTF-8
        as U+FFFD."""
        spans: list[list[int]] = [[]]
        for i in ids:
            if i == self.end_of_text:
                spans.append([])
            else:
                spans[-1].append(int(i))
        return END_OF_TEXT.join(self.processor.decode(span) for span in spans)


def load(path: pathlib.Path) -> SentencePieceTokenizer:
    """Returns the tokenizer of a model file. Raises a one-line ValueError if it is missing or
    damaged."""
    try:
        return SentencePieceTokenizer(parse.disk_bytes(path))
    except OSError as error:
        raise ValueError(
            f"data.tokenizer=SentencePiece(path=...): {path} cannot be read ({error.strerror}); "
            "give a .model file"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def golden_ratio_hash(number: int) -> int:
    """Returns a position in 0 ... 2^64 - 1 for a number.

    Successive numbers fill this range evenly, with no period that could coincide with one of the
    text, such as two alternating languages: multiples of the golden ratio (Knuth, The Art of
    Computer Programming 3, section 6.4).
    """
    return number * 0x9E3779B97F4A7C15 % 2**64


def sample_evenly(texts: Iterable[str], max_chars: int) -> list[str]:
    """Returns parts of SENTENCE_CHARS characters, spread evenly over `texts`: at most `max_chars`
    characters together, and at least nine tenths of that if the texts have as many."""
    parts: list[tuple[int, str]] = []
    number, limit, size = 0, 2**64, 0
    for text in texts:
        for start in range(0, len(text), SENTENCE_CHARS):
            if golden_ratio_hash(number) < limit:
                parts.append((number, text[start : start + SENTENCE_CHARS]))
                size += len(parts[-1][1])
                while size > max_chars and len(parts) > 1:
                    limit = limit * 19 // 20
                    parts = [(n, part) for n, part in parts if golden_ratio_hash(n) < limit]
                    size = sum(len(part) for _, part in parts)
            number += 1
    return [part for _, part in parts]


def resize(parts: list[str], size: int) -> list[str]:
    """Returns `parts` repeated until they have `size` characters; of the last repetition only some,
    spread evenly."""
    total = max(1, sum(map(len, parts)))
    times, rest = divmod(size, total)
    extra = sorted(sorted(range(len(parts)), key=golden_ratio_hash)[: len(parts) * rest // total])
    return parts * times + [parts[n] for n in extra]


def train(texts: Iterable[str], n_pieces: int) -> SentencePieceTokenizer:
    """Returns the tokenizer of a BPE model of `n_pieces` pieces, trained on `texts`; the same texts
    give the same model. Raises ValueError if they are too little.

    Nothing is normalized and no space is added or removed, so that runs of spaces and newlines,
    as in source code, are kept. Each digit is a piece of its own. 256 pieces for single bytes
    encode every character outside the alphabet.
    """
    import sentencepiece

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample_evenly(texts, sys.maxsize)),
            model_writer=out,
            model_type="bpe",
            vocab_size=n_pieces,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=8 * SENTENCE_CHARS,  # bytes: longer ones would be dropped
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            num_threads=2,
            minloglevel=3,
        )
    except RuntimeError as error:
        most, least = (
            re.search(r"value <= (\d+)", str(error)),
            re.search(r"required_chars. \d+ vs (\d+)", str(error)),
        )
        if least:
            reason = f"its training text has many different characters; ask for {least[1]} or more"
        else:
            reason = (
                "its training text is too small for so many; ask for at most "
                f"{most[1] if most else 'a few hundred'}, or use Bytes()"
            )
        raise ValueError(f"data.tokenizer=SentencePiece(n_pieces={n_pieces}): {reason}") from None
    return SentencePieceTokenizer(out.getvalue())
