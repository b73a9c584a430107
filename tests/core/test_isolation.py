"""A bad item fails alone, an outage is not searched for one, and a batch that was too large is made smaller."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from carpool.core.batch import Batch
from carpool.core.isolation import Quarantine, halves
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import BackendError, BatchFailed, BatchTooLarge, Crashed, Hung
from tests.core.support import Simulation, echo, fails_on, make, must_take, serve_all, submit


def singles(scheduler: Scheduler, items: Sequence[Any], now: float = 0.0) -> list[Request]:
    return [submit(scheduler, now, item, key=item) for item in items]


@pytest.mark.parametrize("bad", [0, 1, 15, 16, 30, 31])
def test_one_bad_item_of_32_fails_alone(bad: int) -> None:
    """It costs ten more calls, wherever it sits; its companions are answered."""
    scheduler = make(32)
    requests = singles(scheduler, range(32))
    batches = serve_all(scheduler, 0.0, fails_on(bad))
    assert len(batches) <= 1 + 12
    assert [batch.reason for batch in batches[1:]] == ["isolation"] * (len(batches) - 1)
    assert [request.items[0] for request in requests if request.error is not None] == [bad]
    assert isinstance(requests[bad].error, BatchFailed)
    assert all(request.results == [request.items[0]] for request in requests if request.error is None)


def test_the_search_goes_before_what_waits() -> None:
    """The companions of a bad item have waited long enough."""
    scheduler = make(4)
    singles(scheduler, range(8))
    first = must_take(scheduler, 0.0)
    scheduler.complete(1.0, first, BatchFailed("bad item"))
    assert [batch.items for batch in serve_all(scheduler, 1.0)] == [[0, 1], [2, 3], [4, 5, 6, 7]]


def test_a_bad_item_is_refused_for_a_minute() -> None:
    """The same payload again is answered with the same error, at once; then it may try again."""
    scheduler = make(32)
    bad = singles(scheduler, range(32))[20]
    serve_all(scheduler, 0.0, fails_on(20))
    with pytest.raises(BatchFailed) as caught:
        submit(scheduler, 59.0, 20, key=20)
    assert caught.value is bad.error
    submit(scheduler, 59.0, 19, key=19)
    submit(scheduler, 70.0, 20, key=20)


def test_a_lone_request_that_fails_is_not_called_bad() -> None:
    """Nothing shows that it was the item and not the backend."""
    scheduler = make(32)
    submit(scheduler, 0.0, "a", key="a")
    serve_all(scheduler, 0.0, fails_on("a"))
    submit(scheduler, 1.0, "a", key="a")


def test_an_outage_is_not_searched() -> None:
    """When everything fails, all 32 are told after a few calls and not after 63; none of them is called bad."""
    scheduler = make(32)
    requests = singles(scheduler, range(32))
    batches = serve_all(scheduler, 0.0, lambda batch: BatchFailed("down"))
    assert len(batches) == 7
    assert all(isinstance(request.error, BatchFailed) for request in requests)
    singles(scheduler, range(32), 1.0)


def test_other_errors_are_not_searched() -> None:
    """They say nothing of what was in the batch."""
    scheduler, error = make(32), BackendError("timed out")
    requests = singles(scheduler, range(32))
    assert len(serve_all(scheduler, 0.0, lambda batch: error)) == 1
    assert all(request.error is error for request in requests)


def test_isolation_can_be_switched_off() -> None:
    """Then a bad item fails its batch."""
    scheduler = make(32, isolate=False)
    requests = singles(scheduler, range(32))
    assert len(serve_all(scheduler, 0.0, fails_on(3))) == 1
    assert all(request.error is not None for request in requests)


@pytest.mark.parametrize(("bad", "most_failed"), [(0.001, 0.0), (0.02, 0.001), (0.2, 0.05), (0.9, 1.0)])
def test_calls_for_isolation_are_at_most_two_for_each_answer(bad: float, most_failed: float) -> None:
    """Some bad items cost hardly any other its answer; however many there are, there are no more calls."""
    scheduler, draw = make(32), random.Random(0)
    calls, answered, failed = 0, 0, 0
    for number in range(500):
        items = [(number, place) for place in range(32)]
        wrong = {item for item in items if draw.random() < bad}
        requests = [submit(scheduler, float(number), item) for item in items]
        batches = serve_all(scheduler, float(number), fails_on(*wrong))
        calls += sum(batch.reason == "isolation" for batch in batches)
        answered += sum(request.error is None for request in requests)
        failed += sum(request.error is not None and request.items[0] not in wrong for request in requests)
    assert 0 < calls <= 64 + 2 * answered
    assert failed <= most_failed * 500 * 32


def test_a_request_of_many_items_with_a_bad_one_fails_once_and_runs_no_further() -> None:
    """Its other items are not worth a call; its companions are."""
    scheduler = make(8)
    large, small = submit(scheduler, 0.0, *range(6)), submit(scheduler, 0.0, "a", "b")
    batches = serve_all(scheduler, 0.0, fails_on(0))
    assert isinstance(large.error, BatchFailed)
    assert small.results == ["a", "b"]
    assert scheduler.collect_ended() == [small, large]
    assert len(batches) <= 7


def test_what_is_cancelled_during_the_search_is_not_run_again() -> None:
    """Nor is an empty batch sent in its place."""
    scheduler = make(4)
    requests = singles(scheduler, range(4))
    scheduler.complete(1.0, must_take(scheduler, 0.0), BatchFailed("bad item"))
    scheduler.cancel(requests[2])
    scheduler.cancel(requests[3])
    assert [batch.items for batch in serve_all(scheduler, 1.0)] == [[0, 1]]


def bears(most: int) -> Any:
    return lambda batch: BatchTooLarge("out of memory") if len(batch) > most else echo(batch)


@pytest.mark.parametrize("most", [1, 3, 5, 20])
def test_a_batch_that_was_too_large_is_answered_in_pieces(most: int) -> None:
    """However small they must be: this is no outage."""
    scheduler = make(32)
    requests = singles(scheduler, range(64))
    batches = serve_all(scheduler, 0.0, bears(most))
    assert [request.results for request in requests] == [[number] for number in range(64)]
    assert len([batch for batch in batches if len(batch) > most and batch.reason != "isolation"]) == 1


def test_the_size_that_was_too_large_is_approached_again() -> None:
    """Halved at once, then one more for every hundred batches that went well."""
    scheduler = make(32)
    singles(scheduler, range(32))
    serve_all(scheduler, 0.0, bears(20))
    sizes = []
    for number in range(1, 1000):
        for _ in range(32):
            submit(scheduler, float(number), "a")
        sizes.append(max(len(batch) for batch in serve_all(scheduler, float(number), bears(20))))
    assert sizes[0] == 16
    assert 17 in sizes[:100]
    assert 20 in sizes
    assert max(sizes) <= 21


def test_one_item_that_is_too_large_by_itself_does_not_make_every_batch_small() -> None:
    """The batches that were too large with it were so because of it: their sizes are borne as before."""
    scheduler = make(32)
    giant = lambda batch: BatchTooLarge("no") if "giant" in batch.items else echo(batch)  # noqa: E731
    submit(scheduler, 0.0, "giant")
    serve_all(scheduler, 0.0, giant)
    requests = singles(scheduler, [*range(5), "giant", *range(5, 31)], 1.0)
    serve_all(scheduler, 1.0, giant)
    assert [request.items[0] for request in requests if request.error is not None] == ["giant"]
    singles(scheduler, range(32), 2.0)
    assert len(must_take(scheduler, 2.0)) == 32


def test_what_a_replica_has_shown_to_bear_outlives_an_item_that_is_too_large() -> None:
    """Only what the search for that item has taken from it comes back."""
    scheduler = make(32)
    singles(scheduler, range(32))
    serve_all(scheduler, 0.0, bears(20))
    singles(scheduler, [*range(5), "giant", *range(5, 15)], 1.0)
    serve_all(scheduler, 1.0, lambda batch: BatchTooLarge("no") if "giant" in batch.items else echo(batch))
    singles(scheduler, range(32), 2.0)
    assert len(must_take(scheduler, 2.0)) == 16


def test_halves_cut_a_request_where_the_middle_falls() -> None:
    """Nothing is lost and nothing doubled."""
    first, second = Request("abc"), Request("defgh")
    left, right = halves(Batch(1, [(first, 0, 3), (second, 0, 5)], 0.0, "full"))
    assert left == [(first, 0, 3), (second, 0, 1)]
    assert right == [(second, 1, 5)]


def test_the_quarantine_is_bounded() -> None:
    """The oldest are forgotten when there are many."""
    quarantine = Quarantine()
    for number in range(5000):
        quarantine.add(0.0, number, BatchFailed("bad"))
    assert quarantine.find(0.0, 0) is None
    assert quarantine.find(0.0, 4999) is not None
    assert len(quarantine.known) <= 1024
    assert quarantine.find(61.0, 0) is None
    assert not quarantine.known  # the minute is over for all of them


def dies_of(*deadly: Any) -> Callable[[Batch], list[Any] | BaseException]:
    """A backend whose processes die of these items."""
    return lambda batch: Crashed("it died") if set(deadly) & set(batch.items) else echo(batch)


def run_together(simulation: Simulation, items: Sequence[Any], has_keys: bool = True) -> None:
    """All arrive before the first batch leaves."""
    *first, last = [Request([item], key=item if has_keys else None) for item in items]
    for request in first:
        simulation.scheduler.submit(0.0, request)
    simulation.run([(0.0, last)])


def test_a_batch_that_one_process_died_over_is_run_again_whole() -> None:
    """One death proves nothing: somebody may have killed it."""
    deaths = iter([True])
    simulation = Simulation(make(8), lambda batch: Crashed("it died") if next(deaths, False) else echo(batch))
    run_together(simulation, range(8))
    assert [(len(batch), batch.reason) for batch in simulation.batches][1:] == [(8, "retry")]
    assert all(request.error is None for request in simulation.ended)


@pytest.mark.parametrize("others", [0, 7])
def test_an_item_that_two_processes_died_of_is_named_and_not_run_again(others: int) -> None:
    """Its companions are answered; alone or not, it may kill no more for a minute."""
    scheduler = make(8)
    simulation = Simulation(scheduler, dies_of("bad"))
    items = ["bad", *range(others)]
    run_together(simulation, items)
    (error,) = [request.error for request in simulation.ended if request.error is not None]
    assert isinstance(error, BatchFailed)
    assert "kills the worker process" in str(error)
    assert len(simulation.ended) == len(items)
    with pytest.raises(BatchFailed):
        submit(scheduler, 30.0, "bad", key="bad")


def test_what_is_deadly_is_recognised_where_nothing_else_is() -> None:
    """Requests of a model that may answer the same in many ways have no key, but they have contents."""
    scheduler = make(8)
    run_together(Simulation(scheduler, dies_of("bad")), ["bad", *range(7)], has_keys=False)
    with pytest.raises(BatchFailed):
        submit(scheduler, 30.0, "bad")
    submit(scheduler, 30.0, "bad", group="asked for something else")
    submit(scheduler, 30.0, ["a list", "has no hash"])
    submit(scheduler, 90.0, "bad")


def test_a_backend_whose_processes_always_die_is_not_searched_to_the_end() -> None:
    """It is an outage after both halves, both halves of one, and an item of each: twice the whole and six."""
    simulation = Simulation(make(32), dies_of(*range(32)))
    run_together(simulation, range(32))
    assert len(simulation.batches) == 8
    assert all(isinstance(request.error, Crashed) for request in simulation.ended)


def hangs_on(*bad: Any) -> Callable[[Batch], list[Any] | BaseException]:
    """A backend whose processes have to be ended over these items."""
    return lambda batch: Hung("it took 60 s") if set(bad) & set(batch.items) else echo(batch)


def hung(simulation: Simulation, *bad: Any) -> int:
    """How many batches took all the time that a batch may take."""
    return len([batch for batch in simulation.batches if set(bad) & set(batch.items)])


@pytest.mark.parametrize("bad", range(1, 32))
def test_an_item_that_hangs_is_found_in_two_tries(bad: int) -> None:
    """Each takes as long as a batch may take, in which nobody else is served."""
    scheduler = make(32)
    simulation = Simulation(scheduler, hangs_on(bad))
    run_together(simulation, range(32))
    assert hung(simulation, bad) == 2
    (error,) = [request.error for request in simulation.ended if request.error is not None]
    assert "kills the worker process" in str(error)
    with pytest.raises(BatchFailed):
        submit(scheduler, 30.0, bad, key=bad)


def test_a_lone_item_that_hangs_is_tried_once_more() -> None:
    """It may have been the process."""
    simulation = Simulation(make(32), hangs_on("bad"))
    run_together(simulation, ["bad"])
    assert hung(simulation, "bad") == 2


def test_a_backend_that_hangs_over_everything_is_down_after_three() -> None:
    """The batch, and two items alone."""
    simulation = Simulation(make(32), hangs_on(*range(32)))
    run_together(simulation, range(32))
    assert len(simulation.batches) == 3
    assert all(isinstance(request.error, Hung) for request in simulation.ended)
    assert len(simulation.ended) == 32


def test_without_isolation_a_deadly_batch_is_run_twice_and_then_fails_whole() -> None:
    """Who turns the search off turns it off for this too."""
    simulation = Simulation(make(8, isolate=False), dies_of(3))
    run_together(simulation, range(8))
    assert len(simulation.batches) == 2
    assert all(isinstance(request.error, Crashed) for request in simulation.ended)
