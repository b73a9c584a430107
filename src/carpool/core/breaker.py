"""Whether a replica is worth sending a batch to, by what became of the last ones.

Closed, it lets everything through. When most of the last batches were lost it opens: nothing is sent until a
pause is over. Then one batch goes as a trial: if it succeeds the breaker closes, if not the pause starts again,
longer. What a replica refuses for its contents or its size says nothing of its health and is not to be told.
"""

from __future__ import annotations

from math import inf

_STEP = 0.2  # how far the failure rate moves with each batch
_TOO_MANY = 0.66  # of the last batches lost: five in a row from perfect health, 1 - 0.8 ** 5 = 0.67
_FIRST_PAUSE = 0.25  # seconds; doubled each time a trial fails
_LONGEST_PAUSE = 0.5  # a replica that is back is to be used within 2 s, be it that a trial hung for one


class Breaker:
    """The health of one replica."""

    __slots__ = ("_failing", "_on_trial", "_pause", "opens_at")

    def __init__(self) -> None:
        self._failing = 0.0  # the share of the last batches that were lost
        self._pause = _FIRST_PAUSE
        self._on_trial = False
        self.opens_at = -inf  # until when nothing is to be sent

    def __repr__(self) -> str:
        return f"<Breaker: {'open' if self._failing > _TOO_MANY else 'closed'}>"

    @property
    def is_closed(self) -> bool:
        """Whether its batches come back."""
        return self._failing <= _TOO_MANY

    def allows(self, now: float) -> bool:
        """Whether a batch may be sent."""
        return now >= self.opens_at and not self._on_trial

    def sent(self) -> None:
        """A batch leaves; through an open breaker it is a trial."""
        self._on_trial = not self.is_closed

    def succeeded(self) -> None:
        """A batch came back, and with it all trust where it was a trial."""
        if self._on_trial or not self.is_closed:
            self.reset()
        else:
            self._failing -= _STEP * self._failing

    def failed(self, now: float) -> None:
        """A batch was lost."""
        self._failing += _STEP * (1 - self._failing)
        if self._on_trial or (not self.is_closed and now >= self.opens_at):
            self._on_trial = False
            self.opens_at = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def undecided(self) -> None:
        """A batch came back in a way that says nothing."""
        self._on_trial = False

    def pause(self, until: float) -> None:
        """Send nothing until then: the replica has asked for it."""
        self.opens_at = max(self.opens_at, until)

    def reset(self) -> None:
        """It is known to be well again."""
        self._failing = 0.0
        self._pause = _FIRST_PAUSE
        self._on_trial = False
        self.opens_at = -inf
