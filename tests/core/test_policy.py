"""The policies: their settings, and when a batch leaves by what has been learned."""

from __future__ import annotations

from typing import Any

import pytest

from carpool import BatchPolicy, ConfigError, Limits
from carpool.core.arrivals import Arrivals
from carpool.core.curve import Curve
from carpool.core.policy import Departure, View, make_policy
from carpool.core.request import Request
from carpool.errors import TimedOut
from tests.core.support import FIXED, PER_ITEM, Simulation, batch_seconds, echo, make, submit, taught


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "magic"}, "policy 'magic' is unknown: allowed: adaptive, timeout"),
        ({"max_batch_size": 0}, "max_batch_size 0 is out of range: allowed: 1 and more"),
        ({"max_wait": -1.0}, "max_wait -1.0 is out of range: allowed: 0 s and more"),
    ],
)
def test_a_bad_setting_names_itself_and_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    """The message is enough to mend it."""
    with pytest.raises(ConfigError) as caught:
        BatchPolicy(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["max_in_flight", "max_queue_size", "queue_timeout", "batch_timeout"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    """A limit of 0 would let nothing through; no limit is None."""
    with pytest.raises(ConfigError, match=f"{name} 0 is out of range"):
        Limits(**{name: 0})


def test_a_policy_says_what_it_does() -> None:
    """Start-up prints this line."""
    assert str(BatchPolicy()) == "adaptive: leave when a slot is free, with 32 items at most"
    assert str(BatchPolicy("timeout", 8, 0.005)) == "timeout: leave at 8 items or after 5 ms"


NOW = 100.0


def learned_curve() -> Curve:
    curve = Curve()
    for number in range(100):
        size = 1 + number % 32
        curve.learn(size, FIXED + PER_ITEM * size)
    return curve


def poisson_like(rate: float = 1000.0, here: int = 50) -> Arrivals:
    """Arrivals at this rate until now, with so many here at once at times."""
    arrivals = Arrivals()
    for number in range(300):
        arrivals.arrived(NOW - (300 - number) / rate, 1, here)
    return arrivals


def closed_loop(clients: int = 8) -> Arrivals:
    """Clients that return within a millisecond; their batch ended right now."""
    arrivals = Arrivals()
    for number in range(50):
        ended = NOW - (49 - number) * 0.02
        arrivals.batch_ended(ended, clients, 0.006)
        for place in range(clients if number < 49 else 0):
            arrivals.arrived(ended + 0.001 * (place + 1) / clients, 1, place + 1)
    return arrivals


def departure(arrivals: Arrivals, policy: BatchPolicy | None = None, **view: Any) -> Departure:
    """When a batch leaves that may grow: of two, one of two slots is free, the other will be in 6 ms."""
    seen: dict[str, Any] = {
        "waiting": 2,
        "cost": float(view.get("waiting", 2)),
        "oldest": NOW,
        "deadline": float("inf"),
        "here": 4,
        "slots": 2,
        "ends": [NOW + 0.006],
        "curve": learned_curve(),
    }
    return make_policy(policy or BatchPolicy(), arrivals).departure(NOW, View(**seen | view))


def test_departures_are_spaced_where_the_next_slot_frees_soon() -> None:
    """Held while fewer wait than will have arrived by then: 2 now, 1 a millisecond, so 4 ms."""
    leaves = departure(poisson_like())
    assert leaves.at == pytest.approx(NOW + 0.004)
    assert leaves.reason == "held"


@pytest.mark.parametrize(
    "view",
    [
        {"waiting": 6},  # enough have come
        {"ends": [NOW + 0.03]},  # the other slot is busy for long
        {"ends": []},  # both are free
        {"here": 50},  # everybody is here
    ],
)
def test_nothing_is_held_in_vain(view: dict[str, Any]) -> None:
    """Each of these is a reason to leave at once."""
    assert departure(poisson_like(), **view).at == NOW


def test_a_busy_device_holds_nothing() -> None:
    """Above 75 % utilisation batches fill by themselves."""
    assert departure(poisson_like(rate=3200.0)).at == NOW


def test_nothing_is_held_for_longer_than_allowed() -> None:
    """Neither beyond `max_wait`, counted from the oldest's arrival, nor beyond what a deadline leaves."""
    policy = BatchPolicy(max_wait=0.005)
    assert departure(poisson_like(), policy, oldest=NOW - 0.003).at == pytest.approx(NOW + 0.002)
    assert departure(poisson_like(), policy, oldest=NOW - 0.006).at == NOW
    three = FIXED + 3 * PER_ITEM
    assert departure(poisson_like(), deadline=NOW + 0.002 + 1.25 * three).at == pytest.approx(
        NOW + 0.002, abs=2e-4
    )


def test_before_anything_is_known_nothing_is_held() -> None:
    """The first batches leave as soon as there is a slot."""
    view = View(1, 1.0, NOW, float("inf"), 1, 2, [NOW + 0.006], Curve())
    assert make_policy(BatchPolicy(), poisson_like()).departure(NOW, view) == (NOW, "slot free")


def test_clients_that_return_are_waited_for() -> None:
    """A moment on an idle device, so that they do not split into cohorts; never longer than it can repay."""
    leaves = departure(closed_loop(), slots=1, ends=[], here=1, waiting=1)
    assert 0.001 <= leaves.at - NOW <= 0.8 * FIXED
    assert departure(poisson_like(), slots=1, ends=[], here=1, waiting=1).at == NOW


def test_closed_loop_clients_travel_together() -> None:
    """Sixteen clients on one slot come to share their batches, where they began as cohorts."""
    scheduler, now, busy_until = make(32), 0.0, 0.0
    comes_back = sorted((0.001 * client, client) for client in range(16))
    sizes, running = [], None
    while now < 5.0:
        events = [comes_back[0][0] if comes_back else 1e9, busy_until if running else 1e9]
        wakeup = scheduler.next_wakeup()
        now = max(now, min(*events, wakeup if wakeup is not None else 1e9))
        while comes_back and comes_back[0][0] <= now:
            submit(scheduler, now, comes_back.pop(0)[1])
        if running and busy_until <= now:
            scheduler.complete(now, running, echo(running))
            running = None
            ended = scheduler.collect_ended()
            comes_back = sorted(
                comes_back
                + [(now + 0.0001 + 0.00005 * place, ended[place].items[0]) for place in range(len(ended))]
            )
        batch = scheduler.take_batch(now)
        if batch is not None:
            running, busy_until = batch, now + batch_seconds(batch)
            sizes.append(len(batch))
    assert sum(sizes[-50:]) / 50 > 14


def test_the_timeout_policy_leaves_in_time_for_a_deadline() -> None:
    """A request is not held until it is too late to run it."""
    policy = BatchPolicy("timeout", max_wait=0.1)
    assert departure(poisson_like(), policy).at == pytest.approx(NOW + 0.1)
    leaves = departure(poisson_like(), policy, deadline=NOW + 0.05).at
    assert leaves == pytest.approx(NOW + 0.05 - 1.25 * (FIXED + 2 * PER_ITEM), abs=2e-4)


@pytest.mark.parametrize("name", ["adaptive", "timeout"])
@pytest.mark.parametrize("limit", ["deadline", "queue_timeout"])
def test_a_lone_request_is_never_held_until_it_expires(name: str, limit: str) -> None:
    """Whether or not anything is known of how long batches take."""
    settings: dict[str, Any] = {"queue_timeout": 0.05} if limit == "queue_timeout" else {}
    timeout = 0.05 if limit == "deadline" else None
    for lessons in (0, 64):
        scheduler = make(8, name=name, **settings)
        now = taught(scheduler, lessons)
        simulation = Simulation(scheduler)
        simulation.run((now + number, Request(["a"], timeout=timeout)) for number in range(1, 20))
        assert [request.error for request in simulation.ended] == [None] * 19
        assert not any(isinstance(request.error, TimedOut) for request in simulation.ended)


def test_a_hog_moves_nobody_elses_wait() -> None:
    """At 130 % load from one tenant another one waits for about a batch, not behind the whole queue."""
    scheduler = make(32, queue=2000)
    capacity = 32 / 0.024
    hog = [(place / (1.3 * capacity), Request(["h"], tenant="hog")) for place in range(8000)]
    light = [(place / (0.05 * capacity), Request(["l"], tenant="light")) for place in range(200)]
    simulation = Simulation(scheduler)
    simulation.run(hog + light)
    waits = sorted(
        simulation.latencies[id(request)] for _, request in light if id(request) in simulation.latencies
    )
    assert waits[int(0.99 * len(waits))] < 2.2 * 0.024
    assert max(simulation.latencies.values()) > 0.5


def test_a_request_of_a_thousand_items_does_not_block_another_tenant() -> None:
    """It takes 0.75 s; whoever comes meanwhile waits for a batch or two."""
    scheduler = make(32)
    hog = Request(range(1000), tenant="hog")
    light = [Request(["a"], tenant="light") for _ in range(20)]
    simulation = Simulation(scheduler)
    simulation.run([(0.0, hog), *((0.01 + 0.03 * number, request) for number, request in enumerate(light))])
    assert max(simulation.latencies[id(request)] for request in light) < 2.1 * 0.024
    assert 0.7 < simulation.latencies[id(hog)] < 1.0


@pytest.mark.parametrize("cost", [1.0, 100.0])
def test_an_objective_bounds_the_batch_whatever_the_unit_of_cost(cost: float) -> None:
    """30 ms on one slot leave half of them for a batch: 14 items, counted or priced."""
    scheduler = make(32, objective=0.03)
    now = 0.0
    for number in range(100):
        now += 10.0
        for _ in range(1 + number % 32):
            submit(scheduler, now, "a", costs=[cost])
        while (batch := scheduler.take_batch(now)) is not None:
            now += batch_seconds(batch)
            scheduler.complete(now, batch, echo(batch))
    now += 10.0
    for _ in range(32):
        submit(scheduler, now, "a", costs=[cost])
    batch = scheduler.take_batch(now)
    assert batch is not None
    assert 11 <= len(batch) <= 16


def test_an_objective_takes_nothing_of_the_capacity_that_the_load_needs() -> None:
    """Batches of 4, as 20 ms ask for, serve 400 in a second: 1200 need larger ones, and a fifth more."""
    rate = 1200.0
    needed = 1.2 * rate * FIXED / (1 - rate * PER_ITEM)
    scheduler = make(64, objective=0.02)
    start = taught(scheduler) + 10.0
    requests = [Request(["a"]) for _ in range(4800)]
    simulation = Simulation(scheduler)
    simulation.run((start + number / rate, request) for number, request in enumerate(requests))
    assert max(map(len, simulation.batches)) == pytest.approx(needed, abs=1)
    late = [simulation.latencies[id(request)] for request in requests[-1200:]]
    assert max(late) < 2 * (FIXED + PER_ITEM * needed)
