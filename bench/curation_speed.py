"""How fast is curation, against datatrove and by the size of the input?

    python -m bench.curation_speed peer --text=DIR --work=DIR [--rounds=5] [--documents=4000]
        [--html=DIR] [--fasttext=FILE]
    python -m bench.curation_speed growth --text=DIR --work=DIR [--sizes=0.125e9,0.25e9,0.5e9,1e9]

peer: the same file through the same stages, interleaved; needs datatrove 0.10 in the same Python.
Records per second of processor time, children included, of reading, the stage and writing; medians
of rounds. --html: a tenth as many pages are made a WARC file, whose text trafilatura extracts on
both sides; with it, a WET file is made of the documents. --fasttext: lid.176.ftz or .bin, by which
datatrove identifies languages.
growth: the recipe `web` on made text of each size with two workers: seconds, processor time, and
the largest memory of all processes together. DIR has the texts of bench/curation.py.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench import curation_data
from gptjax.config import curation as config
from gptjax.config import parse

STAGES: dict[str, tuple[config.Stage, ...]] = {
    "read and write": (),
    "Gopher's rules": (config.QualityRules(),),
    "e-mail and IP addresses": (config.MaskPersonalData(kinds=("email", "ip")),),
    "fuzzy duplicates, 14 bands of 8": (config.FuzzyDuplicates(bands=14, rows=8, similarity=0.0),),
    "languages": (config.Language(),),
    "WET": (),
    "WARC, text by trafilatura": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("peer", "growth"))
    parser.add_argument("--text", type=parse.path_argument, required=True)
    parser.add_argument("--work", type=parse.path_argument, required=True)
    parser.add_argument("--rounds", type=parse.int_argument(1, 100), default=5)
    parser.add_argument("--documents", type=parse.int_argument(1, 10**6), default=4000)
    parser.add_argument("--html", type=parse.path_argument)
    parser.add_argument("--fasttext", type=parse.path_argument)
    parser.add_argument("--sizes", default="0.125e9,0.25e9,0.5e9,1e9")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    documents = curation_data.read_documents(args.text)
    texts = [text for some in documents.values() for text in some]
    random.Random(0).shuffle(texts)
    if args.mode == "peer":
        folders = dict.fromkeys(STAGES, args.work / "in")
        write_jsonl(texts[: args.documents], args.work / "in")
        for name in ("languages", "WET", "WARC, text by trafilatura"):
            del folders[name]
        if args.fasttext is not None:
            use_fasttext(args.fasttext)
            folders["languages"] = args.work / "in"
        if args.html is not None:
            write_warc(texts[: args.documents], "conversion", "text/plain", args.work / "wet")
            folders["WET"] = args.work / "wet"
            paths = sorted(args.html.rglob("*.html"))
            random.Random(0).shuffle(paths)
            pages = [path.read_text() for path in paths[: args.documents // 10]]
            write_warc(pages, "response", "text/html", args.work / "warc")
            folders["WARC, text by trafilatura"] = args.work / "warc"
        compare_with_datatrove(folders, args.work, args.rounds)
    else:
        measure_growth(texts, args.work, [float(size) for size in args.sizes.split(",")])


# --- against datatrove ----------------------------------------------------------------------------


def write_jsonl(texts: list[str], folder: Path) -> None:
    """Writes texts into a .jsonl file of a folder."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text, "id": str(n)}) for n, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join(lines))


def write_warc(pages: list[str], kind: str, mime_type: str, folder: Path) -> None:
    """Writes records into a WARC or WET file as Common Crawl's."""
    from warcio import statusandheaders, warcwriter  # pyright: ignore[reportMissingImports]

    folder.mkdir(exist_ok=True)
    http = statusandheaders.StatusAndHeaders(
        "200 OK", [("Content-Type", mime_type)], protocol="HTTP/1.1"
    )
    with (folder / "a.warc.gz").open("wb") as out:
        writer = warcwriter.WARCWriter(out)
        for n, page in enumerate(pages):
            record = writer.create_warc_record(
                f"http://pages.example/{n}",
                kind,
                payload=io.BytesIO(page.encode()),
                warc_content_type=None if kind == "response" else mime_type,
                http_headers=http if kind == "response" else None,
                warc_headers_dict={"WARC-Identified-Payload-Type": mime_type},
            )
            writer.write_record(record)


