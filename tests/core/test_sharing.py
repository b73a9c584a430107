"""Requests with the same key share one computation, and only that."""

from __future__ import annotations

import gc

import pytest

from carpool.core.request import Request
from carpool.errors import BackendError, Overloaded, TimedOut
from tests.core.support import echo, make, must_take, submit, taught


def count_requests() -> int:
    # `isinstance` would ask objects of others for their class, which can be more than an answer.
    return sum(type(each) is Request for each in gc.get_objects())


def test_the_same_key_is_computed_once_and_answered_to_all() -> None:
    """While it waits and while it runs; each gets a list of their own."""
    scheduler = make()
    first, second = (submit(scheduler, 0.0, "a", key="a") for _ in range(2))
    assert scheduler.statistics().waiting == 1
    batch = must_take(scheduler, 0.0)
    assert batch.items == ["a"]
    third = submit(scheduler, 0.5, "a", key="a")
    assert scheduler.take_batch(0.5) is None
    scheduler.complete(1.0, batch, ["A"])
    assert scheduler.collect_ended() == [first, second, third]
    first.results.clear()
    assert second.results == third.results == ["A"]


def test_who_shared_lets_go_of_each_other() -> None:
    """Answered, they are freed at once, as a server searches for garbage seldom."""
    scheduler = make()
    gc.collect()
    gc.disable()
    try:
        before = count_requests()
        for _ in range(3):
            submit(scheduler, 0.0, "a", key="a")
        assert count_requests() == before + 3
        scheduler.complete(1.0, must_take(scheduler, 0.0), ["A"])
        assert len(scheduler.collect_ended()) == 3
        assert scheduler.take_batch(1.0) is None  # by now it has learned from the batch, and lets it go
        assert count_requests() == before
    finally:
        gc.enable()


def test_what_has_been_answered_is_computed_anew() -> None:
    """It is no cache."""
    scheduler = make()
    submit(scheduler, 0.0, "a", key="a")
    scheduler.complete(1.0, must_take(scheduler, 0.0), ["A"])
    submit(scheduler, 2.0, "a", key="a")
    assert must_take(scheduler, 2.0).items == ["a"]


def test_an_error_is_everyones() -> None:
    """Who shared the computation shares its failure."""
    scheduler, error = make(), BackendError("no")
    requests = [submit(scheduler, 0.0, "a", key="a") for _ in range(3)]
    scheduler.complete(1.0, must_take(scheduler, 0.0), error)
    assert scheduler.collect_ended() == requests
    assert all(request.error is error for request in requests)


def test_one_that_leaves_does_not_take_the_others_along() -> None:
    """The first one neither, for whom it was queued."""
    scheduler = make()
    first, second = (submit(scheduler, 0.0, "a", key="a") for _ in range(2))
    assert scheduler.cancel(first)
    scheduler.complete(1.0, must_take(scheduler, 0.0), ["A"])
    assert scheduler.collect_ended() == [second]
    assert second.results == ["A"]


def test_the_last_one_that_leaves_frees_the_place() -> None:
    """At once, and the next with the same key starts afresh."""
    scheduler = make(queue=1)
    riders = [submit(scheduler, 0.0, "a", key="a") for _ in range(2)]
    with pytest.raises(Overloaded):
        submit(scheduler, 0.0, "b", key="b")
    for rider in riders:
        assert scheduler.cancel(rider)
    assert scheduler.statistics().waiting == 0
    submit(scheduler, 0.0, "b", key="b")
    assert must_take(scheduler, 0.0).items == ["b"]


def test_results_for_nobody_go_nowhere() -> None:
    """All have left while it ran; the next one with the key gets a computation of their own."""
    scheduler = make(slots=2)
    scheduler.cancel(submit(scheduler, 0.0, "b", key="b"))
    gone = submit(scheduler, 0.0, "a", key="a")
    batch = must_take(scheduler, 0.0)
    scheduler.cancel(gone)
    again = submit(scheduler, 0.5, "a", key="a")
    second = must_take(scheduler, 0.5)
    scheduler.complete(1.0, batch, ["old"])
    assert scheduler.collect_ended() == []
    scheduler.complete(1.0, second, ["new"])
    assert again.results == ["new"]


def test_who_joins_needs_no_place_in_the_queue() -> None:
    """It adds no work, so a full queue is no reason to refuse."""
    scheduler = make(queue=1)
    for _ in range(5):
        submit(scheduler, 0.0, "a", key="a", timeout=1.0)
    assert scheduler.statistics().waiting == 1


def test_one_with_an_earlier_deadline_expires_alone() -> None:
    """The others still wait, and are answered."""
    scheduler = make()
    submit(scheduler, 0.0, "running")
    running = must_take(scheduler, 0.0)
    patient = submit(scheduler, 0.0, "a", key="a", timeout=10.0)
    hasty = submit(scheduler, 0.0, "a", key="a", timeout=1.0)
    assert scheduler.next_wakeup() == 0.0
    assert scheduler.take_batch(0.0) is None
    assert scheduler.next_wakeup() == 1.0
    assert scheduler.take_batch(1.0) is None
    assert scheduler.collect_ended() == [hasty]
    assert isinstance(hasty.error, TimedOut)
    scheduler.complete(2.0, running, echo(running))
    scheduler.complete(3.0, must_take(scheduler, 2.0), ["A"])
    assert patient.results == ["A"]


def test_one_that_would_be_late_is_dropped_before_the_batch_leaves() -> None:
    """As it would be if it travelled alone; if nobody is left, nothing is run."""
    scheduler = make()
    now = taught(scheduler)
    submit(scheduler, now, "running")
    running = must_take(scheduler, now)
    late = [submit(scheduler, now, "a", key="a", timeout=0.05) for _ in range(2)]
    hasty = submit(scheduler, now, "b", key="b", timeout=0.05)
    patient = submit(scheduler, now, "b", key="b")
    scheduler.complete(now + 0.045, running, echo(running))
    assert must_take(scheduler, now + 0.045).items == ["b"]
    assert [request for request in scheduler.collect_ended() if request.error] == [*late, hasty]
    assert not patient.ended
