"""Several replicas behind one queue: where a batch goes, what becomes of one that is lost, who is told what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from carpool.core.batch import Batch
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.replica import Capacity
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import BatchFailed, Overloaded, ShuttingDown, TimedOut, Unavailable, Unreachable
from tests.core.support import batch_seconds, echo, must_take, serve_all, submit

GONE = Unreachable("the connection broke")


def make(*capacities: Capacity, size: int = 8, slots: int = 1, **limits: Any) -> Scheduler:
    return Scheduler(BatchPolicy(max_batch_size=size), Limits(slots, **limits), capacities)


def two(**more: Any) -> Scheduler:
    return make(Capacity(), Capacity(), **more)


def take_all(scheduler: Scheduler, now: float) -> list[Batch]:
    batches = []
    while (batch := scheduler.take_batch(now)) is not None:
        batches.append(batch)
    return batches


def learn_speeds(scheduler: Scheduler, speeds: Sequence[float]) -> float:
    """Single items, one at a time in each replica, each of which takes its own time."""
    now = 0.0
    for _ in range(30 * len(speeds)):
        for _ in speeds:
            submit(scheduler, now, "lesson")
        for batch in take_all(scheduler, now):
            scheduler.complete(now + speeds[batch.replica], batch, echo(batch))
        now += 1.0
    scheduler.collect_ended()
    return now


def test_each_replica_gets_a_batch() -> None:
    """Slots are per replica; none is left idle while something waits."""
    scheduler = two(size=1)
    for item in "abc":
        submit(scheduler, 0.0, item)
    assert [batch.replica for batch in take_all(scheduler, 0.0)] == [0, 1]


def test_a_batch_goes_where_it_will_be_back_first() -> None:
    """The faster one is asked first, once that is known."""
    scheduler = two()
    now = learn_speeds(scheduler, [0.05, 0.01])
    submit(scheduler, now, "a")
    assert must_take(scheduler, now).replica == 1


def test_waiting_for_the_fast_one_beats_leaving_with_the_slow_one() -> None:
    """Ten milliseconds from now and ten more are less than half a second."""
    scheduler = two()
    now = learn_speeds(scheduler, [0.5, 0.01])
    submit(scheduler, now, "a")
    fast = must_take(scheduler, now)
    submit(scheduler, now, "b")
    assert scheduler.take_batch(now) is None
    assert (wakeup := scheduler.next_wakeup()) is not None
    assert wakeup == pytest.approx(now + 0.01, abs=0.004)
    scheduler.complete(now + 0.01, fast, ["a"])
    assert must_take(scheduler, now + 0.01).replica == fast.replica


def test_nobody_waits_for_a_fast_one_that_is_late() -> None:
    """It may hang: once its time is over the slow one is as good as any."""
    scheduler = two()
    now = learn_speeds(scheduler, [0.5, 0.01])
    submit(scheduler, now, "a")
    must_take(scheduler, now)
    submit(scheduler, now, "b")
    assert scheduler.take_batch(now) is None
    assert must_take(scheduler, scheduler.next_wakeup() or now).replica == 0


def test_with_a_full_batch_waiting_the_slow_one_helps() -> None:
    """Capacity counts when there is more than one batch to run."""
    scheduler = two(size=4)
    now = learn_speeds(scheduler, [0.5, 0.01])
    for item in range(8):
        submit(scheduler, now, item)
    assert [batch.replica for batch in take_all(scheduler, now)] == [1, 0]


def test_one_that_was_slow_is_tried_again() -> None:
    """It got nothing for a while, and what made it slow may be over."""
    scheduler = two()
    now = learn_speeds(scheduler, [0.5, 0.01])
    went = []
    for _ in range(40):
        now += 0.1
        submit(scheduler, now, "a")
        batch = must_take(scheduler, now)
        went.append(batch.replica)
        now += 0.5 if batch.replica == 0 else 0.01
        scheduler.complete(now, batch, ["a"])
    assert 1 <= went.count(0) <= 4


def test_equal_replicas_share_the_load() -> None:
    """With many slots each, the one with less in flight is next."""
    scheduler = two(size=1, slots=10)
    now = learn_speeds(scheduler, [0.01, 0.011])
    for item in range(10):
        submit(scheduler, now, item)
    assert Counter(batch.replica for batch in take_all(scheduler, now)) == {0: 5, 1: 5}


def test_what_a_replica_takes_is_never_exceeded() -> None:
    """Items in a batch, and items and batches in flight; and what it says later holds from then on."""
    scheduler = make(Capacity(in_flight=3, batch_size=4, items=6), size=32, slots=20)
    for item in range(40):
        submit(scheduler, 0.0, item)
    assert [len(batch) for batch in take_all(scheduler, 0.0)] == [4, 2]
    scheduler.set_capacity(0, Capacity(batch_size=5))
    assert [len(batch) for batch in take_all(scheduler, 0.0)[:2]] == [5, 5]


def test_a_cost_limit_of_a_replica_holds() -> None:
    """The smaller of the configured budget and its own."""
    scheduler = make(Capacity(batch_cost=10.0))
    for _ in range(4):
        submit(scheduler, 0.0, "a", costs=[4.0])
    assert len(must_take(scheduler, 0.0)) == 2


def test_a_lost_batch_runs_elsewhere() -> None:
    """Its callers do not notice, but for the time."""
    scheduler = two()
    request = submit(scheduler, 0.0, "a")
    lost = must_take(scheduler, 0.0)
    scheduler.complete(0.01, lost, GONE)
    assert scheduler.take_batch(0.01) is None
    again_at = scheduler.next_wakeup()
    assert again_at is not None
    assert 0.01 < again_at < 0.1
    again = must_take(scheduler, again_at)
    assert (again.replica, again.reason) == (1 - lost.replica, "retry")
    scheduler.complete(1.0, again, ["A"])
    assert request.results == ["A"]
    assert scheduler.collect_ended() == [request]


@pytest.mark.parametrize("error", [GONE, Unavailable("busy"), Overloaded("busy", retry_after=0)])
def test_in_the_end_the_error_is_told(error: BaseException) -> None:
    """Three tries, no more."""
    scheduler = make(Capacity())
    request = submit(scheduler, 0.0, "a")
    now, tries = 0.0, 0
    while not request.ended:
        now = scheduler.next_wakeup() or now
        if (batch := scheduler.take_batch(now)) is not None:
            tries += 1
            scheduler.complete(now, batch, error)
    assert (tries, request.error) == (3, error)


def test_at_shutdown_nothing_is_tried_again() -> None:
    """There will be nobody to try it."""
    scheduler = two()
    request = submit(scheduler, 0.0, "a")
    scheduler.complete(0.0, must_take(scheduler, 0.0), ShuttingDown("shutting down"))
    assert request.ended


def test_retries_do_not_add_to_an_overload() -> None:
    """When everything fails, at most a fifth is sent again, once what was saved up is spent."""
    scheduler = make(Capacity(), size=1)
    now, sent = 0.0, Counter[bool]()
    for number in range(2000):
        now += 1.0
        submit(scheduler, now, "a")
        while (batch := scheduler.take_batch(now)) is not None:
            sent[batch.reason == "retry"] += 1
            now += 0.001
            scheduler.complete(now, batch, GONE if number % 2 else echo(batch))
            now = max(now, scheduler.next_wakeup() or now)
    assert sent[True] <= 0.2 * sent[False] + 64


def test_a_retry_that_would_be_late_is_not_made() -> None:
    """Its caller is told instead."""
    scheduler = two()
    request = submit(scheduler, 0.0, "a", timeout=0.011)
    scheduler.complete(0.01, must_take(scheduler, 0.0), GONE)
    assert scheduler.take_batch(0.01) is None
    assert scheduler.take_batch(scheduler.next_wakeup() or 0.0) is None
    assert isinstance(request.error, TimedOut)


def test_a_replica_that_loses_everything_is_left_alone_and_tried_now_and_then() -> None:
    """Five losses in a row; then one batch a pause until one comes back."""
    scheduler = make(Capacity(), size=1, slots=4)
    now, sent = 0.0, 0
    for number in range(30):
        submit(scheduler, now, number)
    while now < 1.9:
        for batch in take_all(scheduler, now):
            sent += 1
            scheduler.complete(now, batch, GONE)
        now = max(now + 1e-6, scheduler.next_wakeup() or now)
    assert 5 <= sent <= 12
    assert {batch.reason for batch in serve_all(scheduler, now)} <= {"retry", "slot free", "full"}
    told = [request.error for request in scheduler.collect_ended()]
    assert all(error in (None, GONE) or isinstance(error, Unavailable) for error in told)


def test_bad_inputs_do_not_open_the_breaker() -> None:
    """What a replica refuses for its contents says nothing of its health."""
    scheduler = make(Capacity(), size=1)
    for number in range(50):
        request = submit(scheduler, float(number), "bad")
        scheduler.complete(number + 0.1, must_take(scheduler, float(number)), BatchFailed("no"))
        assert request.ended


def test_a_replica_that_asks_for_a_pause_gets_it() -> None:
    """`Retry-After` is honoured, and the work goes to the other one meanwhile."""
    scheduler = two(size=1)
    submit(scheduler, 0.0, "a")
    first = must_take(scheduler, 0.0)
    scheduler.complete(0.0, first, Unavailable("restarting", retry_after=3))
    for number in range(20):
        submit(scheduler, number / 10, number)
        batches = take_all(scheduler, number / 10)
        assert all(batch.replica != first.replica for batch in batches)
        for batch in batches:
            scheduler.complete(number / 10 + 0.01, batch, echo(batch))


@pytest.mark.parametrize("error", [Overloaded("busy", retry_after=30), Unavailable("down", retry_after=30)])
def test_nobody_waits_for_a_pause_that_is_longer_than_their_patience(error: Overloaded | Unavailable) -> None:
    """Who was in the batch is told what the replica said, and who comes later how long the pause is still."""
    scheduler = make(Capacity())
    first = submit(scheduler, 0.0, "a")
    scheduler.complete(0.1, must_take(scheduler, 0.0), error)
    assert first.error is error
    with pytest.raises(Unavailable) as refusal:
        submit(scheduler, 10.1, "b")
    assert refusal.value.retry_after == 20
    submit(scheduler, 30.2, "c")
    assert must_take(scheduler, 30.2).items == ["c"]


def test_a_pause_is_not_waited_out_by_who_has_no_time_for_it() -> None:
    """A batch that is to be run again is in no queue, but its deadlines hold all the same."""
    scheduler = make(Capacity(), patience=10.0)
    hurried, patient = submit(scheduler, 0.0, "a", timeout=1.5), submit(scheduler, 0.0, "b")
    scheduler.complete(0.1, must_take(scheduler, 0.0), Overloaded("busy", retry_after=3))
    assert scheduler.take_batch(0.2) is None
    assert scheduler.next_wakeup() == 1.5
    assert scheduler.take_batch(1.5) is None
    assert isinstance(hurried.error, TimedOut)
    assert scheduler.next_wakeup() == pytest.approx(3.1)
    assert must_take(scheduler, 3.1).items == ["b"]
    assert not patient.ended


def test_a_replica_that_is_too_busy_and_names_no_time_is_not_paused() -> None:
    """The batch itself is tried again in a moment; others may go there at once."""
    scheduler = make(Capacity(), size=1)
    submit(scheduler, 0.0, "a")
    scheduler.complete(0.0, must_take(scheduler, 0.0), Overloaded("busy", retry_after=0))
    submit(scheduler, 0.001, "b")
    assert must_take(scheduler, 0.001).items == ["b"]


def test_with_no_replica_nobody_waits_for_long() -> None:
    """A moment's outage is waited out; after two seconds those who wait are told, and who comes at once."""
    scheduler = two()
    for number in range(2):
        scheduler.set_available(0.0, number, False)
    waits = submit(scheduler, 1.0, "a")
    assert scheduler.take_batch(1.0) is None
    assert scheduler.next_wakeup() == 2.0
    assert scheduler.take_batch(2.0) is None
    assert isinstance(waits.error, Unavailable)
    assert scheduler.collect_ended() == [waits]
    with pytest.raises(Unavailable):
        submit(scheduler, 2.1, "b")
    scheduler.set_available(3.0, 1, True)
    submit(scheduler, 3.0, "c")
    assert must_take(scheduler, 3.0).replica == 1


