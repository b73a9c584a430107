"""What is counted of each replica."""

from __future__ import annotations

from carpool.core.scheduler import SchedulerStatistics
from carpool.errors import Abandoned, Unreachable
from carpool.observe.metrics import Metrics
from carpool.observe.observer import BatchEnded, BatchLeft, ReplicaStatus


def lines_of(metrics: Metrics, name: str) -> set[str]:
    lines = metrics.prometheus().decode().splitlines()
    return {line.removeprefix(f"carpool_replica_{name}") for line in lines if f"replica_{name}{{" in line}


class Replicas:
    """What there is, as a batcher tells it."""

    def __init__(self, *there: ReplicaStatus) -> None:
        self.there = there
        self.metrics = Metrics()
        self.metrics.watch("m", lambda: SchedulerStatistics(0, 0, 0), lambda: self.there)

    def sent(self, replica: str, reason: str = "full", error: Exception | None = None) -> None:
        self.metrics.observe(BatchLeft("m", 1, 1, 1, reason, 0.0, 0, replica))
        self.metrics.observe(BatchEnded("m", 1, 1, 0.1, error, replica))


def test_batches_are_counted_by_replica_and_outcome() -> None:
    """And those that had been sent before, by why they were sent again."""
    replicas = Replicas(ReplicaStatus("a", 2, 4, True, None), ReplicaStatus("b", 0, 4, False, "gone"))
    for _ in range(3):
        replicas.sent("a")
    replicas.sent("b", error=Unreachable("no"))
    replicas.sent("a", "retry")
    replicas.sent("b", "hedge", Abandoned("nobody"))
    assert lines_of(replicas.metrics, "batches_total") == {
        '{model="m",outcome="ok",replica="a"} 4.0',
        '{model="m",outcome="Unreachable",replica="b"} 1.0',
        '{model="m",outcome="Abandoned",replica="b"} 1.0',
    }
    assert lines_of(replicas.metrics, "reruns_total") == {
        '{model="m",reason="retry",replica="a"} 1.0',
        '{model="m",reason="hedge",replica="b"} 1.0',
    }
    assert lines_of(replicas.metrics, "up") == {
        '{model="m",replica="a"} 1.0',
        '{model="m",replica="b"} 0.0',
    }
    assert lines_of(replicas.metrics, "batches_in_flight") == {
        '{model="m",replica="a"} 2.0',
        '{model="m",replica="b"} 0.0',
    }


def test_replicas_that_come_and_go_leave_nothing_behind() -> None:
    """A thousand addresses, one after the other, are one line at a time."""
    replicas = Replicas()
    for number in range(1000):
        name = f"http://10.0.0.{number}"
        replicas.there = (ReplicaStatus(name, 0, 1, True, None),)
        replicas.sent(name, "retry")
        if number % 100 == 99:
            assert len(lines_of(replicas.metrics, "batches_total")) == 1
            assert len(lines_of(replicas.metrics, "reruns_total")) == 1


def test_one_that_comes_back_while_it_still_leaves_is_one_line() -> None:
    """Two samples with the same labels would spoil the whole scrape."""
    well, leaving = ReplicaStatus("a", 1, 4, True, None), ReplicaStatus("a", 2, 4, False, "leaving")
    replicas = Replicas(well, leaving)
    assert lines_of(replicas.metrics, "batches_in_flight") == {'{model="m",replica="a"} 3.0'}
    assert lines_of(replicas.metrics, "up") == {'{model="m",replica="a"} 1.0'}
