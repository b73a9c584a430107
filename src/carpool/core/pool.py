"""The replicas behind one queue: which of them takes the next batch, and what they can do together.

It knows nothing of requests and of when a batch should leave: it is told how much waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

from carpool.core.batch import Batch, Search
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.replica import Capacity, Replica

_EARLY = 0.001  # seconds: timers are no finer, so less than that is now
_FORGOTTEN = 2.0  # seconds without a batch after which what is known of a replica's speed may be history
_HEADROOM = 1.2  # over the batch size that the load needs, where an objective asks for small batches


class Pool:
    """All replicas. `look_again_at` is when to ask again for a free one after there was none.

    `down_since` is since when no replica is up, as far as was looked.
    """

    __slots__ = (
        "_added",
        "_budget",
        "_load",
        "_most_at_once",
        "_objective",
        "_patience",
        "_size",
        "_watches_devices",
        "down_since",
        "look_again_at",
        "replicas",
    )

    def __init__(
        self,
        policy: BatchPolicy,
        limits: Limits,
        capacities: Sequence[Capacity],
        load: Callable[[], tuple[float, float]],
    ) -> None:
        self._size = policy.max_batch_size
        self._budget = inf if policy.max_batch_cost is None else policy.max_batch_cost
        self._objective = policy.objective
        self._load = load  # what an item costs on average, and how many arrive in a second
        self._most_at_once = limits.max_in_flight
        self._watches_devices = policy.name == "adaptive" and limits.max_in_flight > 1
        self._patience = inf if limits.patience is None else limits.patience
        self.down_since = inf
        self._added = 0
        self.replicas: list[Replica] = []
        self.look_again_at = inf
        for capacity in capacities:
            self.add(capacity)

    # -- who is in it --------------------------------------------------------------------------------------

    def add(self, capacity: Capacity) -> int:
        """Another replica; the number by which it goes from now on."""
        self._added += 1
        number = self._added - 1
        self.replicas.append(Replica(number, capacity, self._most_at_once, self._watches_devices))
        return number

    def remove(self, number: int) -> None:
        """Send it nothing more; it is forgotten once all that is in flight there has ended."""
        replica = self.replica(number)
        replica.is_available = False
        replica.is_leaving = True
        self.forget_if_gone(replica)

    def forget_if_gone(self, replica: Replica) -> None:
        """Forget a replica that leaves, if nothing is in flight there."""
        if replica.is_leaving and not replica.in_flight:
            self.replicas.remove(replica)

    def replica(self, number: int) -> Replica:
        """The replica of a number."""
        for replica in self.replicas:
            if replica.number == number:
                return replica
        raise ValueError(f"there is no replica {number}")

    # -- who is well ---------------------------------------------------------------------------------------

    def set_available(self, now: float, number: int, is_available: bool) -> None:
        """Whether a replica can be reached at all, as the driver knows it. News is trusted over history."""
        replica = self.replica(number)
        if is_available and not replica.is_available:
            replica.breaker.reset()
            self.down_since = inf
        replica.is_available = is_available
        self._look(now)

    def is_up(self, now: float) -> bool:
        """Whether a batch may be sent anywhere, were there a slot."""
        return any(replica.is_up(now) for replica in self.replicas)

    def has_answered(self) -> None:
        """A batch is back well."""
        self.down_since = inf

    def excused(self, search: Search) -> None:
        """What replicas said of the size of batches was due to one item."""
        for replica in self.replicas:
            replica.excused(search)

    def is_down(self, now: float) -> bool:
        """Whether nobody should be kept waiting: no replica has been up for so long, or will be before that."""
        if self._look(now):
            return False
        patient_until = self.down_since + self._patience
        return now >= patient_until or self.opens_at() > patient_until

    def opens_at(self) -> float:
        """When the first breaker opens, where all replicas can be reached and are paused; else in the past."""
        return min(
            (replica.breaker.opens_at if replica.is_available else -inf for replica in self.replicas),
            default=-inf,
        )

    def _look(self, now: float) -> bool:
        """Whether any is up; since when none is, is remembered."""
        is_up = self.is_up(now)
        if not is_up:
            self.down_since = min(self.down_since, now)
        return is_up

    # -- where the next batch goes -------------------------------------------------------------------------

    def free(self, now: float, waiting: int, cost: float) -> Replica | None:
        """Where the next batch goes, of `waiting` items that cost `cost`; None if there is no place now."""
        self.look_again_at = inf
        if len(self.replicas) == 1:
            replica = self.replicas[0]
            if replica.is_free(now, is_full=True):  # whether it is, who asks will see
                return replica
            if replica.is_up(now):
                return None
        elif (soonest := self._soonest(now, waiting, cost)) is not None:
            return soonest
        if not self._look(now):
            trials = (replica.breaker.opens_at for replica in self.replicas if replica.is_available)
            patient_until = self.down_since + self._patience
            self.look_again_at = min((at for at in (*trials, patient_until) if at > now), default=inf)
        return None

    def free_for_rerun(self, now: float, avoid: int | None) -> Replica | None:
        """A place for a batch that one replica has lost: that one only if no other is up."""
        others = [replica for replica in self.replicas if replica.number != avoid]
        if not any(replica.is_up(now) for replica in others):
            others = self.replicas
        return next((replica for replica in others if replica.is_free(now)), None)

    def _soonest(self, now: float, waiting: int, cost: float) -> Replica | None:
        """The free replica from which a batch would be back first; what is in flight there slows it down.

        None is better than a slow one, as long as there is less than a full batch and a busy one that would
        be back with it even sooner. One that got nothing for a while is tried: it may be faster by now.
        """
        best: Replica | None = None
        best_at, busy_at, busy_until = inf, inf, inf
        for replica in self.replicas:
            if not replica.is_up(now):
                continue
            is_free = replica.is_free(now, is_full=waiting >= replica.limit(self._size))
            if is_free and not replica.in_flight and now - replica.sent_at > _FORGOTTEN:
                return replica
            share = min(1.0, replica.limit(self._size) / max(1, waiting))
            frees_in = replica.frees_in(now)
            beside = 0 if replica.device.serial else len(replica.in_flight) - (not is_free)
            at = now + frees_in + replica.curve.predict(cost * share) * (1 + beside)
            if is_free:
                if at < best_at or best is None:
                    best, best_at = replica, at
            elif at < busy_at and frees_in > _EARLY:  # else it is late, and nobody knows by how much
                busy_at, busy_until = at, now + frees_in
        if best is not None and busy_at < best_at and waiting < best.limit(self._size):
            self.look_again_at = busy_until
            return None
        return best

    def late(self) -> Iterator[tuple[float, Batch]]:
        """The batches in flight that have no twin, each with the time from which it is unusually late."""
        for replica in self.replicas:
            if replica.curve.ready:
                for batch in replica.in_flight.values():
                    if batch.twin is None and not batch.is_settled:
                        expected = batch.expected_at - batch.taken_at
                        yield batch.taken_at + expected * replica.curve.slowest, batch

    # -- what it can do ------------------------------------------------------------------------------------

    def width(self) -> int:
        """How many batches run at once."""
        return max(1, sum(replica.width for replica in self.replicas if replica.is_available))

    def ends(self, replica: Replica) -> list[float]:
        """When the other places for a batch are expected to be free, soonest first."""
        return sorted(
            end
            for other in self.replicas
            if not (other is replica and other.device.serial) and other.is_available
            for end in other.ends()
        )

    def budget(self, replica: Replica) -> float:
        """What a batch may cost."""
        return min(self._budget, replica.budget)

    def seconds(self, replica: Replica, cost: float) -> float:
        """How long a batch takes that would cost so much if a batch could; 0 as long as nothing is known."""
        return replica.curve.predict(min(cost, self.budget(replica)))

    def limit(self, replica: Replica) -> int:
        """How many items a batch may have now: what was configured, what the replica bears, what is fast.

        Where an objective asks for smaller batches, it never takes the capacity that the load needs: a cap that
        shrinks as latency grows makes the queue longer, and the latency with it.
        """
        limit = replica.limit(self._size)
        objective, curve = self._objective, replica.curve
        if objective is None or not curve.ready or curve.per_cost <= 0:
            return limit
        mean_cost, rate = self._load()
        width, per_item = self.width(), curve.per_cost * mean_cost
        fast = (objective * width / (width + 1) - replica.device.overlap - curve.fixed) / per_item
        spare = width - rate * per_item
        needed = _HEADROOM * rate * curve.fixed / spare if spare > 0 else inf
        return max(1, int(min(limit, max(fast, needed))))

    def typical(self, now: float) -> Replica | None:
        """A replica by which to predict; None as long as nothing is known."""
        for replica in self.replicas:
            if replica.curve.ready and replica.is_up(now):
                return replica
        return None

    def pace(self, replica: Replica, cost: float) -> float:
        """Seconds from one batch of this cost to the next, when all replicas are busy."""
        if len(self.replicas) == 1:
            return self.seconds(replica, cost) / replica.width
        per_second = sum(
            other.width / max(1e-9, self.seconds(other if other.curve.ready else replica, cost))
            for other in self.replicas
            if other.is_available
        )
        return 1 / per_second

    def frees_in(self, now: float) -> float:
        """How long until a batch could begin to run."""
        return min((replica.frees_in(now) for replica in self.replicas if replica.is_up(now)), default=0.0)