def test_a_short_outage_costs_nobody_their_answer() -> None:
    """What was lost and what came meanwhile is run when it is over."""
    scheduler = make(Capacity())
    lost = submit(scheduler, 0.0, "lost")
    scheduler.complete(0.1, must_take(scheduler, 0.0), GONE)
    scheduler.set_available(0.1, 0, False)
    meanwhile = submit(scheduler, 1.0, "meanwhile")
    assert scheduler.take_batch(1.0) is None
    scheduler.set_available(1.5, 0, True)
    serve_all(scheduler, 1.5)
    assert (lost.results, meanwhile.results) == (["lost"], ["meanwhile"])


def test_a_replica_that_leaves_gets_nothing_more() -> None:
    """What is in flight there is still answered; then it is forgotten."""
    scheduler = two(size=1)
    request = submit(scheduler, 0.0, "a")
    batch = must_take(scheduler, 0.0)
    scheduler.remove_replica(batch.replica)
    for item in "bc":
        submit(scheduler, 0.0, item)
    assert [other.replica for other in take_all(scheduler, 0.0)] == [1 - batch.replica]
    scheduler.complete(0.1, batch, ["A"])
    assert request.results == ["A"]
    assert scheduler.statistics().slots == 1


def test_a_replica_that_joins_is_used() -> None:
    """At once."""
    scheduler = make(Capacity(), size=1)
    for item in "ab":
        submit(scheduler, 0.0, item)
    assert len(take_all(scheduler, 0.0)) == 1
    number = scheduler.add_replica(Capacity())
    assert [batch.replica for batch in take_all(scheduler, 0.0)] == [number]


