"""The report of a curation: report.html, with its pictures inside, and README.md, the data card in
the form of model hubs (a YAML head, then Markdown).
"""

import dataclasses
import heapq
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import yaml

from gptjax.curation import classifier, explain, parts
from gptjax.report import html_page, loss_plot
from gptjax.runtime import checksums, units

N_SAMPLES, SAMPLE_CHARS = 3, 600  # of each data set; beginnings of documents
COLORS = ("#4C78A8", "#D1495B", "#59A14F", "#B07AA1", "#F28E2B", "#76B7B2", "#9C755F")
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # of documents


@dataclasses.dataclass(frozen=True)
class CorpusSummary:
    """What is left of a data set. lengths: characters of its documents, in groups of a tenth of a
    decade. samples: beginnings of documents. tokens: of training and of validation; None without
    shards. weight: its share of training rows.
    """

    name: str
    documents: int
    text_bytes: int
    tokens: tuple[int, int] | None
    weight: float
    lengths: np.ndarray
    samples: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished curation. tasks: whose n-grams were removed. stages: name -> the ledger of all
    data sets. dropped: (stage, reason, documents, bytes, a few (id, beginning)), in order of stage
    and number.
    """

    name: str
    recipe: str
    tasks: list[str]
    versions: dict[str, str]
    stages: dict[str, parts.Ledger]
    corpora: list[CorpusSummary]
    dropped: list[tuple[str, str, int, int, list[tuple[str, str]]]]
    alpha: float | None
    auc: float | None


LENGTH_BINS = np.logspace(1, 8, 71)  # characters


def read_report(directory: pathlib.Path) -> Report:
    """Reads a finished curation. Raises a one-line ValueError if it is not finished, or damaged."""
    if not (directory / "manifest.json").exists():
        raise ValueError(f"{directory} has no finished curation; run the same command to its end")
    manifest = checksums.read(directory / "manifest.json")
    stages = {
        name: sum((parts.Ledger.from_json(record) for record in ledgers.values()), parts.Ledger())
        for name, ledgers in manifest["stages"].items()
    }
    last = list(manifest["stages"].values())[-1]
    corpora = []
    for name, record in last.items():
        ledger = parts.Ledger.from_json(record)
        lengths, samples = _read_texts(sorted((directory / "text" / name).glob("*.parquet")))
        shards = manifest["shards"]
        tokens = None
        if name in shards:
            tokens = tuple(shards[name][split]["tokens"] for split in ("train", "validation"))
        weight = manifest["weights"][name]
        corpora.append(CorpusSummary(name, *ledger.written, tokens, weight, lengths, samples))
    return Report(
        manifest["name"],
        manifest["recipe"],
        manifest["tasks"],
        manifest["versions"],
        stages,
        corpora,
        [
            (folder.name, reason, *counts, samples.get(reason, []))
            for folder in explain.stage_folders(directory)
            if folder.name in stages
            for samples in [_read_dropped(sorted(folder.glob("*.dropped.parquet")))]
            for reason, counts in sorted(
                stages[folder.name].dropped.items(), key=lambda item: -item[1][0]
            )
        ],
        manifest["alpha"],
        _read_auc(directory),
    )


def _read_texts(paths: Sequence[pathlib.Path]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The lengths of all documents, and those documents with the smallest random numbers."""
    lengths = np.zeros(len(LENGTH_BINS) + 1, np.int64)
    samples: list[tuple[float, str, str]] = []
    for path in paths:
        for page_id, text in parts.read_rows(path, ["id", "text"]):
            lengths[np.searchsorted(LENGTH_BINS, len(text), "right")] += 1
            order = classifier.uniform(0, "report", page_id)
            samples = heapq.nsmallest(N_SAMPLES, [*samples, (order, page_id, text[:SAMPLE_CHARS])])
    return lengths, [(page_id, text) for _, page_id, text in samples]


def _read_dropped(paths: Sequence[pathlib.Path]) -> dict[str, list[tuple[str, str]]]:
    """The first few documents dropped for each reason: (id and detail, beginning)."""
    samples: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        for page_id, reason, detail, excerpt in parts.read_rows(
            path, ["id", "reason", "detail", "excerpt"]
        ):
            found = samples.setdefault(reason, [])
            if len(found) < N_SAMPLES:
                found.append((f"{page_id}{f' ({detail})' * bool(detail)}", excerpt))
    return samples


def _read_auc(directory: pathlib.Path) -> float | None:
    """The AUC of the last quality classifier, if there is one."""
    models = sorted(directory.glob("*-quality_classifier/learned/model.npy"))
    return classifier.Classifier.load(models[-1]).auc if models else None


# --- tables ---------------------------------------------------------------------------------------


