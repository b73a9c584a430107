"""Deadlines: who is refused at arrival, who is dropped before it runs, and when the refused should return."""

from __future__ import annotations

from collections import Counter

import pytest

from carpool.core.admission import ComeBack
from carpool.core.request import Request
from carpool.errors import Overloaded, TimedOut, TooLarge
from tests.core.support import Simulation, echo, make, must_take, submit, taught


def test_a_hopeless_request_is_refused_at_arrival() -> None:
    """It hears so while it can still go elsewhere, and leaves no trace."""
    scheduler = make()
    now = taught(scheduler)
    for _ in range(320):
        submit(scheduler, now, "a")
    with pytest.raises(Overloaded, match="too long for a deadline of 100 ms") as caught:
        submit(scheduler, now, "late", timeout=0.1)
    assert 1 <= caught.value.retry_after <= 30
    assert scheduler.statistics().waiting == 320
    submit(scheduler, now, "patient", timeout=2.0)


def test_what_the_queue_can_never_hold_is_refused_for_good() -> None:
    """To come back would not help, be the queue as empty as it may."""
    scheduler = make(queue=4)
    with pytest.raises(TooLarge, match="5 inputs: at most 4"):
        submit(scheduler, 0.0, *range(5))
    submit(scheduler, 0.0, *range(4))


def test_a_deadline_is_believed_as_long_as_nothing_is_known() -> None:
    """Without a curve nobody is refused for what may come."""
    scheduler = make(1)
    for _ in range(100):
        submit(scheduler, 0.0, "a", timeout=0.1)
    assert scheduler.statistics().waiting == 100


def test_under_overload_those_who_are_answered_are_answered_in_time() -> None:
    """At 1.5 times the capacity nearly all of the capacity goes to requests that meet their deadline."""
    scheduler = make()
    now = taught(scheduler)
    simulation, rate = Simulation(scheduler), 1.5 * 32 / 0.024
    simulation.run((now + place / rate, Request(["a"], timeout=0.1)) for place in range(10_000))
    answered = [request for request in simulation.ended if request.error is None]
    in_time = sum(simulation.latencies[id(request)] <= 0.1 for request in answered)
    assert in_time > 0.85 * 10_000 / 1.5
    assert len(answered) - in_time < 0.02 * len(answered)
    ran = Counter(id(request) for batch in simulation.batches for request, _, _ in batch.parts)
    for request in simulation.ended:
        assert (id(request) in ran) == (request.error is None)  # whoever is dropped has not run
    assert all(1 <= refusal.retry_after <= 30 for _, _, refusal in simulation.refused)


def test_what_can_not_be_answered_in_time_any_more_does_not_run() -> None:
    """It is dropped when its turn comes, before its deadline; others travel."""
    scheduler = make(4)
    now = taught(scheduler)
    submit(scheduler, now, "running")
    running = must_take(scheduler, now)
    late = submit(scheduler, now, "late", timeout=0.05)
    other = submit(scheduler, now, "other")
    scheduler.complete(now + 0.045, running, echo(running))
    assert must_take(scheduler, now + 0.045).items == ["other"]
    assert late in scheduler.collect_ended()
    assert isinstance(late.error, TimedOut)
    assert not other.ended


def test_a_request_that_runs_is_answered_even_if_it_is_late() -> None:
    """The work is done; the answer is worth no less for it."""
    scheduler = make()
    request = submit(scheduler, 0.0, "a", timeout=0.1)
    batch = must_take(scheduler, 0.0)
    assert scheduler.take_batch(5.0) is None
    scheduler.complete(5.0, batch, ["A"])
    assert (request.results, request.error) == (["A"], None)


def test_those_refused_are_told_different_times() -> None:
    """They come back at the pace of a fifth of the capacity, and not all at once."""
    come_back = ComeBack()
    seconds = [come_back.seconds(100.0, 1.0, 50.0) for _ in range(200)]
    assert (min(seconds), max(seconds)) == (2, 25)
    assert max(Counter(seconds).values()) < 25
    assert all(1 <= come_back.seconds(100.0, 1.0, 50.0) <= 30 for _ in range(5000))
    assert come_back.seconds(1000.0, 0.0, 50.0) == 1


