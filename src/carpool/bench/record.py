"""What a load generator has seen: a few numbers for every request, kept as they come.

Of a long run only an even share is kept: whenever there are `MOST` requests two of three are dropped, and from
then on kept as seldom. So an hour takes no more memory than a minute. Counts are of all requests. A third and
not a half, since replies come in batches, whose sizes are powers of 2 as a rule: every place in a batch keeps
its part.
"""

from __future__ import annotations

from array import array
from collections import Counter

LOST = 0  # the status of a request whose connection broke
UNANSWERED = 1  # of one that nobody had answered when the patience at the end of the run was over
MOST = 600_000  # requests: 200,000 are kept at least, of which 2,000 are above the 99th percentile
_KEPT_OF = 3


class Record:
    """Requests in the order in which they ended, from `since` on. Times are `perf_counter`'s.

    A request is due when it was meant to be sent; its latency is counted from there. What was due before
    `since` is part of the throughput and of nothing else.
    """

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, now: float) -> None:
        """Forget what was: that was the warm-up."""
        self.since = now
        self.ends = 0
        self.every = 1  # one of so many that ended is kept
        self.due = array("d")
        self.ended = array("d")
        self.status = array("H")
        self.requests = 0  # that were due from `since` on
        self.errors: Counter[int] = Counter()  # of those, by status
        self.longest = 0.0  # seconds until an answer that is good
        self.failed = 0
        self._sent, self._late_every = 0, 1
        self.late = array("d")  # how long after they were due requests were sent, in the order of sending

    def __len__(self) -> int:
        return self.ends

    def end(self, due: float, now: float, status: int) -> None:
        """A request that was due then has ended now."""
        if self.ends % self.every == 0:
            self._keep(due, now, status)
        self.ends += 1
        is_ours = due >= self.since
        self.requests += is_ours
        if not 200 <= status < 300:
            self.failed += 1
            self.errors[status] += is_ours
        elif is_ours and now - due > self.longest:
            self.longest = now - due

    def send(self, late: float) -> None:
        """A request was sent so much later than it was due."""
        if self._sent % self._late_every == 0:
            self.late.append(late)
            if len(self.late) == MOST:
                self.late = self.late[::_KEPT_OF]
                self._late_every *= _KEPT_OF
        self._sent += 1

    def _keep(self, due: float, now: float, status: int) -> None:
        self.due.append(due)
        self.ended.append(now)
        self.status.append(status)
        if len(self.status) == MOST:
            self.due, self.ended = self.due[::_KEPT_OF], self.ended[::_KEPT_OF]
            self.status = self.status[::_KEPT_OF]
            self.every *= _KEPT_OF
