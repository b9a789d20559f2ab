"""What a run reads: sources of text, tokenizers, and how a validation split is held out."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, Fraction, record

Weight = Annotated[float, Bounds(1e-9, 1e9)]  # beside those of the other sources


@record
class Embedded:
    """The text that every CPython carries: its help topics, docstrings and standard library
    sources. Needs no file."""

    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Text:
    """A file, a directory or a glob of .txt, .jsonl or .parquet, each optionally .gz, .xz or .zst.
    A .txt file is one document.

    .ndjson and .json are read as .jsonl is. What is passed over of a directory or a glob
    (find_files.py), and how many documents are null or empty, is said and recorded."""

    path: str
    """A file, a directory or a glob."""
    field: str = "text"
    """Key of a .jsonl object, or column of a .parquet file, that holds the text."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Tfds:
    """A TensorFlow Datasets name, prepared as array_record; read without TensorFlow."""

    name: str
    """NAME (its default config), NAME/CONFIG or NAME/CONFIG:VERSION."""
    split: str = "train"
    """TFDS split, slices such as train[:10%] included."""
    data_dir: str | None = None
    """Directory of prepared data sets; None: TFDS' own default."""
    field: str = "text"
    """Feature that holds the text."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Shards:
    """A directory that `python -m gptjax.prepare` wrote."""

    path: str
    """The directory."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


Source = Embedded | Text | Tfds | Shards


@record
class Bytes:
    """The 256 bytes of UTF-8 and an end-of-text token: 257 ids."""


@record
class Gpt2Bpe:
    """GPT-2's byte-level BPE: 50,257 ids."""

    path: str | None = None
    """A directory with encoder.json and vocab.bpe; None: found on this machine, or fetched."""


@record
class Gpt1Bpe:
    """GPT-1's lower-cased BPE with 40,000 merges: 40,478 ids, no end-of-text."""

    path: str | None = None
    """A directory with encoder_bpe_40000.json and vocab_40000.bpe; None: found on this machine, or
    fetched."""
    words: Literal["spacy", "basic"] = "spacy"
    """How text is split into words before BPE. spacy: as published; basic: BERT's splitting, as
    Hugging Face does without spaCy."""


@record
class SentencePiece:
    """SentencePiece: a model file, or BPE with byte fallback trained on the run's own text."""

    n_pieces: Annotated[int, Bounds(300, 10**6)] = 4096
    """Pieces of a model that is trained: 256 bytes and the special tokens among them."""
    path: str | None = None
    """A SentencePiece model file; None: one is trained on 12 million characters of the training
    text, of each source its share by weight."""


Tokenizer = Bytes | Gpt2Bpe | Gpt1Bpe | SentencePiece


@record
class ByDocument:
    """Hold out whole documents, chosen by a digest of their text, so that copies of one document
    fall on the same side."""

    fraction: Fraction = 0.01
    """Expected share of documents that are held out."""


@record
class Tail:
    """Hold out the last part of every document: for a corpus that is one long text."""

    fraction: Fraction = 0.1
    """Share of every document's characters that is held out."""


@record
class Separate:
    """Validate on another source; the training source is used whole."""

    source: Source
    """The source to validate on."""


ValidationSplit = ByDocument | Tail | Separate


@record
class Data:
    """What is read. Several sources are mixed by weight, per row of n_ctx tokens."""

    sources: tuple[Source, ...] = ()
    """What is read; (): the embedded corpus, and the run says so."""
    tokenizer: Tokenizer = Gpt2Bpe()
    """Text to token ids."""
    validation: ValidationSplit = ByDocument()
    """How validation text is held out."""
    document_attention: Literal["attend", "mask"] = "attend"
    """Whether a token attends to earlier documents of its row: attend, as GPT-3 section 2.2 and
    Appendix B, or mask."""
