"""The facts that a batcher reports, and who may listen.

Facts are frozen and come per batch, not per request. They carry counts, names and seconds, never a payload.
A listener cannot change what happens: what it returns is ignored and what it raises is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BatchLeft:
    """A batch has gone to `replica`. `waited` is the wait of its oldest request, in seconds."""

    model: str
    number: int
    items: int
    requests: int
    reason: str
    waited: float
    left_waiting: int
    replica: str


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """`replica` has answered, or failed with `error`. `seconds` is how long it took.

    The error is `Abandoned` where nobody waited for the batch any more.
    """

    model: str
    number: int
    items: int
    seconds: float
    error: BaseException | None
    replica: str


@dataclass(frozen=True, slots=True)
class RequestsEnded:
    """Requests have ended: the `latencies` of the answered, in seconds, and the errors of the rest."""

    model: str
    latencies: Sequence[float]
    errors: Sequence[BaseException]


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request was not admitted."""

    model: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The caller of a request has gone before its answer."""

    model: str


Fact = BatchLeft | BatchEnded | RequestsEnded | RequestRefused | RequestCancelled


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A moment of one replica, by its backend's name; `trouble` is the backend's own word for it."""

    name: str
    in_flight: int
    slots: int
    is_up: bool
    trouble: str | None


class Observer(Protocol):
    """Listens to a batcher: `match fact: case BatchLeft(): ...`."""

    def observe(self, fact: Fact) -> None:
        """Hear one fact. It is called on the event loop, so it must be quick."""
        ...
