"""The scheduler on a fake clock: every `now` below is a number in the test."""

from __future__ import annotations

from typing import Any

import pytest

from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.scheduler import Scheduler
from carpool.errors import BackendError, Overloaded, TimedOut
from tests.core.support import must_take, submit


def make(name: Any = "adaptive", size: int = 4, wait: float = 0.1, **limits: Any) -> Scheduler:
    return Scheduler(BatchPolicy(name, size, wait), Limits(**limits))


def test_adaptive_sends_a_lone_request_at_once() -> None:
    """At low load nobody waits for a timer."""
    scheduler = make()
    submit(scheduler, 1.0, "a")
    batch = must_take(scheduler, 1.0)
    assert (batch.items, batch.reason) == (["a"], "slot free")


def test_whoever_arrives_while_a_batch_runs_travels_in_the_next() -> None:
    """The batch is formed when the slot is free, not when the requests arrive."""
    scheduler = make()
    submit(scheduler, 0.0, "a")
    first = must_take(scheduler, 0.0)
    for now, item in enumerate("bcd", 1):
        submit(scheduler, float(now), item)
        assert scheduler.take_batch(float(now)) is None
    scheduler.complete(4.0, first, ["A"])
    assert must_take(scheduler, 4.0).items == ["b", "c", "d"]


def test_timeout_holds_until_the_oldest_has_waited_long_enough() -> None:
    """The wait counts from arrival, and later arrivals do not prolong it."""
    scheduler = make("timeout", wait=0.1)
    submit(scheduler, 0.0, "a")
    assert scheduler.take_batch(0.0) is None
    assert scheduler.next_wakeup() == pytest.approx(0.1)
    submit(scheduler, 0.09, "b")
    assert scheduler.take_batch(0.09) is None
    assert scheduler.next_wakeup() == pytest.approx(0.1)
    batch = must_take(scheduler, 0.1)
    assert (batch.items, batch.reason) == (["a", "b"], "waited")
    assert batch.longest_wait == pytest.approx(0.1)


def test_timeout_sends_a_full_batch_without_waiting() -> None:
    """Whatever is over the size stays for the next batch."""
    scheduler = make("timeout", size=2)
    for item in "abc":
        submit(scheduler, 0.0, item)
    batch = must_take(scheduler, 0.0)
    assert (batch.items, batch.reason) == (["a", "b"], "full")
    assert scheduler.take_batch(0.0) is None


def test_timeout_counts_the_wait_from_arrival_even_when_the_slot_was_busy() -> None:
    """A request that waited for a slot longer than the timer leaves as soon as there is one."""
    scheduler = make("timeout", wait=0.1)
    submit(scheduler, 0.0, "a")
    running = must_take(scheduler, 0.1)
    submit(scheduler, 0.2, "b")
    assert scheduler.take_batch(0.5) is None
    scheduler.complete(0.5, running, ["A"])
    assert must_take(scheduler, 0.5).items == ["b"]


@pytest.mark.parametrize("name", ["adaptive", "timeout"])
def test_no_more_batches_than_slots_are_in_flight(name: str) -> None:
    """The limit on batches in flight holds whatever waits."""
    scheduler = make(name, size=1, max_in_flight=2)
    for item in "abc":
        submit(scheduler, 0.0, item)
    first = must_take(scheduler, 0.0)
    must_take(scheduler, 0.0)
    assert scheduler.take_batch(0.0) is None
    assert scheduler.next_wakeup() is None
    scheduler.complete(1.0, first, ["A"])
    assert scheduler.next_wakeup() == 1.0
    assert must_take(scheduler, 1.0).items == ["c"]


def test_a_request_larger_than_a_batch_is_split_and_comes_back_whole_and_in_order() -> None:
    """Batches may end in any order; each result finds its place."""
    scheduler = make(size=4, max_in_flight=3)
    small = submit(scheduler, 0.0, "a", "b")
    large = submit(scheduler, 0.0, *range(7))
    batches = [must_take(scheduler, 0.0) for _ in range(3)]
    assert [batch.items for batch in batches] == [["a", "b", 0, 1], [2, 3, 4, 5], [6]]
    for batch in reversed(batches):
        scheduler.complete(1.0, batch, [f"{item}!" for item in batch.items])
    assert scheduler.collect_ended() == [small, large]
    assert small.results == ["a!", "b!"]
    assert large.results == [f"{number}!" for number in range(7)]


@pytest.mark.parametrize("results", [[], ["A"], ["A", "B", "C"]])
def test_a_wrong_count_of_results_is_everyones_error_and_no_ones_answer(results: list[str]) -> None:
    """Pairing is strict: with a result too few or too many nobody can know whose is whose."""
    scheduler = make()
    requests = [submit(scheduler, 0.0, item) for item in "ab"]
    scheduler.complete(1.0, must_take(scheduler, 0.0), results)
    assert scheduler.collect_ended() == requests
    for request in requests:
        assert isinstance(request.error, BackendError)
        assert f"{len(results)} results for 2 inputs" in str(request.error)
        assert request.results == []


