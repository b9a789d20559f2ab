"""Recipes of curation: `webtext` (GPT-2), `gpt3`, and `web`, which later projects do.

webtext: Radford et al. 2019, section 2.1. Pages that Reddit's users linked to, with at least 3
karma, no links after December 2017; text by extractors of which neither is maintained today;
"de-duplication and some heuristic based cleaning", which are not described; no Wikipedia. Pages in
other languages were filtered out (section 3.7).

gpt3: Brown et al. 2005.14165, section 2.2, Table 2.2 and Appendix A. Common Crawl filtered by a
classifier of WebText, Wikipedia and books against raw pages; documents much like others removed
within each data set, and those like WebText from Common Crawl; n-grams of the evaluation tasks
removed (Appendix C). The weights are Table 2.2's, which add up to 1.01. No filter by language is
described.

web: one data set through the rules of Gopher, both kinds of duplicates, and masks for personal
data.
"""

from gptjax.config.curation import (
    Corpus,
    Curation,
    Decontaminate,
    ExactDuplicates,
    FuzzyDuplicates,
    Language,
    LinkedPages,
    MaskPersonalData,
    QualityClassifier,
    QualityRules,
    WithoutDomains,
)


def webtext() -> Curation:
    """GPT-2's WebText: pages that people linked to."""
    return Curation(
        name="webtext",
        corpora=(Corpus(name="webtext"),),
        stages=(
            LinkedPages(links="links.jsonl"),
            WithoutDomains(domains=("wikipedia.org",)),
            ExactDuplicates(by="url"),
            Language(),
            QualityRules(),
            ExactDuplicates(),
        ),
    )


def gpt3() -> Curation:
    """GPT-3's mixture: a filtered crawl and four data sets of high quality."""
    return Curation(
        name="gpt3",
        corpora=(
            Corpus(name="webtext2", weight=0.22),
            Corpus(name="books1", weight=0.08),
            Corpus(name="books2", weight=0.08),
            Corpus(name="wikipedia", weight=0.03),
            Corpus(name="common_crawl", weight=0.60),
        ),
        stages=(
            QualityClassifier(
                positives=("webtext2", "books1", "books2", "wikipedia"),
                negatives=("common_crawl",),
                corpora=("common_crawl",),
            ),
            FuzzyDuplicates(across=(("webtext2", "common_crawl"),)),
            Decontaminate(),
        ),
    )


def web() -> Curation:
    """A crawl through today's usual filters."""
    return Curation(
        name="web",
        corpora=(Corpus(name="web"),),
        stages=(
            Language(),
            QualityRules(),
            ExactDuplicates(),
            FuzzyDuplicates(shingle=5, bands=14, rows=8, similarity=0.7),
            MaskPersonalData(),
        ),
    )


CURATION = {"webtext": webtext, "gpt3": gpt3, "web": web}
