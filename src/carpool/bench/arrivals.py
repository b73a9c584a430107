"""When requests are meant to be sent in an open loop: seconds from the start, ascending, without end.

The same arguments and seed always give the same times, so that two servers can be put under the same load.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate, count, cycle, pairwise
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean

from carpool.errors import ConfigError

KINDS = ("poisson", "bursts", "constant", "ramp", "trace")

# Bursts: a quarter of the time, 50 ms on average, at four times the rate of the rest.
_BURST_SECONDS, _QUIET_SECONDS, _BURST_FACTOR = 0.05, 0.15, 4.0
_TIMESTAMP = 26  # characters of an ISO time down to the microsecond: what datetime reads


def arrivals(kind: str, rate: float, duration: float, seed: str, trace: Path | None = None) -> Iterator[float]:
    """Times of a kind, `rate` a second; a ramp climbs to that, a trace is stretched to it unless it is 0."""
    random = Random(f"{kind} {seed}")
    if kind == "trace":
        if trace is None:
            raise ConfigError("arrivals from a trace need the trace", "pass --trace FILE")
        return _replay(trace, rate)
    if rate <= 0:
        raise ConfigError(f"a rate of {rate:g} a second sends nothing", "allowed: more than 0")
    match kind:
        case "poisson":
            return _poisson(rate, random)
        case "bursts":
            return _bursts(rate, random)
        case "constant":
            return (number / rate for number in count())
        case "ramp":
            return _ramp(rate, duration, random)
    raise ConfigError(f'arrivals "{kind}" are not known', f"allowed: {', '.join(KINDS)}")


def _poisson(rate: float, random: Random) -> Iterator[float]:
    now = 0.0
    while True:
        now += random.expovariate(rate)
        yield now


def _bursts(rate: float, random: Random) -> Iterator[float]:
    """A Poisson process that switches between a quiet and a busy state, each for an exponential time."""
    share = _BURST_SECONDS / (_BURST_SECONDS + _QUIET_SECONDS)
    quiet_rate = rate / (1 + share * (_BURST_FACTOR - 1))
    start, is_burst = 0.0, False
    while True:
        end = start + random.expovariate(1 / (_BURST_SECONDS if is_burst else _QUIET_SECONDS))
        for after in _poisson(quiet_rate * (_BURST_FACTOR if is_burst else 1), random):
            if start + after >= end:
                break
            yield start + after
        start, is_burst = end, not is_burst


def _ramp(rate: float, duration: float, random: Random) -> Iterator[float]:
    """A Poisson process whose rate climbs from nothing to `rate` over the duration: time is stretched."""
    for expected in _poisson(1.0, random):
        yield sqrt(2 * duration * expected / rate)


def _replay(path: Path, rate: float) -> Iterator[float]:
    """The gaps of a trace, over and over, as they are or stretched to a mean rate."""
    gaps = [later - earlier for earlier, later in pairwise(_recorded(path))]
    if not gaps or not sum(gaps):
        raise ConfigError(f"{path}: a trace needs two different times at least")
    scale = 1 / (rate * fmean(gaps)) if rate else 1.0
    return accumulate((gap * scale for gap in cycle(gaps)), initial=0.0)


def _recorded(path: Path) -> list[float]:
    """The times in the first column of a CSV file (also gzipped): ISO 8601 or seconds; a header is skipped."""
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt", newline="", encoding="utf-8") as file:
            rows = [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a trace", str(error)) from None
    times = [_time(cell) for cell in rows]
    missing = [rows[place] for place in range(1, len(rows)) if times[place] is None]
    if missing:
        raise ConfigError(
            f'{path}: "{missing[0]}" is no time', "allowed: ISO 8601 or seconds, in the first column"
        )
    return sorted(time for time in times if time is not None)


def _time(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(cell.strip()[:_TIMESTAMP]).timestamp()
    except ValueError:
        return None