def test_groups_never_meet() -> None:
    """Each batch is of one group, whoever's turn it is; nobody is left behind."""
    scheduler = make(Capacity(), size=4)
    requests = [
        submit(scheduler, 0.0, number, group=number % 3, tenant=str(number % 2)) for number in range(30)
    ]
    for batch in serve_all(scheduler, 0.0):
        assert {request.group for request, _, _ in batch.parts} == {batch.group}
    assert all(request.ended for request in requests)


def test_tenants_share_across_groups() -> None:
    """Who spreads requests over many groups gets no more than who does not."""
    scheduler = make(Capacity(), size=1)
    for number in range(200):
        submit(scheduler, 0.0, "spread", tenant="spread", group=number % 5)
        submit(scheduler, 0.0, "plain", tenant="plain")
    first = serve_all(scheduler, 0.0)[:100]
    assert Counter(batch.items[0] for batch in first)["spread"] == pytest.approx(50, abs=6)


def test_what_may_share_a_computation_is_of_one_group() -> None:
    """The same text with other parameters is another computation."""
    scheduler = make(Capacity())
    requests = [submit(scheduler, 0.0, "same", key="same", group=group) for group in "aab"]
    assert len(serve_all(scheduler, 0.0)) == 2
    assert all(request.results == ["same"] for request in requests)