def use_fasttext(model: Path) -> None:
    """Makes datatrove take a language model of this machine."""
    from datatrove.utils import lid  # pyright: ignore[reportMissingImports]

    lid.cached_asset_path_or_download = lambda *arguments, **options: str(model)


def compare_with_datatrove(folders: dict[str, Path], work: Path, rounds: int) -> None:
    """Prints records per second of both on each stage, and the ratio. folders: stage -> input."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datatrove.utils.logging import logger  # pyright: ignore[reportMissingImports]

    logger.remove()
    print(f"{'stage':32}  {'gptjax':>8}  {'datatrove':>9}  ratio   kept")
    for name, folder in folders.items():
        runs: dict[str, Callable[[Path], tuple[int, int]]] = {
            "gptjax": lambda out, name=name, folder=folder: run_gptjax(folder, STAGES[name], out),
            "datatrove": lambda out, name=name, folder=folder: run_datatrove(folder, name, out),
        }
        seconds: dict[str, list[float]] = {tool: [] for tool in runs}
        kept = {}
        for _ in range(rounds):
            for tool, run in runs.items():
                out = work / "out"
                shutil.rmtree(out, ignore_errors=True)
                start = time.process_time() + processor_seconds()
                kept[tool] = run(out)
                seconds[tool].append(time.process_time() + processor_seconds() - start)
        n_records = kept["gptjax"][0]
        rates = {tool: n_records / statistics.median(s) for tool, s in seconds.items()}
        ratio = rates["gptjax"] / rates["datatrove"]
        print(
            f"{name:32}  {rates['gptjax']:8,.0f}  {rates['datatrove']:9,.0f}  {ratio:5.2f}x  "
            f"{kept['gptjax'][1]:,} and {kept['datatrove'][1]:,}",
            flush=True,
        )


def run_gptjax(folder: Path, stages: tuple[config.Stage, ...], out: Path) -> tuple[int, int]:
    """Runs the stages in this process; returns the documents that are read and kept."""
    recipe = config.Curation(
        name="speed",
        corpora=(config.Corpus(name="a", path=str(folder)),),
        read=config.ReadPages(library="trafilatura"),
        stages=stages,
        tokenizer=None,
    )
    totals = curation_data.run(recipe, out, workers=1)
    return totals[0].ledger.read[0], totals[-1].ledger.written[0]


def run_datatrove(folder: Path, stage: str, out: Path) -> tuple[int, int]:
    """Runs datatrove's stage in this process; returns 0 and the documents that are kept."""
    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline import dedup, filters  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.extractors import Trafilatura  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.formatters import PIIFormatter  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.readers import JsonlReader, WarcReader  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]

    def execute(*steps: object) -> None:
        LocalPipelineExecutor(
            list(steps), tasks=1, workers=1, skip_completed=False, logging_dir=str(out / "logs")
        ).run()

    read, write = JsonlReader(str(folder)), JsonlWriter(str(out / "kept"))
    if stage == "read and write":
        execute(read, write)
    elif stage == "Gopher's rules":
        execute(read, filters.GopherQualityFilter(), filters.GopherRepetitionFilter(), write)
    elif stage == "e-mail and IP addresses":
        execute(read, PIIFormatter(), write)
    elif stage == "languages":
        execute(read, filters.LanguageFilter("en"), write)
    elif stage == "WARC, text by trafilatura":
        text = Trafilatura(favour_precision=False, deduplicate=False, timeout=10)
        execute(WarcReader(str(folder)), text, write)
    elif stage == "WET":
        execute(WarcReader(str(folder)), write)
    else:
        rule = dedup.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
        signatures, buckets, clusters = (str(out / name) for name in ("s", "b", "c"))
        execute(read, dedup.MinhashDedupSignature(signatures, config=rule))
        for bucket in range(14):
            step = dedup.MinhashDedupBuckets(signatures, buckets, config=rule)
            step.run(rank=bucket, world_size=14)
        execute(dedup.MinhashDedupCluster(buckets, clusters, config=rule))
        execute(read, dedup.MinhashDedupFilter(clusters), write)
    import gzip

    return 0, sum(
        len(gzip.decompress(path.read_bytes()).splitlines())
        for path in (out / "kept").glob("*.jsonl.gz")
    )


