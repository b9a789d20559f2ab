"""How fast does the server answer, and what does load do to it?

    python -m bench.serve_load --model=DIR --work=DIR [--concurrency=1,2,4,8,16] [--slots=8]
                               [--against=URL [--against_model=NAME]]

Starts `python -m gptjax.serve` with one slot and with --slots, and asks it over loopback by the
client `openai`: prompts of 64 words, answers of --tokens tokens, greedy, streamed. For each
concurrency: answer tokens per second, and the times to the first token and between tokens, their
median and 99th percentile. --against: another server with OpenAI's API that runs here, as
http://127.0.0.1:8000/v1, which gets the same questions in turn.

docs/results/serving.md has results.
"""

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import openai

from gptjax.config import parse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=parse.path_argument, required=True)
    parser.add_argument("--concurrency", default="1,2,4,8,16")
    parser.add_argument("--slots", type=parse.int_argument(2, 256), default=8)
    parser.add_argument("--context", type=parse.int_argument(1), default=512)
    parser.add_argument("--tokens", type=parse.int_argument(1, 10**4), default=32)
    parser.add_argument("--rounds", type=parse.int_argument(1, 100), default=2)
    parser.add_argument("--against", metavar="URL")
    parser.add_argument("--against_model", metavar="NAME", help="default: the first it lists")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    levels = [int(level) for level in args.concurrency.split(",")]
    print("server     at once  answers  tokens/s  first token p50, p99 [s]  next p50, p99 [ms]")
    rows = []

    def measure(name: str, url: str, model: str | None, level: int) -> None:
        n = max(4, level * args.rounds)
        row = {"server": name, "at once": level, "answers": n}
        row |= asyncio.run(ask_all(url, n, level, args.tokens, model))
        rows.append(row)
        first, after = row["first token"], row["next token"]
        print(
            f"{name:9}  {level:7}  {n:7}  {row['tokens/s']:8.1f}  {first[0]:12.2f}, "
            f"{first[1]:6.2f}      {after[0] * 1e3:8.0f}, {after[1] * 1e3:5.0f}",
            flush=True,
        )

    for slots in (1, args.slots):
        with Server(args.model, slots, args.context) as server:
            asyncio.run(ask_all(server.url, 2, 1, args.tokens))  # warms up
            for level in levels if slots > 1 else levels[:1]:
                measure(f"{slots} slots", server.url, None, level)
                if args.against and slots > 1:
                    measure("the other", args.against, args.against_model, level)
    (args.work / "serve_load.json").write_text(json.dumps(rows))
    rates = {(row["server"], row["at once"]): row["tokens/s"] for row in rows}
    best = max(rates[f"{args.slots} slots", level] for level in levels)
    print(f"{args.slots} slots write {best / rates['1 slots', levels[0]]:.2f} times as much as one")
    if args.against:
        for level in levels:
            ratio = rates[f"{args.slots} slots", level] / rates["the other", level]
            print(f"{level} at once: {ratio:.2f} times as much as the other server")


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, slots: int, context: int, max_queue: int = 4096):
        command = [sys.executable, "-m", "gptjax.serve", f"--model={model}", "--port=0"]
        command += [f"--slots={slots}", f"--context={context}", f"--max_queue={max_queue}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if "http://" in line)
        self.url = re.search(r"http://\S+", line)[0]  # type: ignore[index]
        self.pid = self._process.pid

    def __enter__(self) -> "Server":
        stdout = self._process.stdout
        assert stdout is not None
        threading.Thread(target=stdout.read, daemon=True).start()  # the access log
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)


async def ask_all(
    url: str, n: int, at_once: int, n_tokens: int, model: str | None = None
) -> dict[str, object]:
    """Asks n questions, `at_once` at a time; returns rates and times. model: by default the first
    of the server's list."""
    rng = random.Random(n)
    words = "the of and to in a is that for it as was with be by on not he his but".split()
    prompts = [" ".join(rng.choices(words, k=64)) for _ in range(n)]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        name = model or (await client.models.list()).data[0].id
        gate = asyncio.Semaphore(at_once)
        start = time.perf_counter()
        # Another server may refuse a field that it lacks.
        more = {} if model else {"ignore_eos": True}
        questions = (ask(client, name, prompt, n_tokens, gate, more) for prompt in prompts)
        answers = await asyncio.gather(*questions)
        seconds = time.perf_counter() - start
    first = [times[1] - times[0] for _, times in answers]
    after = [b - a for _, times in answers for a, b in itertools.pairwise(times[1:])]
    return {
        "tokens/s": sum(n for n, _ in answers) / seconds,
        "first token": percentiles(first),
        "next token": percentiles(after),
    }


async def ask(
    client: openai.AsyncOpenAI,
    name: str,
    prompt: str,
    n_tokens: int,
    gate: asyncio.Semaphore,
    more: dict[str, object],
) -> tuple[int, list[float]]:
    """(tokens of the answer, the times of the request and of each text that came). more: further
    fields of the request."""
    async with gate:
        n, times = 0, [time.perf_counter()]
        stream = await client.completions.create(
            model=name,
            prompt=prompt,
            max_tokens=n_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=more,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].text:
                times.append(time.perf_counter())
            if chunk.usage:
                n = chunk.usage.completion_tokens
    return n, times


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return statistics.median(values), float(np.quantile(values, 0.99))


if __name__ == "__main__":
    main()