def test_two_replicas_serve_twice_as_much() -> None:
    """And each batch's time is learned where it ran."""
    scheduler = two(size=32)
    for number in range(6400):
        submit(scheduler, 0.0, number)
    free_at, last = {0: 0.0, 1: 0.0}, 0.0
    running: list[tuple[float, Batch]] = []
    now = 0.0
    while True:
        for batch in take_all(scheduler, now):
            free_at[batch.replica] = now + batch_seconds(batch)
            running.append((free_at[batch.replica], batch))
        if not running:
            break
        running.sort(key=lambda entry: entry[0])
        now, batch = running.pop(0)
        last = now
        scheduler.complete(now, batch, echo(batch))
    assert last == pytest.approx(100 * 0.024, rel=0.02)
    assert len(scheduler.collect_ended()) == 6400


def test_a_batch_that_no_longer_fits_is_run_in_pieces() -> None:
    """The other replica takes smaller batches than the one that was lost."""
    scheduler = make(Capacity(batch_size=8), Capacity(batch_size=3), size=8)
    requests = [submit(scheduler, 0.0, number) for number in range(8)]
    lost = must_take(scheduler, 0.0)
    while lost.replica == 1:
        scheduler.complete(0.0, lost, echo(lost))
        lost = must_take(scheduler, 0.0)
    scheduler.complete(0.0, lost, GONE)
    scheduler.set_available(0.0, 0, False)
    now, sizes = 0.0, []
    while not all(request.ended for request in requests):
        now = max(now, scheduler.next_wakeup() or now)
        for batch in take_all(scheduler, now):
            sizes.append(len(batch))
            scheduler.complete(now, batch, echo(batch))
    assert max(sizes) <= 3
    assert all(request.results == [request.items[0]] for request in requests)


def late_batch(**more: Any) -> tuple[Scheduler, float, Request, Batch]:
    """A batch that should have been back after 10 ms, and is not."""
    scheduler = Scheduler(BatchPolicy(max_batch_size=8, hedge=True), Limits(1), [Capacity(), Capacity()])
    now = learn_speeds(scheduler, [0.01, 0.01])
    request = submit(scheduler, now, "a", **more)
    return scheduler, now, request, must_take(scheduler, now)


def test_a_late_batch_is_sent_to_another_replica_as_well() -> None:
    """The first answer counts, and the second is ignored."""
    scheduler, now, request, first = late_batch()
    assert scheduler.take_batch(now) is None
    wakeup = scheduler.next_wakeup()
    assert wakeup is not None
    assert now + 0.005 < wakeup < now + 0.1
    second = must_take(scheduler, wakeup)
    assert (second.reason, second.replica) == ("hedge", 1 - first.replica)
    scheduler.complete(wakeup + 0.01, second, ["second"])
    assert request.results == ["second"]
    scheduler.complete(wakeup + 5.0, first, ["first"])
    assert request.results == ["second"]
    assert scheduler.collect_ended() == [request]
    assert scheduler.statistics().in_flight == 0


