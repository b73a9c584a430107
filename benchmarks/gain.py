"""What batching gains on the embedded model: the same server, texts and load, with and without batches.

Two servers run side by side, one with `max_batch_size = 1`, one as it comes; rounds alternate between them,
so that a machine whose speed drifts treats both alike, and the medians over the rounds are compared. A
closed loop: each connection sends its next text when it has the vector of the last.

    python benchmarks/gain.py [--connections 64] [--requests 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.sentences import sentences

from benchmarks.machine import cpu_of, cpu_of_everyone


@dataclass(frozen=True)
class Round:
    """One load on one server."""

    texts_per_second: float
    p50_ms: float
    p99_ms: float
    batch_size: float
    others_cores: float  # cores that neither the server, its worker nor this load generator used


@dataclass(frozen=True)
class Server:
    """A running server: where, and which processes are it."""

    url: str
    process: psutil.Process


@contextmanager
def serve(*arguments: str) -> Iterator[Server]:
    """`carpool serve` on a free port, in an empty folder."""
    command = [sys.executable, "-m", "carpool", "serve", "--port", "0", *arguments]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(rb"where +(http://\S+)", line):
                    yield Server(found[1].decode(), psutil.Process(process.pid))
                    break
            else:
                raise RuntimeError(f"{' '.join(command)} did not start")
        finally:
            process.terminate()


async def run_round(server: Server, texts: Sequence[str], connections: int) -> Round:
    """Send every text once and measure."""
    numbers = iter(range(len(texts)))
    latencies: list[float] = []

    async def one_connection() -> None:
        for number in numbers:
            sent = time.perf_counter()
            async with session.post("/embed", json={"input": texts[number]}) as reply:
                await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"the server answered {reply.status}")
            latencies.append(time.perf_counter() - sent)

    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        batches = await count_batches(session)
        processes = processes_of(server)
        ours, everyone, started = cpu_of(processes), cpu_of_everyone(), time.perf_counter()
        await asyncio.gather(*(one_connection() for _ in range(connections)))
        seconds = time.perf_counter() - started
        others = (cpu_of_everyone() - everyone) - (cpu_of(processes) - ours)
        batches = await count_batches(session) - batches
    latencies.sort()
    return Round(
        texts_per_second=len(texts) / seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1000,
        batch_size=len(texts) / batches,
        others_cores=max(0.0, others / seconds),
    )


async def count_batches(session: aiohttp.ClientSession) -> int:
    """How many batches the server has run so far."""
    async with session.get("/metrics", headers={"accept": "application/json"}) as reply:
        return int((await reply.json())["total_batches"])


def processes_of(server: Server) -> list[psutil.Process]:
    """The server, its worker and this process."""
    return [psutil.Process(), server.process, *server.process.children(recursive=True)]


def report(label: str, rounds: Sequence[Round]) -> Round:
    """Print the medians of one server's rounds, and give them."""
    median = Round(
        *(statistics.median(values) for values in zip(*(vars(one).values() for one in rounds), strict=True))
    )
    print(
        f"| {label} | {median.texts_per_second:.0f} | {median.p50_ms:.0f} | {median.p99_ms:.0f} "
        f"| {median.batch_size:.1f} | {median.others_cores:.2f} |"
    )
    return median


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = sentences(options.requests)
    servers = {"`max_batch_size = 1`": ["--max-batch-size", "1"], "batched (the default)": []}
    rounds: dict[str, list[Round]] = {label: [] for label in servers}
    with ExitStack() as stack:
        running = {label: stack.enter_context(serve(*flags)) for label, flags in servers.items()}
        for server in running.values():  # a first round that does not count
            asyncio.run(run_round(server, texts[:200], options.connections))
        for _ in range(options.rounds):
            for label, server in running.items():
                rounds[label].append(asyncio.run(run_round(server, texts, options.connections)))
    load = f"{options.requests} sentences, {options.connections} connections"
    print(f"{load}, medians of {options.rounds} rounds\n")
    print("| server | texts/s | p50 ms | p99 ms | batch size | cores used by others |")
    print("| --- | --- | --- | --- | --- | --- |")
    single, batched = (report(label, results) for label, results in rounds.items())
    print(
        f"\nbatching: {batched.texts_per_second / single.texts_per_second:.1f} times the texts, "
        f"{batched.p50_ms / single.p50_ms:.2f} of the median latency"
    )


if __name__ == "__main__":
    main()
