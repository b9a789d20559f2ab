"""Config of curation: from raw pages to the text that a model is trained on, as a sequence of
stages. Values only.
"""

import datetime
import graphlib
import re
from typing import Annotated, Literal

from gptjax.config.data import ByDocument, Gpt2Bpe, Tokenizer, ValidationSplit, Weight
from gptjax.config.decontamination import Filter
from gptjax.config.record import Bounds, Seed, record

ByteCount = Annotated[int, Bounds(1, 2**31)]
Count = Annotated[int, Bounds(0, 10**15)]
Share = Annotated[float, Bounds(0, 1)]
Seconds = Annotated[float, Bounds(0, 10**6, above=True)]
Names = tuple[str, ...]


@record
class Corpus:
    """A data set of the mixture: files of .warc, .wet, .html, .txt, .jsonl or .parquet, compressed
    or not, on this machine or at any place that fsspec opens.
    """

    name: str
    """Name of the data set, the first part of its documents' ids."""
    path: str | None = None
    """A file, a directory or a glob; None: it is not there, and is left out."""
    field: str = "text"
    """Key of a .jsonl object, or column of a .parquet file, that holds the text."""
    id_field: str | None = None
    """Key or column that holds each document's id, which must be unique; None: the name of the
    file and the number of the document in it."""
    url_field: str = "url"
    """Key or column that holds the URL, where there is one."""
    weight: Weight = 1.0
    """Share of training rows, relative to the other data sets."""


@record
class ReadPages:
    """Reading, and extraction of text from HTML, in a process that is killed after a time."""

    library: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """What extracts the text. GPT-2 used Dragnet and Newspaper, which are no longer maintained."""
    main_content: bool = True
    """Whether menus, footers and the like are left out."""
    seconds: Seconds = 10.0
    """A page that takes more CPU time is dropped; time of the clock would depend on what else the
    machine does."""
    memory_bytes: Annotated[int, Bounds(2**28, 2**40)] = 2**31
    """A page that takes more memory is dropped."""
    document_bytes: ByteCount = 2**24
    """A larger page or document is dropped."""
    damaged: Literal["stop", "keep"] = "stop"
    """Of a file that is damaged or cut short: stop after all others, or keep what is before the
    damage."""


@record
class LinkedPages:
    """WebText's selection (GPT-2 section 2.1): pages that people linked to."""

    links: str
    """The link dumps: files of .jsonl with url and score, as Reddit's dumps of submissions."""
    karma: Annotated[int, Bounds(-(10**9), 10**9)] = 3
    """Lowest score of a link that counts: "at least 3 karma"."""
    before: str | None = "2018-01-01"
    """Links posted on this day (UTC) or later do not count, where created_utc is known; None: all
    count. The paper: no links after December 2017."""
    corpora: Names = ()
    """Data sets that it applies to; (): all."""

    def __post_init__(self):
        try:
            datetime.date.fromisoformat(self.before or "2000-01-01")
        except ValueError:
            raise ValueError(
                f"LinkedPages.before={self.before!r}: give a day, as 2018-01-01, or None"
            ) from None


@record
class WithoutDomains:
    """Drops the pages of some sites, with their subdomains. GPT-2: "We removed all Wikipedia
    documents from WebText"."""

    domains: Names
    """Domains, as wikipedia.org."""
    corpora: Names = ()
    """Data sets that it applies to; (): all."""


@record
class Language:
    """Keeps documents in some languages."""

    languages: Names = ("en",)
    """ISO 639-1 codes."""
    corpora: Names = ()
    """Data sets that it applies to; (): all."""


