"""A live line on a terminal; every so often a plain one where there is none."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_left
from time import perf_counter
from typing import TextIO

from carpool.bench.client import Load
from carpool.bench.summary import percentile

_EVERY, _EVERY_IN_A_FILE = 0.5, 10.0  # seconds
_MOST_SHOWN = 5000  # requests in the percentiles: a look must not make the next request late
_WIDTH = 24  # characters of the bar


async def show(load: Load, label: str, total: float, stream: TextIO = sys.stderr) -> None:
    """Tell how a load goes until it is cancelled."""
    is_live = stream.isatty()
    start = then = perf_counter()
    try:
        while True:
            await asyncio.sleep(_EVERY if is_live else _EVERY_IN_A_FILE)
            now = perf_counter()
            line = describe(load, label, (now - start) / total, now - then)
            then = now
            stream.write(f"\r\x1b[K{line}" if is_live else f"{line}\n")
            stream.flush()
    finally:
        if is_live:
            stream.write("\r\x1b[K")
            stream.flush()


def describe(load: Load, label: str, share: float, seconds: float) -> str:
    """One line about the last so many seconds."""
    record = load.record
    first = bisect_left(record.ended, perf_counter() - seconds)
    rate = (len(record.ended) - first) * record.every / seconds
    first = max(first, len(record.ended) - _MOST_SHOWN)
    latencies = sorted(
        (ended - due) * 1000 for due, ended in zip(record.due[first:], record.ended[first:], strict=True)
    )
    done = round(min(share, 1.0) * _WIDTH)
    return (
        f"{label} [{'#' * done}{'.' * (_WIDTH - done)}] {rate:,.0f} req/s  "
        f"p50 {percentile(latencies, 0.5):.1f} ms  p99 {percentile(latencies, 0.99):.1f} ms  "
        f"{record.failed} errors  {load.in_flight} in flight"
    )
