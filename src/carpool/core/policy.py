"""When a batch leaves, once a slot is free for it.

A policy answers one question, `departure`, from what it is told and what has been learned; it holds no queue.
The batch is formed when it leaves and not before, so waiting for a slot fills it and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal, NamedTuple, Protocol, get_args

from carpool.core.arrivals import Arrivals
from carpool.core.curve import Curve
from carpool.core.limits import check_count, check_positive, is_number
from carpool.errors import ConfigError

PolicyName = Literal["adaptive", "timeout"]


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed.

    `adaptive` (the default) sends a batch as soon as a slot is free, unless it has learned that a moment's
    wait pays; it never holds a request for longer than `max_wait` seconds. `timeout` is the classical rule:
    leave with `max_batch_size` items or when the oldest has waited `max_wait`.

    `max_batch_cost` bounds the sum of the items' costs in a batch (tokens, say), or with `padded` the number of
    items times the largest cost. `padded` says that the backend pads all items of a batch to the longest: then
    items of like cost travel together. `objective` (seconds) is the latency to keep: batches stay small
    enough for it, as long as that does not cost the capacity that the load needs. With `isolate` a batch that
    fails on what is in it is run again in halves, until only the bad items fail. With
    `hedge` a batch that takes longer than 19 of 20 do is sent to another replica as well, and the first answer
    counts.
    """

    name: PolicyName = "adaptive"
    max_batch_size: int = 32
    max_wait: float = 0.1
    max_batch_cost: float | None = None
    padded: bool = False
    objective: float | None = None
    isolate: bool = True
    hedge: bool = False

    def __post_init__(self) -> None:
        if self.name not in get_args(PolicyName):
            raise ConfigError(f"policy {self.name!r} is unknown", f"allowed: {', '.join(get_args(PolicyName))}")
        check_count("max_batch_size", self.max_batch_size)
        if not is_number(self.max_wait) or self.max_wait < 0:
            raise ConfigError(f"max_wait {self.max_wait!r} is out of range", "allowed: 0 s and more")
        for name in ("max_batch_cost", "objective"):
            check_positive(name, getattr(self, name))

    def __str__(self) -> str:
        if self.name == "timeout":
            return f"timeout: leave at {self.max_batch_size} items or after {self.max_wait * 1000:g} ms"
        return f"adaptive: leave when a slot is free, with {self.max_batch_size} items at most"


class Departure(NamedTuple):
    """The time at which the batch may leave if nothing else arrives, and why then."""

    at: float
    reason: str


class View(NamedTuple):
    """What a policy may look at: the queue and the slots at this moment."""

    waiting: int  # items, one at least
    cost: float  # of the batch that would leave
    oldest: float  # when the oldest of them arrived
    deadline: float  # the earliest by which one of them must be answered, or leave the queue
    here: int  # items that wait or are in flight
    slots: int
    ends: Sequence[float]  # when the batches in flight are expected back, soonest first
    curve: Curve  # how long a batch takes where this one would run


class Policy(Protocol):
    """Decides when the next batch leaves, given that a slot is free. A full batch leaves at once, unasked."""

    def departure(self, now: float, view: View) -> Departure:
        """When what waits may leave; asked again whenever something arrives or ends."""
        ...