@record
class QualityRules:
    """Rules for natural text of Gopher (Rae et al. 2112.11446, Appendix A.1.1); GPT-2's "heuristic
    based cleaning" is not described, and GPT-3's paper names none."""

    words: tuple[int, int] = (50, 100_000)
    """Fewest and most words."""
    word_length: tuple[float, float] = (3.0, 10.0)
    """Least and greatest mean length of a word, in characters."""
    symbol_ratio: Share = 0.1
    """Most hashes, or ellipses, by words."""
    bullet_lines: Share = 0.9
    """Most lines that begin with a bullet."""
    ellipsis_lines: Share = 0.3
    """Most lines that end with an ellipsis."""
    alphabetic_words: Share = 0.8
    """Fewest words with an alphabetic character."""
    stop_words: Count = 2
    """Fewest words of: the, be, to, of, and, that, have, with; of an English text."""
    repetition: bool = True
    """Whether the rules for repeated lines, paragraphs and n-grams of the same appendix (Table A1)
    apply."""
    corpora: Names = ()
    """Data sets that it applies to; (): all."""

    def __post_init__(self):
        for name in ("words", "word_length"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(
                    f"QualityRules.{name}={(low, high)}: give the least, then the greatest"
                )


@record
class QualityClassifier:
    """GPT-3's classifier (Appendix A): logistic regression on HashingTF features of words, texts of
    high quality against raw pages; a document is kept if pareto(alpha) > 1 - score."""

    positives: Names
    """Data sets of high quality."""
    negatives: Names
    """Raw data sets."""
    corpora: Names
    """Data sets that are filtered."""
    alpha: Annotated[float, Bounds(1e-3, 1e3)] = 9.0
    """Shape of the Pareto distribution."""
    features: Annotated[int, Bounds(16, 2**24)] = 2**18
    """Number of features, Spark's default [chosen: the paper does not give it]."""
    l2: Annotated[float, Bounds(0, 1e6)] = 0.01
    """Penalty of the squares of the weights of standardized features, halved and added to the mean
    loss [chosen]."""
    documents: Annotated[int, Bounds(10, 10**7)] = 50_000
    """Most documents of each class that it learns from, a fifth of which is held out; of the raw
    pages at most a tenth, since those that it learns from score low, whatever they are [chosen]."""

    def __post_init__(self):
        if both := {*self.positives} & {*self.negatives}:
            raise ValueError(
                f"QualityClassifier has {', '.join(sorted(both))} in positives and in negatives: "
                "name a data set in one of them"
            )


@record
class ExactDuplicates:
    """Of documents with the same text or URL, in any data set, keeps the first."""

    by: Literal["text", "url"] = "text"
    """What is compared. Text: white space apart; URL: without scheme, www., fragment and a slash at
    the end, hosts in punycode and characters escaped alike."""


@record
class FuzzyDuplicates:
    """Of documents with nearly the same shingles keeps the first: MinHash LSH, and exact Jaccard
    similarity of the pairs that it finds.

    GPT-3 (Appendix A) used Spark's MinHashLSH with 10 hashes, of which one equal hash makes a pair:
    bands=10, rows=1. Of documents of similarity s a share of 1 - (1 - s^rows)^bands is compared:
    65% of those of 0.1, so that work grows with the square of the number of documents that have
    some text in common, as a license or a menu. bands=14, rows=8 (datatrove's) compare 92% of those
    of 0.8 and 0.1% of those of 0.3.

    Memory: 16 bytes for each pair of duplicates, whose number is the square of that of copies;
    with Spark also all sets that agree in a band, 4 bytes a shingle.
    """

    shingle: Annotated[int, Bounds(1, 100)] = 5
    """Words in sequence of which a document is a set [chosen]. GPT-3 used the classifier's single
    words, of which any two English texts have some in common."""
    bands: Annotated[int, Bounds(1, 1000)] = 10
    """Number of bands; documents that agree in all hashes of one are compared."""
    rows: Annotated[int, Bounds(1, 100)] = 1
    """Hashes of a band."""
    similarity: Share = 0.8
    """Least Jaccard similarity of a duplicate [chosen: the paper does not give it]."""
    across: tuple[tuple[str, str], ...] = ()
    """Pairs of data sets: documents of the second that are like one of the first are dropped, as
    those within a data set always are. GPT-3: WebText was removed from Common Crawl."""
    seed: Seed = 0
    """Of the hash functions."""

    def __post_init__(self):
        try:
            pairs = graphlib.TopologicalSorter[str]()
            for first, second in self.across:
                pairs.add(second, first)
            pairs.prepare()
        except graphlib.CycleError as error:
            raise ValueError(
                f"FuzzyDuplicates.across drops documents of {' and '.join(error.args[1][:-1])} for "
                "each other, so that none would be left: give one direction"
            ) from None


@record
class Decontaminate:
    """Removes n-grams of evaluation tasks, as `python -m gptjax.decontaminate filter` does (GPT-3
    Appendix C)."""

    tasks: Names = ()
    """Tasks or families of them; (): all whose data are found."""
    task_data: str | None = None
    """Where TASK_SPLIT.jsonl and TASK.jsonl lie."""
    tfds_dir: str | None = None
    """Where TFDS' prepared sets lie; None: its own directory."""
    rule: Filter = Filter()
    """What counts as a match, and what is removed with it."""


@record
class MaskPersonalData:
    """Replaces personal data by what it is, as <email>."""

    kinds: tuple[Literal["email", "phone", "card", "iban", "ip"], ...] = (
        "email",
        "phone",
        "card",
        "iban",
        "ip",
    )
    """What is replaced."""
    corpora: Names = ()
    """Data sets that it applies to; (): all."""


Stage = (
    LinkedPages
    | WithoutDomains
    | Language
    | QualityRules
    | QualityClassifier
    | ExactDuplicates
    | FuzzyDuplicates
    | Decontaminate
    | MaskPersonalData
)


@record
class Curation:
    """A recipe: data sets, and the stages that their documents go through, in order."""

    name: str
    """Name of the recipe."""
    corpora: tuple[Corpus, ...]
    """Data sets, those whose documents are kept first."""
    read: ReadPages = ReadPages()
    """How files become documents."""
    stages: tuple[Stage, ...] = ()
    """Stages after reading."""
    tokenizer: Tokenizer | None = Gpt2Bpe()
    """Text to token ids; None: the result is text alone."""
    validation: ValidationSplit = ByDocument()
    """How validation text is held out, when the text becomes tokens."""
    part_bytes: Annotated[int, Bounds(2**10, 2**31)] = 2**26
    """Bytes of text in a part, the unit of work."""
    seed: Seed = 0
    """Of every random choice."""

    def __post_init__(self):
        for once in (QualityClassifier, Decontaminate):
            if sum(isinstance(stage, once) for stage in self.stages) > 1:
                raise ValueError(f"{once.__name__} is given twice: give it once")
        for corpus in self.corpora:
            if not re.fullmatch(r"\w[\w.-]*", corpus.name):
                raise ValueError(
                    f"a data set is called {corpus.name!r}: give letters, digits, _, - and dots"
                )
        names = [corpus.name for corpus in self.corpora]
        if len(set(names)) < len(names):
            raise ValueError(f"corpora are called {', '.join(names)}: give each its own name")
        for stage in self.stages:
            for name in corpora_of(stage):
                if name not in names:
                    raise ValueError(
                        f"{type(stage).__name__} names the data set {name!r}; there are "
                        f"{', '.join(names)}"
                    )


def stage_name(stage: Stage) -> str:
    """Returns the name of a stage: quality_rules."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(stage).__name__).lower()


def corpora_of(stage: Stage) -> Names:
    """Returns every data set that a stage names."""
    match stage:
        case QualityClassifier():
            return (*stage.positives, *stage.negatives, *stage.corpora)
        case FuzzyDuplicates():
            return tuple(name for pair in stage.across for name in pair)
        case ExactDuplicates() | Decontaminate():
            return ()
        case _:
            return stage.corpora
