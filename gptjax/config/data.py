"""Config of the training data: text sources, tokenizers, and the validation split."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, Fraction, record

Weight = Annotated[float, Bounds(1e-9, 1e9)]


@record
class Embedded:
    """The text that every CPython installation contains: help topics, docstrings and standard
    library sources. Needs no files.
    """

    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Text:
    """A file, a directory or a glob of .txt, .jsonl or .parquet files, each optionally .gz, .xz or
    .zst.

    A .txt file is one document. .ndjson and .json are read as .jsonl. Files skipped in a directory
    or glob (find_files.py), and counts of null and empty documents, are printed and recorded.
    """

    path: str
    """A file, a directory or a glob."""
    field: str = "text"
    """Key of a .jsonl object, or column of a .parquet file, that holds the text."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Tfds:
    """A TensorFlow Datasets data set, prepared as array_record; read without TensorFlow."""

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
    """A directory written by `python -m gptjax.prepare`."""

    path: str
    """The directory."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class Stream:
    """Files of .jsonl or .parquet (or .txt), compressed or not, that are tokenized while the run
    reads them: it starts at once, and `prepare` does not take them.

    Documents come in the order of the files' names. They are not shuffled as prepared ones are:
    only rows are, within windows of shuffle_rows.
    """

    path: str
    """A file, a directory or a glob, on a disk or at a URL that fsspec reads, such as
    gs://BUCKET/*.parquet."""
    field: str = "text"
    """Key of a .jsonl object, or column of a .parquet file, that holds the text."""
    shuffle_rows: Annotated[int, Bounds(1, 2**20)] = 256
    """Rows that are shuffled among each other; they are kept in memory. 1: none, rows come in the
    order of the text."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


@record
class HfDataset:
    """A data set of Hugging Face's `datasets`, streamed as `Stream` is; needs
    requirements-stream.txt."""

    name: str
    """Its name on the Hub, or a directory."""
    config: str | None = None
    """Its configuration, such as en; None: the default one."""
    split: str = "train"
    """Its split."""
    revision: str | None = None
    """Commit of the Hub; None: the newest, which another run may find changed."""
    field: str = "text"
    """Column that holds the text."""
    shuffle_rows: Annotated[int, Bounds(1, 2**20)] = 256
    """As in `Stream`."""
    weight: Weight = 1.0
    """Share of rows, relative to the other sources."""


Streamed = Stream | HfDataset
Source = Embedded | Text | Tfds | Shards | Stream | HfDataset


@record
class Bytes:
    """Byte-level tokenizer: the 256 bytes of UTF-8 and an end-of-text token, 257 ids."""


@record
class Gpt2Bpe:
    """GPT-2's byte-level BPE, 50,257 ids."""

    path: str | None = None
    """A directory with encoder.json and vocab.bpe; None: searched for in the usual places, else
    downloaded."""


@record
class Gpt1Bpe:
    """GPT-1's lower-cased BPE with 40,000 merges: 40,478 ids, no end-of-text token."""

    path: str | None = None
    """A directory with encoder_bpe_40000.json and vocab_40000.bpe; None: searched for in the usual
    places, else downloaded."""
    words: Literal["spacy", "basic"] = "spacy"
    """How text is split into words before BPE. spacy: as published; basic: BERT's splitting, as
    Hugging Face does without spaCy."""


@record
class SentencePiece:
    """A SentencePiece model: of a file, or BPE with byte fallback trained on the run's own text."""

    n_pieces: Annotated[int, Bounds(300, 10**6)] = 4096
    """Pieces of a trained model, including 256 bytes and the special tokens."""
    path: str | None = None
    """A SentencePiece model file; None: train one on 12 million characters of the training text,
    from each source in proportion to its weight and spread evenly over it."""


@record
class TrainedBpe:
    """Byte-level BPE as GPT-2's, its vocabulary trained on the run's own text."""

    n_vocab: Annotated[int, Bounds(257, 10**6)] = 4096
    """Ids: 256 bytes, a token for each merge, end-of-text."""
    path: str | None = None
    """The tokenizer.json of one trained before; None: train one on 12 million characters of the
    training text, from each source in proportion to its weight and spread evenly over it."""


@record
class TokenizerJson:
    """Any tokenizer.json of Hugging Face's tokenizers library, as the families after GPT-3 have."""

    path: str | None = None
    """The file, or its folder, or a .gguf file; None: that which lies next to the weights."""


@record
class Tiktoken:
    """A file of tokens and ranks as tiktoken reads it: Llama 3's tokenizer.model as Meta publishes
    it, and OpenAI's *.tiktoken."""

    path: str | None = None
    """The file, or a folder with tokenizer.model."""
    family: Literal["llama3", "cl100k_base", "o200k_base", "o200k_harmony"] = "llama3"
    """Whose regular expression and special tokens, which the file does not say."""


@record
class ChatTokens:
    """A tokenizer without a chat template, and after its ids those of <|system|>, <|user|>,
    <|assistant|> and <|end|>: of a model that continued text and was fine-tuned on conversations.
    """

    base: Bytes | Gpt2Bpe | Gpt1Bpe | SentencePiece | TrainedBpe
    """The tokenizer of the model that continued text."""


Tokenizer = (
    Bytes | Gpt2Bpe | Gpt1Bpe | SentencePiece | TrainedBpe | TokenizerJson | Tiktoken | ChatTokens
)


@record
class ByDocument:
    """Validation on whole documents, chosen by a hash of their text, so that copies of a document
    fall on the same side.
    """

    fraction: Fraction = 0.01
    """Expected share of documents that are held out."""


@record
class Tail:
    """Validation on the last part of every document: for a corpus that is one long text."""

    fraction: Fraction = 0.1
    """Share of every document's characters that is held out."""


@record
class Separate:
    """Validation on another source; all of the training sources is used for training."""

    source: Source
    """The source to validate on."""


ValidationSplit = ByDocument | Tail | Separate


@record
class Data:
    """What a run reads. Multiple sources are mixed by weight, per row of n_ctx tokens."""

    sources: tuple[Source, ...] = ()
    """Text sources; (): the embedded corpus, with a printed notice."""
    tokenizer: Tokenizer = Gpt2Bpe()
    """Text to token ids."""
    validation: ValidationSplit = ByDocument()
    """How validation text is held out."""
    document_attention: Literal["attend", "mask", "restart"] = "attend"
    """Whether a token attends to earlier documents of its row: attend, as GPT-3 section 2.2 and
    Appendix B; mask: it does not, as Llama 3; restart: it does not, and positions begin at 0 in
    each document."""

    @property
    def separates_documents(self) -> bool:
        """Whether tokens attend to their own document only."""
        return self.document_attention != "attend"
