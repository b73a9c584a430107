"""What tuning is for, as a sentence: `max throughput with p99 < 100 ms`, `min p99 with throughput > 300`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import Protocol

from carpool.errors import ConfigError

ALLOWED = "max throughput [with p50|p95|p99 < N ms], or min p50|p95|p99 [with throughput > N]"
_LATENCY = r"p50|p95|p99"
_GOAL = re.compile(
    rf"(?:max\s+throughput(?:\s+with\s+(?P<limited>{_LATENCY})\s*<\s*(?P<most>[\d.]+)\s*ms)?"
    rf"|min\s+(?P<wanted>{_LATENCY})(?:\s+with\s+throughput\s*>\s*(?P<least>[\d.]+))?)"
)
MOST_FAILED = 0.01  # of the requests: with more failures the others' figures mean nothing


class Measured(Protocol):
    """What one run has measured: requests a second, milliseconds, and the share that failed."""

    @property
    def throughput(self) -> float: ...  # noqa: D102
    @property
    def p50(self) -> float: ...  # noqa: D102
    @property
    def p95(self) -> float: ...  # noqa: D102
    @property
    def p99(self) -> float: ...  # noqa: D102
    @property
    def failed(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Goal:
    """`wanted` is throughput, or the percentile that is to be small; the limit is on the other of them."""

    text: str
    wanted: str = "throughput"
    latency: str = "p99"  # the percentile that it speaks of
    most_ms: float = inf
    least: float = 0.0  # requests a second

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read the sentence."""
        found = _GOAL.fullmatch(" ".join(text.split()))
        if found is None:
            raise ConfigError(f'goal "{text}" is not understood', f"allowed: {ALLOWED}")
        wanted, limited = found["wanted"], found["limited"]
        try:
            most, least = float(found["most"] or inf), float(found["least"] or 0)
        except ValueError:
            raise ConfigError(f'goal "{text}" has no number for its limit', f"allowed: {ALLOWED}") from None
        return cls(text, wanted or "throughput", wanted or limited or "p99", most, least)

    def score(self, run: Measured) -> tuple[bool, float]:
        """Whether a run keeps the limits, and how good it is; what does not is the better the nearer it is."""
        latency = getattr(run, self.latency)
        if run.failed > MOST_FAILED or latency != latency:
            return False, -inf
        if latency >= self.most_ms:
            return False, -latency / self.most_ms
        if run.throughput <= self.least:
            return False, run.throughput / self.least - 1 if self.least else -1.0
        return True, run.throughput if self.wanted == "throughput" else -latency
