"""What a load generator has seen: a few numbers for every request, kept as they come."""

from __future__ import annotations

from array import array

LOST = 0  # the status of a request whose connection broke
UNANSWERED = 1  # of one that nobody had answered when the patience at the end of the run was over


class Record:
    """Requests in the order in which they ended, from `since` on. Times are `perf_counter`'s.

    A request is due when it was meant to be sent; its latency is counted from there. What was due before
    `since` is part of the throughput and of nothing else.
    """

    def __init__(self) -> None:
        self.restart(0.0)

    def __len__(self) -> int:
        return len(self.status)

    def restart(self, now: float) -> None:
        """Forget what was: that was the warm-up."""
        self.since = now
        self.due = array("d")
        self.ended = array("d")
        self.status = array("H")
        self.failed = 0
        self.late = array("d")  # how long after they were due requests were sent, in the order of sending

    def end(self, due: float, now: float, status: int) -> None:
        """A request that was due then has ended now."""
        self.due.append(due)
        self.ended.append(now)
        self.status.append(status)
        self.failed += not 200 <= status < 300