class Timeout:
    """Leave full, or when the oldest has waited long enough. The wait counts from arrival."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_wait = policy.max_wait

    def departure(self, now: float, view: View) -> Departure:
        """`max_wait` after the oldest arrived, or in time for the first deadline."""
        latest = view.deadline - max(_SHORTEST_HOLD, _LATE * view.curve.predict(view.cost))
        return Departure(min(view.oldest + self._max_wait, latest), "waited")


# The constants below were chosen by simulation on Poisson, bursty and closed-loop load (docs/scheduler.md).
_SHORTEST_HOLD = 0.001  # seconds: event loops round timers to a millisecond
_BUSY = (0.75, 0.2)  # holds fade out from 55 to 75 % utilisation: a busy device fills its batches by itself
_UNSURE = (0.3, 0.15)  # and where predictions are off by 15 to 30 %
_NEAR = 1.4  # a slot that frees within this many batch times is worth spacing departures for
_MERGE = 0.8  # of the fixed cost of a batch: the longest wait that merging two cohorts can repay
_LONGEST_HOLD = 0.5  # of a batch's time
_SURE = 0.6  # of the clients must return surely for an idle device to wait for them
_MARGIN = 2.0  # a wait for returning clients must gain this many times what it costs
_LATE = 1.25  # of the predicted time of a batch: kept free before a deadline; some more than the scheduler asks


class Adaptive:
    """Leave now, unless holding pays by what has been learned.

    With one serial device and random arrivals leaving at once is optimal to 0.3 %. Two things beat it. With
    several slots, batches bunch: all slots are taken by small batches at nearly the same time, and whoever
    comes next waits for a whole one. The stagger rule spaces departures: hold while fewer wait than will have
    arrived by the time the next slot frees. And clients that return as soon as they are answered are worth a
    moment's wait, or they split into cohorts that take turns.
    """

    def __init__(self, policy: BatchPolicy, arrivals: Arrivals) -> None:
        self._max_wait = policy.max_wait
        self._arrivals = arrivals
        self._held: tuple[float, float] = (-inf, -inf)  # which oldest request, and since when

    def departure(self, now: float, view: View) -> Departure:
        """Now, or the end of a hold. Every arrival and every batch's end asks again, so holds end early."""
        if not view.curve.ready:
            return Departure(now, "slot free")
        if self._held[0] != view.oldest:
            self._held = (view.oldest, now)
        since = self._held[1]
        until = self._hold_until(now, since, view)
        if until > now:
            return Departure(until, "held")
        return Departure(now, "held" if since < now else "slot free")

    def _hold_until(self, now: float, since: float, view: View) -> float:
        items, wait = self._arrivals.still_expected(now)
        are_expected = items >= 0.5 and wait > 0
        if not (view.ends or are_expected):  # most of light traffic: there is nothing to hold for
            return now
        seconds = view.curve.predict(view.cost)
        until = self._stagger_until(now, seconds, view)
        returns_at = self._returns_at(now, seconds, view, items, wait) if are_expected else now
        cap = _LONGEST_HOLD * seconds
        if returns_at > now:
            until = max(until, returns_at)
            cap = max(cap, _MERGE * view.curve.fixed)
        one_more = view.curve.predict(view.cost * (1 + 1 / view.waiting))
        return min(until, since + cap, view.oldest + self._max_wait, view.deadline - _LATE * one_more)

    def _stagger_until(self, now: float, seconds: float, view: View) -> float:
        """Until when fewer wait than this slot's share of what arrives before the next slots free."""
        rate = self._arrivals.rate * self._confidence(view)
        until = now
        if rate <= 0 or view.here >= self._arrivals.peak:  # nobody else is left who could come
            return until
        free = view.slots - len(view.ends)
        for place, end in enumerate(view.ends[: ceil(len(view.ends) / 2)]):
            if end > now + _NEAR * seconds:
                break
            until = max(until, end - (free + place) * view.waiting / rate)
        return until if until - now > _SHORTEST_HOLD else now

    def _confidence(self, view: View) -> float:
        """From 1 to 0 as the load or the error of the predictions grows."""
        per_item = view.curve.per_cost * view.cost / view.waiting
        utilisation = self._arrivals.rate * per_item / view.slots
        return _fade(utilisation, *_BUSY) * _fade(view.curve.error, *_UNSURE)

    def _returns_at(self, now: float, seconds: float, view: View, items: float, wait: float) -> float:
        """By when so many clients of the last batch are back, in `wait` seconds, if that pays; else now."""
        wait = max(wait, _SHORTEST_HOLD)  # a hold that ends with the last return may have a longer timer
        if not view.ends and self._arrivals.surely_returning > _SURE:
            return now + wait if wait < _MERGE * view.curve.fixed else now
        if not view.ends:
            saved = seconds
        elif view.slots - len(view.ends) == 1:
            saved = min(seconds, view.ends[0] - now)
        else:
            saved = 0.0
        gain = self._confidence(view) * items * (saved - wait / 2)
        return now + wait if gain > _MARGIN * view.waiting * wait else now


def _fade(value: float, end: float, width: float) -> float:
    """1 below `end - width`, 0 above `end`, straight in between."""
    return max(0.0, min(1.0, (end - value) / width))


def make_policy(policy: BatchPolicy, arrivals: Arrivals) -> Policy:
    """The policy that `policy` names."""
    return Timeout(policy) if policy.name == "timeout" else Adaptive(policy, arrivals)
