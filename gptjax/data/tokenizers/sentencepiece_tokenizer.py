"""SentencePiece: BPE with byte fallback, trained on a run's own text, exactly reversible; and
models of others, such as Llama 2's and Gemma's, as the library encodes."""

import hashlib
import io
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from gptjax.config import parse
from gptjax.data import unicode
from gptjax.data.tokenizers import training_text

# SentencePiece writes a space as this character, so a literal one must go by its bytes
SPACE = "\u2581"
END_OF_TEXT = "<|endoftext|>"
FILE, CONFIG_FILE = "tokenizer.model", "tokenizer_config.json"
CHUNK_CHARS = 200_000  # characters encoded at once


class SentencePieceTokenizer:
    """A SentencePiece model. Of one that `train` made, `encode` then `decode` is the identity on
    valid text; any other encodes as sentencepiece's own encode does: its dummy prefix, its
    normalization, its user-defined pieces. Text that spells a control piece stays text.

    model, config: bytes of the model and of the tokenizer_config.json next to it, or None, which
    says whether begin-of-text stands before every prompt.
    """

    def __init__(self, model: bytes, config: bytes | None = None, where: str = "tokenizer.model"):
        """where: the model's file, for errors. Raises ValueError if the model is damaged, or has
        not the tokens that the settings add to it."""
        import sentencepiece

        try:
            if model:  # of an empty one sentencepiece says a line of its own
                self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.n_vocab = self.processor.vocab_size() if model else 0
        except RuntimeError:
            self.n_vocab = 0
        if not self.n_vocab:
            raise ValueError(
                f"{where}: the SentencePiece model is damaged: give a file that SentencePiece wrote"
            )
        end, start = self.processor.eos_id(), self.processor.bos_id()
        self.end_of_text: int | None = end if end >= 0 else None
        self.unknown: int | None = self.processor.unk_id()
        self.start_of_text: int = (
            end if end >= 0 else (self.processor.encode("\n") or [self.processor.unk_id()])[-1]
        )
        self.space = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self.model, self.config, self.where = model, config, where
        self.is_own = start < 0 <= end and self.processor.id_to_piece(end) == END_OF_TEXT
        self._names = {
            i: self.processor.id_to_piece(i)
            for i in range(self.n_vocab)
            if self.processor.is_control(i)
        }
        self.text_prefix: tuple[int, ...] = (start,) if start >= 0 and self._adds_start() else ()
        self.digest = hashlib.sha256(b"sentencepiece " + model).hexdigest()
        if self.text_prefix:
            self.digest = hashlib.sha256(f"{self.digest} {self.text_prefix}".encode()).hexdigest()

    def _adds_start(self) -> bool:
        """Whether tokenizer_config.json says that begin-of-text stands before a text, or is of a
        family where it does. Raises ValueError if it adds tokens that the model has not."""
        if self.config is None:
            return False
        settings = parse.json_object(self.config, f"{CONFIG_FILE} of {self.where}")
        added = settings.get("added_tokens_decoder")
        numbers = [int(i) for i in added if i.isdecimal()] if isinstance(added, dict) else []
        if max(numbers, default=0) >= self.n_vocab:
            raise ValueError(
                f"{self.where} has {self.n_vocab:,} pieces, but its {CONFIG_FILE} adds token "
                f"{max(numbers):,}: give the model's tokenizer.json, "
                "data.tokenizer=TokenizerJson(path=...)"
            )
        says = settings.get("add_bos_token")
        kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
        return says is True or says is None and kind in ("LlamaTokenizer", "GemmaTokenizer")

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model, self.config, self.where)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; a character that is in no piece becomes the pieces of its
        UTF-8 bytes."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        if not self.is_own:
            return self.processor.encode([unicode.replace_surrogates(text) for text in texts])
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
        """Returns the text of `ids`, with end-of-text and other control pieces by their names, and
        bytes that are not UTF-8 as U+FFFD."""
        texts: list[str] = []
        span: list[int] = []
        for i in ids:
            if i in self._names:
                texts += [self.processor.decode(span), self._names[i]]
                span = []
            else:
                span.append(int(i))
        return "".join([*texts, self.processor.decode(span)])


def load(path: pathlib.Path) -> SentencePieceTokenizer:
    """Returns the tokenizer of a model file, with tokenizer_config.json next to it if there is one.
    Raises a one-line ValueError if it is missing or damaged."""
    try:
        model = parse.disk_bytes(path)
    except OSError as error:
        raise ValueError(
            f"data.tokenizer=SentencePiece(path=...): {path} cannot be read ({error.strerror}); "
            "give a .model file"
        ) from None
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", model):
        raise ValueError(
            f"{path} is a file of tiktoken, as Llama 3 has: give "
            f"data.tokenizer=Tiktoken(path={str(path)!r}, family=...)"
        )
    config = path.parent / CONFIG_FILE
    return SentencePieceTokenizer(
        model, parse.read_bytes(config) if config.exists() else None, str(path)
    )


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
            sentence_iterator=iter(training_text.sample_evenly(texts, sys.maxsize)),
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
            max_sentence_length=8 * training_text.PART_CHARS,  # bytes: longer ones would be dropped
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
