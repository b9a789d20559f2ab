"""What does a server do with more than it can take, and does its memory grow?

    python -m bench.serve_stress --model=DIR --work=DIR [--requests=10000] [--only=memory]

overload: four times as many clients at once as there are places (slots and queue). Those that are
refused try again after Retry-After, until all have an answer. The queue is read from /metrics.
short: a request of 4 tokens that comes while one of --tokens is read and answered.
memory: --requests requests, 16 at once, a tenth of them given up; resident memory as it goes.

docs/results/serving.md has results.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import re
import time

import httpx2
import psutil

from bench import serve_load
from gptjax.config import parse

SLOTS, QUEUE, LOAD = 8, 24, 4
PARTS = ("overload", "short", "memory")
# No limits of the client's own: they would be a queue of the client's.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=parse.path_argument, required=True)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--context", type=parse.int_argument(1), default=512)
    parser.add_argument("--tokens", type=parse.int_argument(1, 10**4), default=128)
    parser.add_argument("--requests", type=parse.int_argument(10), default=10_000)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    with serve_load.Server(args.model, SLOTS, args.context, QUEUE) as server:
        results = asyncio.run(run(args, server))
    (args.work / "serve_stress.json").write_text(json.dumps(results))


async def run(args: argparse.Namespace, server: serve_load.Server) -> dict[str, object]:
    results: dict[str, object] = {}
    url = server.url.rstrip("/")
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=LIMITS) as http:
        models = (await http.get("/models")).raise_for_status().json()["data"]
        client = Client(http, models[0]["id"])
        (await client.ask("warm up", 4)).raise_for_status()
        if args.only in (None, "overload"):
            results["overload"] = await overload(client)
        if args.only in (None, "short"):
            results["short"] = await short(client, args.tokens)
        if args.only in (None, "memory"):
            results["memory"] = await grow(client, server.pid, args.requests)
    return results


@dataclasses.dataclass
class Client:
    """A client of a server, and the name of its model."""

    http: httpx2.AsyncClient
    model: str

    async def ask(self, prompt: str, n_tokens: int, timeout: float = 600) -> httpx2.Response:
        body = {"model": self.model, "prompt": prompt, "max_tokens": n_tokens}
        body |= {"temperature": 0, "ignore_eos": True}
        return await self.http.post("/completions", json=body, timeout=timeout)


async def overload(client: Client) -> dict[str, object]:
    n = LOAD * (SLOTS + QUEUE)
    deepest, refused, done = 0, 0, asyncio.Event()

    async def watch() -> None:
        nonlocal deepest
        while not done.is_set():
            text = (await client.http.get(str(client.http.base_url.join("/metrics")))).text
            depth = re.search(r"^gptjax_queue_depth (\S+)", text, re.MULTILINE)
            assert depth is not None
            deepest = max(deepest, int(float(depth[1])))
            await asyncio.sleep(0.05)

    async def insist(i: int) -> float:
        nonlocal refused
        start = time.perf_counter()
        while (answer := await client.ask(f"number {i}", 16)).status_code == 503:
            refused += 1
            await asyncio.sleep(int(answer.headers["Retry-After"]))
        answer.raise_for_status()
        return time.perf_counter() - start

    watcher = asyncio.create_task(watch())
    times = sorted(await asyncio.gather(*(insist(i) for i in range(n))))
    done.set()
    await watcher
    median, p99 = serve_load.percentiles(times)
    print(
        f"overload: {n} clients at {SLOTS} slots and a queue of {QUEUE}: all were answered after "
        f"{refused} refusals; the queue had {deepest} at most; median {median:.1f} s, p99 "
        f"{p99:.1f} s, the last {times[-1]:.1f} s",
        flush=True,
    )
    return {"clients": n, "refused": refused, "deepest queue": deepest, "seconds": times}


async def short(client: Client, n_tokens: int) -> dict[str, float]:
    async def time_of(prompt: str, n: int) -> float:
        start = time.perf_counter()
        (await client.ask(prompt, n)).raise_for_status()
        return time.perf_counter() - start

    alone = await time_of("to be", 4)
    long = asyncio.create_task(time_of("word " * n_tokens, n_tokens))
    await asyncio.sleep(0.05)
    among = await time_of("or not", 4)
    assert not long.done(), "the long request ended first: give more --tokens"
    result = {"alone": alone, "among": among, "long": await long}
    print(
        f"short: 4 tokens in {alone:.2f} s alone, in {among:.2f} s while a request of {n_tokens} "
        f"tokens after as many is answered, which takes {result['long']:.2f} s",
        flush=True,
    )
    return result


async def grow(client: Client, pid: int, n: int) -> list[tuple[int, float]]:
    process, rng, rows = psutil.Process(pid), random.Random(0), []

    async def use(gate: asyncio.Semaphore) -> None:
        async with gate:
            prompt = " ".join(str(rng.random()) for _ in range(rng.randrange(1, 8)))
            try:
                await client.ask(prompt, 8, 0.01 if rng.random() < 0.1 else 600)
            except httpx2.TimeoutException:
                pass

    start = time.perf_counter()
    for i in range(10):
        gate = asyncio.Semaphore(16)
        await asyncio.gather(*(use(gate) for _ in range(n // 10)))
        rows.append(((i + 1) * (n // 10), process.memory_info().rss / 2**20))
        print(f"memory: {rows[-1][0]:7,} requests, {rows[-1][1]:8.1f} MiB", flush=True)
    print(f"memory: {n / (time.perf_counter() - start):.0f} requests/s", flush=True)
    return rows


if __name__ == "__main__":
    main()
