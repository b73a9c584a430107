"""What is put on a program: as much as it takes, with wrk, or so many requests a second.

It knows a URL and how to read what the load generator measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.device import run_precisely
from benchmarks.open_loop import percentile, poisson, send_load

SCRIPT = Path(__file__).with_name("post.lua")
DRAIN = 0.05  # of a second, between two loads: connections that were closed are seen to be


@dataclass(frozen=True)
class Load:
    """What came back. `failed` is everything but a reply with status 200."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Good replies a second."""
        return max(0, self.requests - self.failed) / self.seconds


def as_much_as_it_takes(url: str, connections: int, seconds: float) -> Load:
    """A closed loop: each connection sends its next text when it has the vector of the last."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(SCRIPT), url]
    try:
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SystemExit("wrk is not installed: apt-get install wrk") from None
    return Load(**json.loads(printed.splitlines()[-1]))


def at_rate(url: str, rate: float, seconds: float, seed: str) -> Load:
    """An open loop: a Poisson process of single texts, whatever becomes of them."""
    times = poisson(rate, int(rate * seconds), seed)
    latencies, _ = run_precisely(_send(url, times))
    failed = len(times) - len(latencies)
    latencies = latencies or [float("nan")]
    return Load(len(times), times[-1], failed, percentile(latencies, 50), percentile(latencies, 99))


async def _send(url: str, times: list[float]) -> tuple[list[float], list[float]]:
    measured = await send_load(url, times)
    await asyncio.sleep(DRAIN)
    return measured