def test_a_request_that_was_never_in_danger_is_never_dropped() -> None:
    """Without a deadline and without a time-out anybody waits for as long as it takes."""
    scheduler = make(1)
    request = submit(scheduler, 0.0, "a")
    first = must_take(scheduler, 0.0)
    patient = submit(scheduler, 0.0, "b")
    assert scheduler.take_batch(1e6) is None
    scheduler.complete(1e6, first, ["A"])
    scheduler.complete(2e6, must_take(scheduler, 1e6), ["B"])
    assert (request.results, patient.results) == (["A"], ["B"])


def test_expiries_do_not_pile_up() -> None:
    """A hundred thousand requests with a long time-out that were answered at once leave nothing behind."""
    scheduler = make(queue_timeout=3600.0)
    held = submit(scheduler, 0.0, "held")
    must_take(scheduler, 0.0)
    waiting = submit(scheduler, 0.0, "waiting")
    for number in range(100_000):
        scheduler.cancel(submit(scheduler, number / 1000, "a", timeout=600.0))
    assert len(scheduler._expiries) < 300
    assert not held.ended
    assert not waiting.ended


def test_many_that_share_one_computation_and_a_time_out_cost_no_more_each() -> None:
    """Their expiries are live, so sweeping them at every arrival would be in vain: it must not be tried."""
    scheduler = make(queue_timeout=60.0)
    submit(scheduler, 0.0, "running")
    must_take(scheduler, 0.0)
    sweeps = set()
    for _ in range(20_000):
        submit(scheduler, 0.0, "same", key="same")
        sweeps.add(scheduler._expiries._sweep_at)
    assert scheduler.statistics().waiting == 1
    assert len(sweeps) < 15


def test_a_flood_does_not_fill_the_queue_for_others() -> None:
    """A full queue still takes in who has less than a fair share of it, up to that share; not the flood."""
    scheduler = make(queue=100)
    for _ in range(100):
        submit(scheduler, 0.0, "a", tenant="hog")
    with pytest.raises(Overloaded, match="the queue is full"):
        submit(scheduler, 0.0, "a", tenant="hog")
    for _ in range(50):
        submit(scheduler, 0.0, "a", tenant="light")
    with pytest.raises(Overloaded, match="the queue is full"):
        submit(scheduler, 0.0, "a", tenant="light")


def test_tenants_without_number_do_not_fill_the_memory() -> None:
    """Each of a million names is new, and entitled to little; twice the limit is the end."""
    scheduler, refused = make(queue=100), 0
    for number in range(1000):
        try:
            submit(scheduler, 0.0, "a", tenant=str(number))
        except Overloaded:
            refused += 1
    assert scheduler.statistics().waiting <= 200
    assert refused >= 800


def test_a_flood_does_not_refuse_the_deadlines_of_others() -> None:
    """Its backlog is not before them: they will be in the next batch."""
    scheduler = make()
    now = taught(scheduler)
    for _ in range(1000):
        submit(scheduler, now, "a", tenant="hog")
    with pytest.raises(Overloaded, match="too long for a deadline"):
        submit(scheduler, now, "a", tenant="hog", timeout=0.2)
    light = submit(scheduler, now, "a", tenant="light", timeout=0.2)
    assert light in [request for request, _, _ in must_take(scheduler, now).parts]


def test_a_deadline_that_the_next_batch_would_miss_goes_first() -> None:
    """Past the order of the queue, with half of the batch at most."""
    scheduler = make(4)
    now = taught(scheduler)
    for _ in range(20):
        submit(scheduler, now, "patient", timeout=10.0)
    urgent = [submit(scheduler, now, "urgent", timeout=0.1) for _ in range(3)]
    later = now + 0.085
    first, second = must_take(scheduler, later).items, [request.ended for request in urgent]
    assert Counter(first) == {"urgent": 2, "patient": 2}
    assert second == [False] * 3


def test_nobody_waits_for_ever_for_the_shares_of_others() -> None:
    """With many busy tenants a low class is entitled to little; after 8 s it goes first all the same."""
    scheduler = make(8)
    submit(scheduler, 0.0, "first", weight=0.25)
    submit(scheduler, 0.0, "low", weight=0.25)
    for number in range(4000):
        submit(scheduler, 0.1, "busy", tenant=str(number % 40))
    for _ in range(10):
        batch = must_take(scheduler, 1.0)
        assert "low" not in batch.items
        scheduler.complete(1.0, batch, echo(batch))
    assert "low" in must_take(scheduler, 8.1).items
