"""What a run reads: sources of text, tokenizers, and how a validation split is held out."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, Fraction, record

Weight = Annotated[float, Bounds(1e-9, 1e9)]  # beside those of the other sources


@record
class Embedded:
    """The text that every CPython carries: its help topics, docstrings and standard library
    sources. Needs no file."""

    weight: Weight = 1.0


@record
class Text:
    """A file, a directory or a glob of .txt, .jsonl or .parquet, each optionally .gz, .xz or .zst.
    A .txt file is one document.

    .ndjson and .json are read as .jsonl is. What is passed over of a directory or a glob
    (find_files.py), and how many documents are null or empty, is said and recorded."""

    path: str
    field: str = "text"  # of a .jsonl object or a .parquet column
    weight: Weight = 1.0


@record
class Tfds:
    """A TensorFlow Datasets name, prepared as array_record; read without TensorFlow."""

    name: str  # NAME, of its default config; NAME/CONFIG; NAME/CONFIG:VERSION
    split: str = "train"
    data_dir: str | None = None  # None: tfds' own default directory
    field: str = "text"
    weight: Weight = 1.0


@record
class Shards:
    """A directory that `python -m gptjax.prepare` wrote."""

    path: str
    weight: Weight = 1.0


Source = Embedded | Text | Tfds | Shards


@record
class Bytes:
    """The 256 bytes of UTF-8 and an end-of-text token: 257 ids."""


@record
class Gpt2Bpe:
    """GPT-2's byte-level BPE, 50,257 ids. path: a directory with encoder.json and vocab.bpe;
    None: found or fetched."""

    path: str | None = None


@record
class Gpt1Bpe:
    """GPT-1's lower-cased BPE with 40,000 merges: 40,478 ids, no end-of-text.

    path: a directory with encoder_bpe_40000.json and vocab_40000.bpe."""

    path: str | None = None
    # spacy: as published; basic: BERT's splitting, as Hugging Face does without spaCy
    words: Literal["spacy", "basic"] = "spacy"


@record
class SentencePiece:
    """A SentencePiece model file; path None: BPE with byte fallback, of `n_pieces`, trained on 12
    million characters of the run's own training text: of each source its share by weight, evenly
    from all of it."""

    # the least: 256 bytes, the specials, and some pieces
    n_pieces: Annotated[int, Bounds(300, 10**6)] = 4096
    path: str | None = None


Tokenizer = Bytes | Gpt2Bpe | Gpt1Bpe | SentencePiece


@record
class ByDocument:
    """Hold out whole documents, chosen by a digest of their text, so that copies of one document
    fall on the same side."""

    fraction: Fraction = 0.01


@record
class Tail:
    """Hold out the last part of every document: for a corpus that is one long text."""

    fraction: Fraction = 0.1


@record
class Separate:
    """Validate on another source; the training source is used whole."""

    source: Source


ValidationSplit = ByDocument | Tail | Separate


@record
class Data:
    """What is read. Several sources are mixed by weight, per row of n_ctx tokens."""

    sources: tuple[Source, ...] = ()  # empty: the embedded corpus, and the run says so
    tokenizer: Tokenizer = Gpt2Bpe()
    validation: ValidationSplit = ByDocument()
    # GPT-3 section 2.2 and Appendix B: no mask between packed documents
    document_attention: Literal["attend", "mask"] = "attend"
