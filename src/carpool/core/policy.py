"""When a batch leaves, once a slot is free for it.

A policy answers one question, `departure`, from what it is told; it holds no queue and knows no slot. The
batch is formed when it leaves and not before, so waiting for a slot fills it and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

from carpool.errors import ConfigError

PolicyName = Literal["adaptive", "timeout"]


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed.

    `adaptive` (the default) sends a batch as soon as a slot is free: whoever arrived while the last one ran
    travels in the next, so batches grow with load and nobody waits for a timer. `timeout` is the classical
    rule: leave with `max_batch_size` items or when the oldest has waited `max_wait` seconds.
    """

    name: PolicyName = "adaptive"
    max_batch_size: int = 32
    max_wait: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in get_args(PolicyName):
            raise ConfigError(
                f"policy {self.name!r} is unknown", f"allowed: {', '.join(get_args(PolicyName))}"
            )
        if self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size {self.max_batch_size} is out of range", "allowed: 1 and more")
        if self.max_wait < 0:
            raise ConfigError(f"max_wait {self.max_wait} is out of range", "allowed: 0 s and more")

    def __str__(self) -> str:
        if self.name == "timeout":
            return f"timeout: leave at {self.max_batch_size} items or after {self.max_wait * 1000:g} ms"
        return f"adaptive: leave when a slot is free, with {self.max_batch_size} items at most"


class Departure(NamedTuple):
    """The time at which the batch may leave if nothing else arrives, and why then."""

    at: float
    reason: str


class Policy(Protocol):
    """Decides when the next batch leaves."""

    def departure(self, now: float, waiting: int, oldest: float) -> Departure:
        """When the `waiting` items (one at least), the oldest of which arrived at `oldest`, may leave."""
        ...


class Adaptive:
    """Leave now: a slot is free. Optimal to 0.3 % for Poisson arrivals at one serial device."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._full = policy.max_batch_size

    def departure(self, now: float, waiting: int, oldest: float) -> Departure:
        """At once; "full" tells a batch that could not have been larger from one that could."""
        return Departure(now, "full" if waiting >= self._full else "slot free")


class Timeout:
    """Leave full, or when the oldest has waited long enough. The wait counts from arrival."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._full = policy.max_batch_size
        self._max_wait = policy.max_wait

    def departure(self, now: float, waiting: int, oldest: float) -> Departure:
        """At once when full, else `max_wait` after the oldest arrived."""
        if waiting >= self._full:
            return Departure(now, "full")
        return Departure(oldest + self._max_wait, "waited")


def make_policy(policy: BatchPolicy) -> Policy:
    """The policy that `policy` names."""
    kinds: dict[PolicyName, type[Adaptive | Timeout]] = {"adaptive": Adaptive, "timeout": Timeout}
    return kinds[policy.name](policy)
