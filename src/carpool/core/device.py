"""Whether the batches in flight run side by side or one after the other.

Many slots may lead to one device: a proxy with several connections to one server, a queue in front of a GPU.
A batch that is sent while such a device is busy gains only the time it spends beside the device, before and
after (network, tokenising), and waits there while it could have grown here. So the next batch should leave
just in time: to reach the device as the one before it ends.

Nothing of that can be configured with confidence, and all of it can be seen from here. A serial device with
device time D(b) and `overlap` seconds per batch beside it, and independent slots of batch time S(b), answer at

    max(sent + overlap, the answer before) + D(b)    and    sent + S(b).

Both are predicted for every batch, each with a curve of its own, and whichever is clearly better is believed:
at first independence, as configured. The two agree on batches that were sent while none was out; those
decide nothing. On batches that were, an answer that follows the one before instead of the sending tells a
serial device within a few batches, and the same comparison finds out when it no longer is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from carpool.core.batch import Batch
from carpool.core.curve import Curve

# Chosen by simulation (benchmarks/scheduler/serial.py, and independent slots). An error step of 0.1 with 8
# batches to a judgement decided sooner, but changed its mind up to 20 times in 12 000 requests.
_STEP = 0.1  # how far the overlap moves towards what a batch shows
_ERROR_STEP = 0.05  # the same for the two errors
_ENOUGH = 16  # batches to compare on before a judgement, and before the next
_MOST = 0.75  # of a batch's time: with more of it beside the device nothing would ever be seen to queue there
_CLEARLY = 0.7  # of the other's error: the error that overturns what is believed


class Device:
    """What is behind the slots: `serial` or not, its `curve`, and when it can take the next batch.

    `curve` is the time for which a batch occupies it: all of the batch's time where slots are independent, all
    but the overlap where the device is serial.
    """

    __slots__ = (
        "_compared",
        "_error_in_turn",
        "_error_side_by_side",
        "_first_end",
        "_in_turn",
        "_is_declared",
        "_last_end",
        "_overlap",
        "_side_by_side",
        "serial",
    )

    def __init__(self) -> None:
        self.serial = False
        self._is_declared = False
        self._side_by_side = Curve()
        self._in_turn = Curve()
        self._overlap = 0.0  # none until it is known, and then only one batch is out at a time
        self._error_side_by_side = 0.0  # mean seconds, where the two differ
        self._error_in_turn = 0.0
        self._compared = 0
        self._first_end = inf
        self._last_end = -inf

    def __repr__(self) -> str:
        kind = f"serial, {self._overlap * 1e3:.3g} ms beside it" if self.serial else "independent slots"
        return f"<Device: {kind}, {self.curve}>"

    @property
    def curve(self) -> Curve:
        """The time for which a batch occupies the device, by what is believed."""
        return self._in_turn if self.serial else self._side_by_side

    @property
    def overlap(self) -> float:
        """Seconds of a batch's time in which the device is free for another."""
        return self._overlap if self.serial else 0.0

    def declare(self, is_serial: bool) -> None:
        """It is known to be serial, with nothing beside it; or it is to be judged from now on."""
        self._is_declared = is_serial
        if is_serial:
            self.serial, self._overlap, self._compared = True, 0.0, 0

    def learn(self, now: float, batch: Batch) -> bool:
        """A batch came back well; to be told before `ended`. Whether what is believed has changed.

        What left before the first answer may have met a cold start, and teaches nothing.
        """
        sent, cost = batch.taken_at, batch.cost
        if sent < self._first_end:
            return False
        if self._is_declared:
            self._in_turn.learn(cost, now - max(sent, self._last_end))
            return False
        changed = self._compare(now, batch) if self._last_end > sent else False
        if self._in_turn.ready and self._last_end <= sent + self._overlap:  # it found the device idle
            beside = now - sent - self._in_turn.predict(cost)
            beside = max(0.0, min(_MOST * (now - sent), beside))
            self._overlap += _STEP * (beside - self._overlap)
        self._side_by_side.learn(cost, now - sent)
        self._in_turn.learn(cost, now - max(sent + self._overlap, self._last_end))
        return changed

    def ended(self, now: float) -> None:
        """A batch is back, well or not."""
        self._first_end = min(self._first_end, now)
        self._last_end = now

    def expect(self, before: float, batches: Iterable[Batch]) -> None:
        """Predict when `batches`, in the order in which they left, are back; the one before is at `before`.

        To be repeated whenever one is back: in a chain of predictions the errors add up.
        """
        for batch in batches:
            starts = batch.taken_at + self.overlap
            if self.serial:
                starts = max(starts, before)
            batch.expected_at = before = starts + self.curve.predict(batch.cost)

    def _compare(self, now: float, batch: Batch) -> bool:
        """Judge by how well each hypothesis predicts this batch; whether the judgement has changed."""
        if not (self._in_turn.ready and self._side_by_side.ready):
            return False
        sent, cost = batch.taken_at, batch.cost
        side_by_side = self._side_by_side.predict(cost)
        in_turn = max(sent + self._overlap, self._last_end) + self._in_turn.predict(cost)
        # A straggler counts as one batch time at most, or it would decide alone.
        self._compared += 1
        step = max(_ERROR_STEP, 1 / self._compared)
        miss = min(side_by_side, abs(now - sent - side_by_side))
        self._error_side_by_side += step * (miss - self._error_side_by_side)
        miss = min(side_by_side, abs(now - in_turn))
        self._error_in_turn += step * (miss - self._error_in_turn)
        believed, other = self._error_side_by_side, self._error_in_turn
        if self.serial:
            believed, other = other, believed
        if self._compared < _ENOUGH or other >= _CLEARLY * believed:
            return False
        self.serial = not self.serial
        self._compared = 0
        return True
