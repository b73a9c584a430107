"""The curve learns how long a batch takes from whatever batches happen to run."""

from __future__ import annotations

import random

import pytest

from carpool.core.curve import Curve

FIXED, PER_ITEM = 0.008, 0.0005


def seconds(cost: float) -> float:
    return FIXED + PER_ITEM * cost


def learned(batches: int, *, noise: float = 0.0, outliers: float = 0.0, seed: int = 1) -> Curve:
    """A curve that has seen batches of 1 to 32 items, some of which took five times as long."""
    curve, rng = Curve(), random.Random(seed)
    for _ in range(batches):
        size = rng.randint(1, 32)
        factor = 5.0 if rng.random() < outliers else rng.lognormvariate(0.0, noise)
        curve.learn(size, seconds(size) * factor)
    return curve


def test_nothing_is_predicted_before_there_is_something_to_go_by() -> None:
    """Five batches; until then the policy does what it would do without knowledge."""
    curve = Curve()
    assert curve.predict(8) == 0.0
    for count in range(5):
        assert not curve.ready
        curve.learn(8, 0.012 + count / 1e6)
    assert curve.ready


def test_a_straight_line_is_learned() -> None:
    """Without noise, to a percent or two wherever batches were seen."""
    curve = learned(100)
    for size in (1, 2, 5, 8, 16, 31):
        assert curve.predict(size) == pytest.approx(seconds(size), rel=0.03)
    assert curve.fixed == pytest.approx(FIXED, rel=0.05)
    assert curve.per_cost == pytest.approx(PER_ITEM, rel=0.05)
    assert curve.error < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_ten_percent_is_averaged_away(seed: int) -> None:
    """What it predicts is closer than any single batch was."""
    curve = learned(400, noise=0.1, seed=seed)
    for size in (2, 4, 8, 16, 31):
        assert curve.predict(size) == pytest.approx(seconds(size), rel=0.1)
    assert curve.error == pytest.approx(0.08, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_stragglers_do_not_move_it(seed: int) -> None:
    """2 % of the batches took five times as long; a mean would be off by 8 %, a least-squares line by more."""
    curve = learned(400, noise=0.05, outliers=0.02, seed=seed)
    for size in (2, 4, 8, 16, 31):
        assert curve.predict(size) == pytest.approx(seconds(size), rel=0.12)


def test_batches_of_one_size_say_nothing_of_the_slope_but_all_of_that_size() -> None:
    """What was seen is predicted exactly, the rest with a slope in the middle of what is possible."""
    curve = Curve()
    for _ in range(20):
        curve.learn(8, 0.012)
    assert curve.predict(8) == pytest.approx(0.012)
    assert 0.006 < curve.predict(1) < 0.012 < curve.predict(16) <= 0.024


def test_far_beyond_what_was_seen_nothing_more_is_claimed() -> None:
    """The line is trusted up to twice the largest cost and down to half of the smallest."""
    curve = Curve()
    for _ in range(20):
        curve.learn(8, seconds(8))
        curve.learn(16, seconds(16))
    assert curve.predict(32) == pytest.approx(seconds(32), rel=0.02)
    assert curve.predict(10_000) == curve.predict(32)
    assert curve.predict(1) == curve.predict(2) == curve.predict(4)


def test_a_backend_that_becomes_twice_as_slow_is_believed_after_some_batches() -> None:
    """One surprise is an outlier, six in a row are the truth; meanwhile the error says that it is off."""
    curve = Curve()
    for _ in range(50):
        curve.learn(8, 0.01)
    for _ in range(5):
        curve.learn(8, 0.02)
    assert curve.error > 0.15
    assert curve.predict(8) < 0.015
    curve.learn(8, 0.02)
    assert curve.predict(8) == pytest.approx(0.02, rel=0.1)


def test_batches_that_cost_or_took_nothing_do_no_harm() -> None:
    """A cost may be the length of an empty text, and a clock may be coarse; neither sticks."""
    curve = Curve()
    for _ in range(10):
        curve.learn(0, 0.0)
    assert curve.predict(0) == curve.predict(8) == 0.0
    for _ in range(200):
        curve.learn(0, 0.01)
    assert curve.predict(0) == pytest.approx(0.01, rel=0.1)


def test_it_describes_itself() -> None:
    """`repr` gives the line in milliseconds."""
    assert repr(learned(100)).startswith("<Curve: 8")