# --- growth ---------------------------------------------------------------------------------------


def measure_growth(texts: list[str], work: Path, sizes: list[float]) -> None:
    """Prints seconds and memory of the recipe `web` by the size of the input."""
    print("        bytes  documents     kept  seconds  processor  MB/s a core  GiB", flush=True)
    for size in sizes:
        folder, out = work / f"growth-{size:g}", work / "growth-out"
        n_documents, n_bytes = write_text(texts, folder, size)
        shutil.rmtree(out, ignore_errors=True)
        command = [
            *(sys.executable, "-m", "gptjax.curate", "--recipe=web", f"--input=web={folder}"),
            *(f"--out={out}", "--workers=2", "--set=tokenizer=None"),
        ]
        start, used = time.perf_counter(), processor_seconds()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = PeakMemory(process.pid)
        shown = process.communicate()[0]
        seconds, used = time.perf_counter() - start, processor_seconds() - used
        if process.returncode:
            raise SystemExit(f"failed: {shown}")
        row = [line for line in shown.splitlines() if line.startswith("05-")][-1]
        print(
            f"{n_bytes:13,}  {n_documents:9,}  {row.split()[2]:>7}  {seconds:7.1f}  {used:9.1f}  "
            f"{n_bytes / 1e6 / used:11.2f}  {peak.stop() / 2**30:.2f}",
            flush=True,
        )
        print(
            "\n".join(f"    {line}" for line in shown.splitlines() if line[:1] == "0"), flush=True
        )
        shutil.rmtree(folder)


def processor_seconds() -> float:
    """Processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_text(texts: list[str], folder: Path, size: float) -> tuple[int, int]:
    """Writes documents of other documents' paragraphs in files of 64 MB; returns their number and
    bytes. A tenth are near copies of one of the last thousand."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = random.Random(0)
    pieces = [
        " ".join(words[i : i + 60])
        for words in map(str.split, texts)
        for i in range(0, len(words) - 59, 60)
    ]
    n_documents = n_bytes = 0
    recent: list[str] = []
    while n_bytes < size:
        with (folder / f"{n_documents:09d}.jsonl").open("w") as out:
            written = 0
            while written < 64e6 and n_bytes < size:
                if recent and rng.random() < 0.1:
                    text = f"{rng.choice(recent)} {rng.choice(pieces)}"
                else:
                    text = "\n".join(rng.choices(pieces, k=rng.randint(4, 24)))
                    recent = [*recent[-999:], text]
                line = json.dumps({"text": text}) + "\n"
                out.write(line)
                written, n_bytes = written + len(line), n_bytes + len(text.encode())
                n_documents += 1
    return n_documents, n_bytes


class PeakMemory:
    """The largest sum of the resident memory of a process and its children, sampled."""

    def __init__(self, pid: int):
        self._process, self._peak, self._stopped = psutil.Process(pid), 0, False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped:
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    total += process.memory_full_info().pss
            except psutil.Error:
                pass
            self._peak = max(self._peak, total)
            time.sleep(0.2)

    def stop(self) -> int:
        """Returns the largest sum, in bytes."""
        self._stopped = True
        self._thread.join()
        return self._peak


if __name__ == "__main__":
    main()