def test_a_hedge_that_fails_changes_nothing() -> None:
    """As long as the other one is out; then it decides."""
    scheduler, now, request, first = late_batch()
    scheduler.take_batch(now)
    second = must_take(scheduler, scheduler.next_wakeup() or now)
    scheduler.complete(now + 1.0, second, BatchFailed("no"))
    assert not request.ended
    scheduler.complete(now + 2.0, first, ["first"])
    assert request.results == ["first"]


def test_nothing_is_hedged_unless_asked_for() -> None:
    """It doubles work, which is for the operator to decide."""
    scheduler = two()
    now = learn_speeds(scheduler, [0.01, 0.01])
    submit(scheduler, now, "a")
    must_take(scheduler, now)
    assert scheduler.take_batch(now + 60.0) is None
    assert scheduler.next_wakeup() is None


def test_a_cancelled_request_is_not_run_again() -> None:
    """Nobody wants it any more, and nobody is woken for it."""
    scheduler = two()
    request = submit(scheduler, 0.0, "a")
    scheduler.complete(0.0, must_take(scheduler, 0.0), GONE)
    scheduler.cancel(request)
    assert scheduler.take_batch(0.0) is None
    assert scheduler.next_wakeup() is None


def test_requests_of_a_replica_that_is_unknown_are_a_mistake() -> None:
    """The number is what `add_replica` gave."""
    with pytest.raises(ValueError, match="there is no replica 7"):
        make(Capacity()).set_capacity(7, Capacity())


def test_without_any_replica_requests_are_told() -> None:
    """All upstreams were removed."""
    scheduler = make(Capacity())
    scheduler.remove_replica(0)
    request = Request(["a"])
    scheduler.submit(0.0, request)
    scheduler.take_batch(0.0)
    scheduler.take_batch(5.0)
    assert isinstance(request.error, Unavailable)


def test_a_full_batch_goes_ahead_shortly_before_the_end_of_the_one_that_runs() -> None:
    """It would only wait here; what is not full may still grow, and waits for the end."""
    scheduler = make(Capacity(in_flight=1, ahead=1), slots=4)
    now = learn_speeds(scheduler, [0.1])
    submit(scheduler, now, *range(8))
    running = must_take(scheduler, now)
    submit(scheduler, now, *range(7))
    assert scheduler.take_batch(now + 0.09) is None  # one is missing
    submit(scheduler, now + 0.04, "the eighth")
    assert scheduler.take_batch(now + 0.04) is None  # there is time for somebody more urgent
    wakeup = scheduler.next_wakeup()
    assert wakeup is not None
    ahead = must_take(scheduler, wakeup)
    assert len(ahead) == 8
    assert running.expected_at - wakeup < 0.5 * (running.expected_at - now)
    submit(scheduler, wakeup, *range(8))
    assert scheduler.take_batch(running.expected_at) is None  # one waits there, no more
    scheduler.complete(running.expected_at, running, echo(running))
    assert len(must_take(scheduler, ahead.expected_at)) == 8  # in the place of the one that ended


def test_an_idle_replica_comes_before_going_ahead_at_a_busy_one() -> None:
    """And what is not full waits for a slot, wherever that is."""
    scheduler = make(*[Capacity(in_flight=1, ahead=1)] * 2, slots=4)
    now = learn_speeds(scheduler, [0.1, 0.1])
    submit(scheduler, now, *range(35))
    running = take_all(scheduler, now)
    assert sorted(batch.replica for batch in running) == [0, 1]
    ahead = take_all(scheduler, running[0].expected_at)
    assert sorted(batch.replica for batch in ahead) == [0, 1]
    assert scheduler.waiting == 3


def test_nobody_goes_ahead_of_a_batch_that_takes_a_millisecond() -> None:
    """By less than timers can tell: then the queue is the better place."""
    scheduler = make(Capacity(in_flight=1, ahead=1), slots=4)
    now = learn_speeds(scheduler, [0.001])
    submit(scheduler, now, *range(16))
    running = must_take(scheduler, now)
    assert scheduler.take_batch(running.expected_at - 0.0001) is None
    scheduler.complete(now + 0.001, running, echo(running))
    assert len(must_take(scheduler, now + 0.001)) == 8