def stage_rows(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns (head, rows) of the table of stages."""
    head = ("stage", "read", "kept", "changed", "dropped", "text before", "text after")
    rows = [
        (
            name,
            *(
                f"{n:,}"
                for n, _ in (ledger.read, ledger.kept, ledger.changed, ledger.dropped_total)
            ),
            units.human_bytes(ledger.read[1]),
            units.human_bytes(ledger.written[1]),
        )
        for name, ledger in report.stages.items()
    ]
    return head, rows


def corpus_rows(
    report: Report, train_tokens: float | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns (head, rows) of the table of data sets. train_tokens: of a training run; None: as
    many as there are. Epochs are how often a run reads a data set, as in GPT-3's Table 2.2.
    """
    total_weight = sum(corpus.weight for corpus in report.corpora)
    total = train_tokens or sum(corpus.tokens[0] for corpus in report.corpora if corpus.tokens)
    head = ("data set", "documents", "text", "tokens to train on", "to validate", "share of rows")
    if total:
        head += (f"epochs at {units.si(total)}",)
    rows = []
    for corpus in report.corpora:
        share = corpus.weight / total_weight
        n_train, n_validation = corpus.tokens or (0, 0)
        epochs = f"{share * total / n_train:.2f}" if n_train else ""
        rows.append(
            (
                corpus.name,
                f"{corpus.documents:,}",
                units.human_bytes(corpus.text_bytes),
                *(f"{n:,}" if corpus.tokens else "" for n in (n_train, n_validation)),
                f"{share:.1%}",
                *([epochs] if total else []),
            )
        )
    return head, rows


# --- pictures -------------------------------------------------------------------------------------


def plot_stages(report: Report) -> bytes:
    """Draws the share of the documents that each stage kept, as a .png."""
    figure = loss_plot.new_figure(9, 0.9 + 0.42 * len(report.stages))
    axes = figure.subplots()
    for row, ledger in enumerate(report.stages.values()):
        share = ledger.kept[0] / max(1, ledger.read[0])
        axes.barh(row, 1, color=loss_plot.FAINT)
        axes.barh(row, share, color=COLORS[0])
        label = f"{ledger.kept[0]:,} of {ledger.read[0]:,}"
        axes.text(1.01, row, label, va="center", fontsize=9, color=loss_plot.INK)
    axes.set_yticks(range(len(report.stages)), [name[3:] for name in report.stages])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("documents kept, of those that a stage reads", color=loss_plot.INK)
    return _png(figure, axes)


def plot_lengths(corpora: Sequence[CorpusSummary]) -> bytes:
    """Draws the lengths of the documents of each data set, as a .png."""
    figure = loss_plot.new_figure(9, 3.4)
    axes = figure.subplots()
    for number, corpus in enumerate(corpora):
        share = corpus.lengths[1:-1] / max(1, corpus.lengths.sum())
        axes.stairs(
            share,
            LENGTH_BINS,
            color=COLORS[number % len(COLORS)],
            lw=1.6,
            label=loss_plot.escape(corpus.name),
        )
    axes.set_xscale("log")
    used = np.flatnonzero(sum(corpus.lengths[1:-1] for corpus in corpora))
    if len(used):
        axes.set_xlim(float(LENGTH_BINS[used[0]]) / 1.3, float(LENGTH_BINS[used[-1] + 1]) * 1.3)
    axes.set_xlabel("characters of a document", color=loss_plot.INK)
    axes.set_ylabel("share of documents", color=loss_plot.INK)
    return _png(figure, axes)


def keep_rates(notes: dict[str, int]) -> list[tuple[float, int, int]]:
    """Returns (mean score, pages, pages kept) of each group of the classifier's counts."""
    groups = [name.removeprefix("score ") for name in notes if name.startswith("score ")]
    return [
        (notes[f"millionths {group}"] / 1e6 / notes[f"score {group}"], *counts)
        for group in groups
        for counts in [(notes[f"score {group}"], notes[f"kept {group}"])]
    ]


def plot_keep_rate(notes: dict[str, int], alpha: float) -> bytes:
    """Draws the share of pages kept by score against the Pareto rule, as a .png."""
    figure = loss_plot.new_figure(9, 3.6)
    axes = figure.subplots()
    scores = np.linspace(0, 1, 200)
    axes.plot(
        scores,
        classifier.keep_probability(scores, alpha),
        color=COLORS[1],
        label="(2 - score)^-alpha",
    )
    groups = np.array(keep_rates(notes))
    rate = groups[:, 2] / groups[:, 1]
    # of the rule's own rate, since that of few pages is 0 or 1
    expected = classifier.keep_probability(groups[:, 0], alpha)
    error = np.sqrt(expected * (1 - expected) / groups[:, 1])
    axes.errorbar(
        groups[:, 0],
        rate,
        yerr=2 * error,
        fmt="o",
        ms=4,
        color=COLORS[0],
        capsize=3,
        label="pages kept, and two standard errors of the rule",
    )
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("score of the classifier", color=loss_plot.INK)
    axes.set_ylabel("share kept", color=loss_plot.INK)
    return _png(figure, axes)


def _png(figure: Any, axes: Any) -> bytes:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
        axes.grid(True, color=loss_plot.FAINT, lw=0.8)
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    return content.getvalue()


# --- pages ----------------------------------------------------------------------------------------


def render_html(report: Report, train_tokens: float | None) -> str:
    """Returns report.html."""
    blocks = [
        f"<h1>{html_page.escape(report.name)}</h1>",
        "<h2>Data sets</h2>",
        html_page.table(*corpus_rows(report, train_tokens)),
        html_page.image(plot_lengths(report.corpora), "lengths of documents"),
        "<h2>Stages</h2>",
        html_page.table(*stage_rows(report)),
        html_page.image(plot_stages(report), "documents kept and dropped by each stage"),
    ]
    for name, ledger in report.stages.items():
        if report.alpha is not None and keep_rates(ledger.notes):
            auc = f"AUC on held-out documents {report.auc:.4f}" if report.auc is not None else ""
            blocks += [
                f"<h2>Quality classifier</h2><p>{html_page.escape(name)}: {auc}</p>",
                html_page.image(plot_keep_rate(ledger.notes, report.alpha), "share kept by score"),
            ]
    blocks.append("<h2>Samples of what was kept</h2>")
    for corpus in report.corpora:
        blocks += [_quote(*sample) for sample in corpus.samples]
    blocks.append("<h2>What was dropped, and why</h2>")
    head = ("stage", "reason", "documents", "bytes")
    blocks.append(
        html_page.table(
            head, [(s, r, f"{n:,}", units.human_bytes(size)) for s, r, n, size, _ in report.dropped]
        )
    )
    for stage, reason, _, _, samples in report.dropped:
        blocks.append(f"<h3>{html_page.escape(stage)}: {html_page.escape(reason)}</h3>")
        blocks += [_quote(*sample) for sample in samples]
    recipe = html_page.escape(f"{report.recipe}\n{report.versions}")
    if report.tasks:
        tasks = html_page.escape(", ".join(report.tasks))
        blocks.append(f"<h2>Tasks whose n-grams were removed</h2><p>{tasks}</p>")
    blocks.append(f"<h2>Recipe</h2><blockquote>{recipe}</blockquote>")
    return html_page.page(f"curation {report.name}", blocks)


def _quote(title: str, text: str) -> str:
    title, text = html_page.escape(title), html_page.escape(text)
    return f"<p>{title}</p><blockquote>{text}</blockquote>"


def render_card(report: Report) -> str:
    """Returns README.md: the data card."""
    documents = sum(corpus.documents for corpus in report.corpora)
    tasks = [f"N-grams of these tasks were removed: {', '.join(report.tasks)}.", ""]
    tasks = tasks if report.tasks else []
    head = {
        "pretty_name": report.name,
        "task_categories": ["text-generation"],
        "size_categories": [size_category(documents)],
        "configs": [
            {"config_name": corpus.name, "data_files": f"text/{corpus.name}/*.parquet"}
            for corpus in report.corpora
        ],
    }
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {report.name}",
        "",
        f"{documents:,} documents, made by `python -m gptjax.curate`. Each row has `number`, `id`, "
        "`url` and `text`.",
        "",
        "## Data sets",
        "",
        *_markdown(*corpus_rows(report, None)),
        "",
        "## Processing",
        "",
        *_markdown(*stage_rows(report)),
        "",
        "Dropped:",
        "",
        *(f"- {stage}: {reason}, {n:,} documents" for stage, reason, n, _, _ in report.dropped),
        "",
        *tasks,
        "## Recipe",
        "",
        f"```\n{report.recipe}\n```",
        "",
        "Made with " + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
        "## Licence, personal data, limits",
        "",
        "To be written by who publishes it: the sources' licences, whether personal data were "
        "masked, and what the text must not be used for.",
    ]
    return "\n".join([*lines, ""])


def size_category(documents: int) -> str:
    """Returns the category of a number of documents on model hubs, as 10K<n<100K."""
    for number, name in enumerate(SIZES):
        if documents < 10 ** (3 + number):
            return f"n<{name}" if number == 0 else f"{SIZES[number - 1]}<n<{name}"
    return f"n>{SIZES[-1]}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]
