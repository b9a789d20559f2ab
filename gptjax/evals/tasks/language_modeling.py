"""Language modeling on whole texts: perplexity per word or token, bits per byte or character. GPT-2
Table 3; Penn Treebank also in GPT-3 section 3.1.1.

The negative log-likelihood of the detokenized text, divided by the number of units in the published
text (openai/gpt-2 issue 78). The stride of the window is not stated: Windows() predicts a whole
context at once, which agrees with others' results for the released weights
(huggingface/transformers issue 13761, karpathy/llm.c issue 276). They also show that WikiText-2's
column is of its raw text per token, WikiText-103's per word: the two test sets are the same text.
The Penn Treebank's newlines count as words; so do those of the 1 Billion Words, which has a
sentence per row [chosen].
"""

import functools
from collections.abc import Callable

from gptjax.config.evaluation import Metric, Protocol, Windows
from gptjax.evals import detokenizers
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt2_scores, gpt3_scores


def count_words(text: str) -> int:
    """Number of words separated by whitespace."""
    return len(text.split())


def count_words_and_lines(text: str) -> int:
    """Number of words and newlines; the last newline counts even if it is missing."""
    return len(text.split()) + len(text.rstrip("\n").split("\n"))


def make_task(
    name: str,
    summary: str,
    metric: Metric,
    units: Callable[[str], int],
    rules: list[tuple[str, str]],
    example: str,
    paper_scores: tuple[PaperScores, ...],
    data_hint: str,
    tfds: str | None = None,
) -> Task:
    """A task that scores whole texts. units: counts the units of the published text."""

    def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
        text = row["text"]
        clean_text = detokenizers.apply(text, rules)
        return [Item(id=row["id"], contexts=("",), completions=(clean_text,), units=units(text))]

    return Task(
        name=name,
        summary=summary,
        protocol=Protocol(shots=0, method=Windows(), metric=metric),
        items=items,
        schema={"text": "text: all of it, as it was published"},
        example={"id": "0", "text": example},
        splits=("test", "test"),
        tfds=tfds,
        data_hint=data_hint,
        paper_scores=paper_scores,
    )


WIKITEXT_HINT = (
    "wiki.test.raw of wikitext-2-raw-v1 (Hugging Face datasets: Salesforce/wikitext) as "
    "wikitext2.txt or wikitext103.txt"
)
WIKI_EXAMPLE = (
    ' \n = A bridge = \n \n It cost 2 @,@ 000 crowns ( about 3 @.@ 5 a stone ) ; " cheap " , he '
    "said . \n"
)
MATTMAHONEY_HINT = "the last 5,000,000 bytes of {0} (mattmahoney.net/dc/{0}.zip) as {0}.txt"
per_word_task = functools.partial(make_task, metric="perplexity", units=count_words)
TASKS = (
    per_word_task(
        name="ptb",
        summary="Penn Treebank, perplexity by word",
        units=count_words_and_lines,
        rules=detokenizers.PTB,
        example=" the bank 's chairman did n't say more than N % \n it was a quiet day \n",
        paper_scores=(
            *gpt2_scores("perplexity", 65.85, 47.33, 40.31, 35.76),
            *gpt3_scores("perplexity", zero="20.5"),
        ),
        data_hint="ptb.test.txt of www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz as ptb.txt",
    ),
    make_task(
        name="wikitext2",
        summary="WikiText-2, perplexity by token of the raw text",
        metric="perplexity",
        units=lambda text: 0,
        rules=[],
        example=WIKI_EXAMPLE,
        paper_scores=gpt2_scores("perplexity", 29.41, 22.76, 19.93, 18.34),
        data_hint=WIKITEXT_HINT,
    ),
    per_word_task(
        name="wikitext103",
        summary="WikiText-103, perplexity by word",
        rules=detokenizers.WIKITEXT,
        example=WIKI_EXAMPLE,
        paper_scores=gpt2_scores("perplexity", 37.50, 26.37, 22.05, 17.48),
        data_hint=WIKITEXT_HINT,
    ),
    make_task(
        name="enwik8",
        summary="Wikipedia's XML, bits by byte",
        metric="bits_per_byte",
        units=lambda text: len(text.encode()),
        rules=[],
        example="<page>\n  <title>Caf\u00e9</title>\n</page>\n",
        paper_scores=gpt2_scores("bits_per_byte", 1.16, 1.01, 0.97, 0.93),
        data_hint=MATTMAHONEY_HINT.format("enwik8"),
    ),
    make_task(
        name="text8",
        summary="Wikipedia in lower-case letters, bits by character",
        metric="bits_per_character",
        units=len,
        rules=[],
        example="a bridge over the river was built in one nine zero two",
        paper_scores=gpt2_scores("bits_per_character", 1.17, 1.06, 1.02, 0.98),
        data_hint=MATTMAHONEY_HINT.format("text8"),
    ),
    per_word_task(
        name="lm1b",
        summary="1 Billion Words, shuffled sentences, perplexity by word",
        units=count_words_and_lines,
        rules=detokenizers.LM1B,
        example='" I \'m not sure , " she said ( in May ) , " that it \'s 5 % . "',
        paper_scores=gpt2_scores("perplexity", 75.20, 55.72, 44.575, 42.16),
        data_hint="news.en.heldout-00000-of-00050 of statmt.org/lm-benchmark, a row a sentence",
        tfds="lm1b",
    ),
)
