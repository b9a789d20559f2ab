"""Translation between English and French (WMT 14), German and Romanian (WMT 16). GPT-3 section 3.3,
GPT-2 section 3.6.

GPT-3: `SOURCE =` after demonstrations, one per line; zero-shot a question that names the language.
BLEU is the first of its Table H.1, `bleu_mb`: multi-bleu.perl with Moses tokenization; `bleu`,
SacreBLEU's, is the other. GPT-2: pairs `ENGLISH = FRENCH`, greedy, the first sentence is kept; the
number of pairs is not stated: five [chosen]. Demonstrations come from the first 10,000 pairs of the
training set.
"""

from gptjax.config.evaluation import Beam, Greedy, Protocol
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt2_scores, gpt3_scores, prompt_variant

LANGUAGES = {"en": "English", "fr": "French", "de": "German", "ro": "Romanian"}
EXAMPLE = {
    "en": "The bridge is closed today.",
    "fr": "Le pont est ferm\u00e9 aujourd'hui.",
    "de": "Die Br\u00fccke ist heute geschlossen.",
    "ro": "Podul este \u00eenchis ast\u0103zi.",
}
GPT2_PROTOCOL = Protocol(
    shots=5, method=Greedy(n_tokens=128), metric="bleu_mb", separator="\n", prompt_variant="gpt2"
)


def make_task(pair: str, source: str, target: str, paper_scores: tuple[PaperScores, ...]) -> Task:
    """The task of one direction. pair: TFDS' name of the language pair."""
    year, other = ("14", "fr") if "fr" in pair else ("16", source if target == "en" else target)

    def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
        variant = prompt_variant(protocol, "gpt3", "gpt2")
        context = f"{row[source]} ="
        if variant == "gpt3" and shots == 0:
            context = f"Q: What is the {LANGUAGES[target]} translation of {row[source]} A:"
        facts = {"language": target} | ({"sentences": 1} if variant == "gpt2" else {})
        return [
            Item(
                id=row["id"],
                contexts=(context,),
                completions=(f" {row[target]}",),
                answers=(row[target],),
                facts=facts,
            )
        ]

    return Task(
        name=f"wmt{year}_{source}_{target}",
        summary=f"{LANGUAGES[source]} to {LANGUAGES[target]}, BLEU",
        protocol=Protocol(shots=64, method=Beam(n_tokens=128), metric="bleu_mb", separator="\n"),
        items=items,
        schema={source: f"text: {LANGUAGES[source]}", target: f"text: {LANGUAGES[target]}"},
        example={"id": "0", source: EXAMPLE[source], target: EXAMPLE[target]},
        splits=("test", "train[:10000]"),
        tfds=f"wmt{year}_translate/{pair}",
        data_hint=(
            f"`sacrebleu -t wmt{year}{'/full' if other == 'fr' else ''} -l {source}-{target} "
            "--echo src ref`, a pair a line"
        ),
        scorer_source=(
            "moses-smt/mosesdecoder multi-bleu.perl on facebookresearch/XLM tools/tokenize.sh; "
            "mjpost/sacrebleu, tok intl"
        ),
        paper_scores=paper_scores,
        conventions={"gpt2": GPT2_PROTOCOL} if other == "fr" else {},
    )


TASKS = (
    make_task(
        "fr-en",
        "en",
        "fr",
        (
            *gpt2_scores("bleu_mb", 5),
            *gpt3_scores(
                "bleu_mb",
                "1.74/2.16/2.73/2.15/15.1/8.82/12.0/25.2",
                "0.49/8.00/14.8/15.9/20.3/23.3/24.9/28.3",
                "4.08/14.5/19.3/21.5/24.9/27.3/29.5/32.6",
            ),
        ),
    ),
    make_task(
        "fr-en",
        "fr",
        "en",
        (
            *gpt2_scores("bleu_mb", 11.5),
            *gpt3_scores(
                "bleu_mb",
                "1.81/2.53/3.47/3.13/20.6/15.1/21.8/21.2",
                "1.28/15.9/23.7/26.3/29.0/30.5/30.2/33.7",
                "4.98/25.5/28.5/31.1/33.7/34.9/36.6/39.2",
            ),
        ),
    ),
    make_task(
        "de-en",
        "en",
        "de",
        gpt3_scores(
            "bleu_mb",
            "1.70/2.27/2.31/2.43/12.9/8.66/10.4/24.6",
            "0.50/7.00/12.9/13.1/18.3/20.9/22.5/26.2",
            "3.42/12.3/15.4/17.1/20.9/23.0/26.6/29.7",
        ),
    ),
    make_task(
        "de-en",
        "de",
        "en",
        gpt3_scores(
            "bleu_mb",
            "2.06/2.87/3.41/3.63/21.5/17.3/23.0/27.2",
            "0.83/16.2/22.5/24.7/28.2/30.7/33.0/30.4",
            "3.25/22.7/26.2/29.2/32.7/34.8/37.3/40.6",
        ),
    ),
    make_task(
        "ro-en",
        "en",
        "ro",
        gpt3_scores(
            "bleu_mb",
            "2.14/2.65/2.53/2.50/3.46/4.24/5.32/14.1",
            "0.35/3.30/7.89/8.72/13.2/15.1/17.3/20.6",
            "1.25/5.90/9.33/10.7/14.3/16.3/18.0/21.0",
        ),
    ),
    make_task(
        "ro-en",
        "ro",
        "en",
        gpt3_scores(
            "bleu_mb",
            "2.08/2.71/3.09/3.15/16.3/8.34/20.2/19.9",
            "0.55/15.4/23.0/26.3/30.6/33.2/35.6/38.6",
            "1.25/20.7/25.8/29.2/33.1/34.8/37.0/39.5",
        ),
    ),
)
