"""The queue shares the capacity by weight, whoever asks for how much."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Any

import pytest

from carpool.core.batch import Part
from carpool.core.queue import Lane, Queue
from carpool.core.request import Request


def push(queue: Queue, items: int = 1, tenant: str = "", weight: float = 1.0, **more: Any) -> Request:
    request = Request(range(items), tenant=tenant, weight=weight, **more)
    queue.push(request)
    return request


def lane_of(queue: Queue) -> Lane:
    lane = queue.next_lane()
    assert lane is not None
    return lane


def take_parts(queue: Queue, limit: int, budget: float = inf) -> list[Part]:
    return queue.take(lane_of(queue), limit, budget, lambda request: True) if queue.waiting else []


def take(queue: Queue, limit: int, budget: float = inf) -> list[str]:
    """Whose items leave, one letter an item."""
    parts = take_parts(queue, limit, budget)
    return [request.tenant for request, start, stop in parts for _ in range(stop - start)]


def test_one_flow_is_first_come_first_served() -> None:
    """With one tenant nothing is reordered, and a large request is cut where the batch is full."""
    queue = Queue()
    requests = [push(queue, size) for size in (2, 5, 1)]
    spans = [take_parts(queue, 4) for _ in range(2)]
    assert spans == [[(requests[0], 0, 2), (requests[1], 0, 2)], [(requests[1], 2, 5), (requests[2], 0, 1)]]
    assert (len(queue), queue.cost, queue.next_lane()) == (0, 0.0, None)


@pytest.mark.parametrize("size", [1, 3])
def test_capacity_is_shared_by_weight(size: int) -> None:
    """Weights of 4 and 1 are served 4 to 1 while both have something waiting."""
    queue = Queue()
    for _ in range(600):
        push(queue, size, "heavy", 4.0)
        push(queue, size, "light", 1.0)
    served = Counter(letter for _ in range(20) for letter in take(queue, 30))
    assert served["heavy"] / served["light"] == pytest.approx(4, rel=0.1)


def test_shares_are_of_cost_and_not_of_items() -> None:
    """Who sends long texts gets fewer of them through."""
    queue = Queue()
    for _ in range(300):
        push(queue, tenant="long", costs=[9.0])
        push(queue, tenant="short", costs=[1.0])
    served = Counter(take(queue, 100))
    assert served["short"] / served["long"] == pytest.approx(9, rel=0.15)


def test_a_hog_does_not_delay_anybody_else() -> None:
    """A light tenant's request is in the next batch, whatever the hog has waiting."""
    queue = Queue()
    for _ in range(10_000):
        push(queue, tenant="hog")
    for _ in range(50):
        push(queue, tenant="light")
        assert "light" in take(queue, 8)


def test_a_request_of_a_thousand_items_is_a_hog_too() -> None:
    """It leaves in pieces, and others travel between them."""
    queue = Queue()
    push(queue, 1000, "hog")
    assert take(queue, 32) == ["hog"] * 32
    for _ in range(3):
        push(queue, 1, "light")
        push(queue, 1, "other")
    assert sorted(take(queue, 32)[:6]) == ["light"] * 3 + ["other"] * 3


def test_who_was_away_does_not_catch_up() -> None:
    """A flow that returns starts where the others are: there is no credit for idle times."""
    queue = Queue()
    for _ in range(1000):
        push(queue, tenant="busy")
    take(queue, 500)
    for _ in range(100):
        push(queue, tenant="back")
    assert Counter(take(queue, 100))["back"] == pytest.approx(50, abs=1)


def test_what_is_cancelled_is_not_charged() -> None:
    """Whoever gave up on a thousand items does not stand behind others for it."""
    queue = Queue()
    for _ in range(1000):
        queue.withdraw(push(queue, tenant="gave up"))
    for _ in range(100):
        push(queue, tenant="gave up")
        push(queue, tenant="other")
    assert Counter(take(queue, 100)) == {"gave up": 50, "other": 50}


def test_a_budget_bounds_the_cost_of_what_leaves() -> None:
    """An item that is over it by itself still leaves, alone."""
    queue = Queue()
    push(queue, 4, "a", costs=[3, 3, 3, 100])
    push(queue, 1, "b", costs=[1])
    assert [take(queue, 8, budget=7) for _ in range(4)] == [["a", "a", "b"], ["a"], ["a"], []]


def test_items_that_cost_nothing_are_limited_by_number() -> None:
    """A cost of 0 is no reason to stay or to stall."""
    queue = Queue()
    push(queue, 5, costs=[0.0] * 5)
    assert [len(take(queue, 2, budget=1)) for _ in range(3)] == [2, 2, 1]


def test_a_withdrawn_request_counts_no_more() -> None:
    """Its entry stays a while, its items and its cost do not."""
    queue = Queue()
    gone, kept = push(queue, 3, costs=[0.1, 0.2, 0.3]), push(queue, 1)
    queue.withdraw(gone)
    queue.withdraw(gone)
    assert len(queue) == 1
    assert queue.cost == pytest.approx(1)
    assert lane_of(queue).oldest() is kept
    queue.withdraw(kept)
    assert (len(queue), queue.cost) == (0, 0.0)


def test_idle_flows_are_forgotten() -> None:
    """A hundred thousand tenants that came once are not remembered, even if the queue never ran empty."""
    queue = Queue()
    for number in range(100_000):
        push(queue, tenant=str(number))
        if number >= 10:
            assert len(take(queue, 1)) == 1
    assert len(queue) == 10
    assert len(lane_of(queue).flows) < 2000
    assert take(queue, 20) == [str(number) for number in range(99_990, 100_000)]


@pytest.mark.parametrize("tenants", [1, 1000])
def test_a_backend_that_hangs_does_not_fill_the_memory_with_cancelled_requests(tenants: int) -> None:
    """Nothing is taken meanwhile, so what was cancelled must go some other way."""
    queue = Queue()
    oldest = push(queue)
    for number in range(50_000):
        queue.withdraw(push(queue, tenant=str(number % tenants)))
    assert lane_of(queue).oldest() is oldest
    assert sum(map(len, lane_of(queue)._arrivals.values())) < 100
    assert sum(len(flow.requests) for flow in queue._lanes[None].flows.values()) < 100


def test_taking_by_choice_forgets_what_has_left() -> None:
    """Where items are chosen by length nobody takes from the front, and still nothing piles up."""
    queue = Queue()
    for _ in range(5_000):
        push(queue, tenant="a")
        push(queue, tenant="b")
        for request in lane_of(queue).candidates(2):
            queue.take_chosen(request, 1)
    assert len(queue) == 0
    assert sum(len(flow.requests) for flow in queue._lanes[None].flows.values()) < 10


def test_candidates_come_in_fair_order() -> None:
    """The same order in which they would be taken from the front."""
    queue = Queue()
    for _ in range(8):
        push(queue, tenant="heavy", weight=4.0)
    for _ in range(8):
        push(queue, tenant="light", weight=1.0)
    names = [request.tenant for request in lane_of(queue).candidates(10)]
    assert Counter(names) == {"heavy": 8, "light": 2}
    assert all(request.taken == 0 for request in lane_of(queue).candidates(10))


def test_the_state_reads_well() -> None:
    """`repr` counts items."""
    queue = Queue()
    push(queue, 3)
    assert repr(queue) == "<Queue: 3 items waiting>"
