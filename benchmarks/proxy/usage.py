"""What a load costs whom: CPU seconds of programs, of the load generator, and of everybody else."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.machine import cpu_of, cpu_of_everyone

OTHERS_CORES = 0.15  # a run in which others used more of the machine than this is not taken at its word
QUIET_SECONDS = 15.0  # how long to wait for the machine to be that quiet


@dataclass(frozen=True)
class Usage:
    """CPU seconds within `seconds`. `others` is who had no part in it."""

    seconds: float
    proxy: float
    upstream: float
    load: float
    others: float

    @property
    def busy(self) -> float:
        """How much of a core the proxy kept busy."""
        return self.proxy / self.seconds

    @property
    def others_cores(self) -> float:
        """How many cores others kept busy."""
        return max(0.0, self.others) / self.seconds


class Meter:
    """Counts from its making on. Commands that this program runs and waits for count as the load generator."""

    def __init__(self, proxy: Sequence[psutil.Process], upstream: Sequence[psutil.Process]) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self._before = self._read()

    def stop(self) -> Usage:
        """What was used since."""
        seconds, everyone, proxy, upstream, load = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        return Usage(seconds, proxy, upstream, load, everyone - proxy - upstream - load)

    def _read(self) -> tuple[float, ...]:
        ours = resource.getrusage(resource.RUSAGE_SELF)
        commands = resource.getrusage(resource.RUSAGE_CHILDREN)
        load = ours.ru_utime + ours.ru_stime + commands.ru_utime + commands.ru_stime
        return time.monotonic(), cpu_of_everyone(), cpu_of(self._proxy), cpu_of(self._upstream), load


def resident_bytes(processes: Sequence[psutil.Process]) -> int:
    """The memory that a program occupies."""
    return sum(process.memory_info().rss for process in processes)