def test_a_failed_batch_fails_its_own_requests_and_no_others() -> None:
    """An error stays in its batch."""
    scheduler = make(size=1)
    first, second = submit(scheduler, 0.0, "a"), submit(scheduler, 0.0, "b")
    error = BackendError("the model raised ValueError")
    scheduler.complete(1.0, must_take(scheduler, 0.0), error)
    scheduler.complete(2.0, must_take(scheduler, 1.0), ["B"])
    assert scheduler.collect_ended() == [first, second]
    assert (first.error, second.error, second.results) == (error, None, ["B"])


def test_an_exception_in_a_results_place_is_that_items_error_alone() -> None:
    """A backend can fail one item and answer its companions."""
    scheduler = make()
    good, bad, also_good = (submit(scheduler, 0.0, item) for item in "abc")
    error = ValueError("too long")
    scheduler.complete(1.0, must_take(scheduler, 0.0), ["A", error, "C"])
    assert (good.results, bad.error, also_good.results) == (["A"], error, ["C"])


def test_a_request_that_failed_in_part_does_not_run_the_rest() -> None:
    """What still waits of it leaves the queue, what is in flight is ignored, and it ends once."""
    scheduler = make(size=2, max_in_flight=2)
    large = submit(scheduler, 0.0, *range(6))
    first, second = must_take(scheduler, 0.0), must_take(scheduler, 0.0)
    scheduler.complete(1.0, first, BackendError("no"))
    assert scheduler.statistics().waiting == 0
    scheduler.complete(2.0, second, [2, 3])
    assert scheduler.take_batch(2.0) is None
    assert scheduler.collect_ended() == [large]
    assert isinstance(large.error, BackendError)


def test_a_cancelled_request_frees_its_place_at_once_and_is_not_run() -> None:
    """Cancelling twice, or after the end, does nothing."""
    scheduler = make(max_queue_size=1)
    gone = submit(scheduler, 0.0, "a")
    scheduler.cancel(gone)
    scheduler.cancel(gone)
    kept = submit(scheduler, 0.0, "b")
    assert must_take(scheduler, 0.0).items == ["b"]
    scheduler.cancel(kept)
    assert scheduler.collect_ended() == []


def test_results_of_a_request_cancelled_in_flight_go_nowhere() -> None:
    """Its companions in the batch get theirs, and only theirs."""
    scheduler = make()
    gone, kept = submit(scheduler, 0.0, "a"), submit(scheduler, 0.0, "b")
    batch = must_take(scheduler, 0.0)
    scheduler.cancel(gone)
    scheduler.complete(1.0, batch, ["A", "B"])
    assert scheduler.collect_ended() == [kept]
    assert (gone.results, kept.results) == ([], ["B"])


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    """The bound is in items; a refused request leaves no trace."""
    scheduler = make(max_queue_size=3)
    submit(scheduler, 0.0, "a", "b")
    with pytest.raises(Overloaded, match="at most 3 may wait"):
        submit(scheduler, 0.0, "c", "d")
    submit(scheduler, 0.0, "e")
    assert must_take(scheduler, 0.0).items == ["a", "b", "e"]


def test_a_request_that_waited_too_long_is_ended_and_not_run() -> None:
    """The scheduler asks to be woken for it, even when every slot is busy."""
    scheduler = make(queue_timeout=2.0)
    submit(scheduler, 0.0, "a")
    must_take(scheduler, 0.0)
    late = submit(scheduler, 1.0, "b")
    assert scheduler.take_batch(1.0) is None
    assert scheduler.next_wakeup() == 3.0
    assert scheduler.take_batch(3.0) is None
    assert scheduler.collect_ended() == [late]
    assert isinstance(late.error, TimedOut)
    assert scheduler.next_wakeup() is None


def test_an_empty_request_is_refused() -> None:
    """It could never end, for no batch would carry it."""
    with pytest.raises(ValueError, match="one item at least"):
        submit(make(), 0.0)


def test_the_state_reads_well() -> None:
    """`repr` tells a person what is going on."""
    scheduler = make(max_in_flight=2)
    request = submit(scheduler, 0.0, "a", "b")
    assert repr(scheduler) == "<Scheduler: 2 waiting, 0 of 2 slots busy>"
    assert repr(request) == "<Request of 2: 2 queued, 0 of 2 answered>"
    batch = must_take(scheduler, 0.0)
    assert repr(batch) == "<Batch 1: 2 items of 1 requests, slot free>"
    scheduler.complete(1.0, batch, "AB")
    assert repr(request) == "<Request of 2: ended>"
