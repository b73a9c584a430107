"""What is learned from arrivals: their rate, and whether clients return."""

from __future__ import annotations

import pytest

from carpool.core.arrivals import Arrivals


def closed_loop(rounds: int, *, clients: int = 8, returning: int = 8, seconds: float = 0.01) -> Arrivals:
    """So many batches of all clients; after each some return, 0.1 ms apart. The last batch has just ended."""
    arrivals, now = Arrivals(), 0.0
    for _ in range(rounds):
        for place in range(returning):
            arrivals.arrived(now + 0.0001 * (place + 1), 1, place + 1)
        now += 0.002 + seconds
        arrivals.batch_ended(now, clients, seconds / 2)
    return arrivals


def test_the_rate_is_of_items_and_not_of_requests() -> None:
    """Requests of four items every 10 ms are 400 items a second."""
    arrivals = Arrivals()
    for number in range(200):
        arrivals.arrived(number * 0.01, 4, 4)
    assert arrivals.rate == pytest.approx(400, rel=0.01)


def test_the_rate_follows_the_load_and_forgets_the_night() -> None:
    """A pause counts as a second at most, so the first requests of the morning do not meet a rate of zero."""
    arrivals = Arrivals()
    for number in range(200):
        arrivals.arrived(number * 0.01, 1, 1)
    arrivals.arrived(40_000.0, 1, 1)
    assert arrivals.rate > 10
    for number in range(200):
        arrivals.arrived(40_000.0 + number * 0.001, 1, 1)
    assert arrivals.rate == pytest.approx(1000, rel=0.05)


def test_one_arrival_has_no_rate() -> None:
    """Nor have several at one instant."""
    arrivals = Arrivals()
    assert arrivals.rate == 0.0
    arrivals.arrived(1.0, 1, 1)
    arrivals.arrived(1.0, 1, 2)
    assert arrivals.rate == 0.0


def test_clients_that_always_return_come_to_be_expected() -> None:
    """All of them, within little more than the time that the last one takes."""
    arrivals = closed_loop(50)
    assert arrivals.surely_returning > 0.9
    now = 50 * 0.012
    items, patience = arrivals.still_expected(now)
    assert items == pytest.approx(8, rel=0.1)
    assert patience == pytest.approx(1.25 * 0.0008, rel=0.1)
    for _ in range(8):
        arrivals.arrived(now + 0.0005, 1, 1)
    assert arrivals.still_expected(now + 0.0005)[0] <= 0


def test_few_returns_are_not_counted_on() -> None:
    """At the start nobody is expected, nor where a quarter returns."""
    assert closed_loop(1).surely_returning < 0
    assert closed_loop(50, returning=2).still_expected(50 * 0.012)[0] < 2.1


def test_who_comes_after_the_window_did_not_return() -> None:
    """The window is half of a batch's time."""
    arrivals, now = Arrivals(), 0.0
    for _ in range(50):
        now += 0.1
        arrivals.batch_ended(now, 1, 0.005)
        arrivals.arrived(now + 0.006, 1, 1)
    assert arrivals.surely_returning <= 0


def test_the_peak_is_of_the_last_few_hundred_arrivals() -> None:
    """So a crowd that has gone is not waited for."""
    arrivals = Arrivals()
    for number in range(10):
        arrivals.arrived(float(number), 1, 50)
    assert arrivals.peak == 50
    for number in range(600):
        arrivals.arrived(10.0 + number, 1, 3)
    assert arrivals.peak == 3
