"""The facts that a batcher reports, and who may listen.

Facts are frozen and come per batch, not per request. They carry counts, names and seconds, never a payload.
A listener cannot change what happens: what it returns is ignored and what it raises is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec


class BatchLeft(msgspec.Struct, frozen=True):
    """A batch has gone to `replica`. `waited` is the wait of its oldest request, in seconds."""

    model: str
    number: int
    items: int
    requests: int
    reason: str
    waited: float
    left_waiting: int
    replica: str


class BatchEnded(msgspec.Struct, frozen=True):
    """`replica` has answered, or failed with `error`. `seconds` is how long it took.

    The error is `Abandoned` where nobody waited for the batch any more.
    """

    model: str
    number: int
    items: int
    seconds: float
    error: BaseException | None
    replica: str


class RequestsEnded(msgspec.Struct, frozen=True):
    """Requests have ended: the `latencies` of the answered, in seconds, and the errors of the rest."""

    model: str
    latencies: Sequence[float]
    errors: Sequence[BaseException]


class RequestRefused(msgspec.Struct, frozen=True):
    """A request was not admitted."""

    model: str
    error: BaseException


class RequestCancelled(msgspec.Struct, frozen=True):
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
