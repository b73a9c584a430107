"""Which items travel together where the backend pads them all to the longest."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest

from carpool.core.curve import Curve
from carpool.core.request import Request
from carpool.core.selection import choose
from tests.core.support import Simulation, make, serve_all, submit


def requests(*widths: float, at: float = 0.0) -> list[Request]:
    made = [Request([width], costs=[width]) for width in widths]
    for request in made:
        request.arrived = at
    return made


def chosen(now: float, candidates: list[Request], limit: int = 8, budget: float = inf) -> list[Any]:
    curve = Curve()
    for cost in (10, 1000):
        curve.learn(cost, 0.001 + cost * 1e-5)
    return [request.items[0] for request, _ in choose(now, candidates, limit, budget, curve)]


def test_like_lengths_travel_together() -> None:
    """Short items do not pay for the padding of a long one, nor a long one with its place."""
    short_and_long = requests(*[10] * 8, *[500] * 8)
    random.Random(1).shuffle(short_and_long)
    assert chosen(0.0, short_and_long) == [10] * 8


def test_little_padding_is_better_than_another_batch() -> None:
    """The fixed cost of a batch is shared by all in it."""
    assert chosen(0.0, requests(10, 12, 14)) == [10, 12, 14]


def test_the_oldest_travels_when_it_has_waited_long_enough() -> None:
    """For 100 ms it may be passed over, then not again."""
    others = requests(*[10] * 8, at=0.099)
    (long,) = requests(500)
    assert 500 not in chosen(0.099, [long, *others])
    assert 500 in chosen(0.101, [long, *others])


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_neither_limit_is_exceeded(limit: int) -> None:
    """Their number, and their number times the longest."""
    rng = random.Random(2)
    for _ in range(50):
        candidates = requests(*(rng.randint(1, 100) for _ in range(rng.randint(1, 40))))
        for now in (0.0, 1.0):
            widths = chosen(now, candidates, limit, budget=120)
            assert 1 <= len(widths) <= limit
            assert len(widths) * max(widths) <= 120


def test_an_item_over_the_budget_leaves_alone() -> None:
    """Or it would wait for ever, and whatever is behind it."""
    assert chosen(0.0, requests(500), budget=100) == [500]
    assert chosen(1.0, requests(500, 10), budget=100) in ([10], [500])
    scheduler = make(8, padded=True, max_batch_cost=100)
    for width in (500, 10, 10, 500):
        submit(scheduler, 0.0, width, costs=[width])
    batches = serve_all(scheduler, 0.0)
    assert sorted(sorted(batch.items) for batch in batches) == [[10, 10], [500], [500]]


def test_a_request_of_many_items_leaves_in_pieces_within_the_budget() -> None:
    """The padded cost of each piece counts, not that of its first item."""
    scheduler = make(8, padded=True, max_batch_cost=100)
    costs = [10] * 12 + [60] * 3 + [1] * 5
    request = submit(scheduler, 0.0, *range(20), costs=costs)
    batches = serve_all(scheduler, 0.0)
    assert request.results == list(range(20))
    assert all(batch.cost <= 100 for batch in batches)
    assert len(batches) < 8


def test_items_of_no_length_are_no_trouble() -> None:
    """An empty text may cost 0."""
    assert chosen(0.0, requests(0, 0, 5), budget=10) in ([0, 0], [0, 0, 5])
    assert [request.items for request, _ in choose(0.0, requests(0, 0), 8, 10, Curve())] == [[0], [0]]


def test_nothing_starves_under_load() -> None:
    """A few long items among many short ones are answered within a bounded time."""
    scheduler = make(8, padded=True, queue=1000)
    rng = random.Random(3)
    simulation = Simulation(scheduler)
    lengths = [200 if rng.random() < 0.02 else rng.randint(5, 20) for _ in range(3000)]
    simulation.run((place / 600, Request([length], costs=[length])) for place, length in enumerate(lengths))
    assert len(simulation.ended) == 3000
    long = [simulation.latencies[id(request)] for request in simulation.ended if request.items[0] == 200]
    assert max(long) < 0.5
