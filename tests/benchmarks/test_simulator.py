"""The simulator of the scheduler's benchmarks, against what theory says."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

import pytest
from benchmarks.scheduler.bounds import capacity, optimum, poisson_bound
from benchmarks.scheduler.experiment import Experiment
from benchmarks.scheduler.simulator import ClosedLoop, Device, Workload, simulate
from benchmarks.scheduler.tables import ADAPTIVE, NATURAL, TIMEOUTS, Bar, worst
from benchmarks.scheduler.workloads import Bursts, Neighbours, Poisson, Replay, Source, Texts

from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.scheduler import Scheduler

STEADY = Device(noise=0.0)
REQUESTS = 20_000


def scheduler(policy: BatchPolicy, slots: int = 1) -> Scheduler:
    return Scheduler(policy, Limits(max_in_flight=slots))


def test_natural_batching_has_the_mean_latency_that_its_markov_chain_has() -> None:
    """At 40 % load of one slot; the solved chain is exact, so the rest is chance."""
    known = optimum(STEADY, 32, 0.4)
    assert known is not None
    assert known.natural is not None
    source = Poisson(0.4 * capacity(STEADY, 32), REQUESTS)
    assert Experiment(NATURAL, STEADY, source).run(1).mean == pytest.approx(known.natural, rel=0.02)


@pytest.mark.parametrize("policy", [ADAPTIVE, TIMEOUTS[5]], ids=["adaptive", "5 ms"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_no_policy_is_below_the_bound(policy: BatchPolicy, slots: int) -> None:
    """A simulator that lets a policy look ahead, or loses time, would be below it somewhere."""
    device = Device(slots, noise=0.0)
    for load in (0.05, 0.4, 0.7):
        rate = load * capacity(device, 32)
        mean = Experiment(policy, device, Poisson(rate, 3_000)).run(1).mean
        assert mean > 0.97 * poisson_bound(device, 32, rate)


def test_one_client_gets_one_answer_per_batch_time() -> None:
    """The simplest closed loop: batches of one, no waiting, and a return of half a millisecond on average."""
    outcome = simulate(scheduler(NATURAL), STEADY, ClosedLoop(1, 2_000), seed=1)
    assert len(outcome.arrived) / outcome.last_end == pytest.approx(1 / (STEADY.seconds(1) + 0.0005), rel=0.01)
    instant = simulate(scheduler(NATURAL), STEADY, ClosedLoop(1, 2_000, jitter=0.0), seed=1)
    assert len(instant.arrived) / instant.last_end == pytest.approx(1 / STEADY.seconds(1), rel=0.01)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_flood_is_served_at_capacity(slots: int) -> None:
    """Full batches on every slot, no more and no less."""
    device = Device(slots, noise=0.0)
    full = capacity(device, 32)
    result = Experiment(NATURAL, device, Poisson(2 * full, REQUESTS)).run(1)
    assert result.throughput == pytest.approx(full, rel=0.01)
    assert result.batch_size > 31


def test_one_seed_gives_one_outcome() -> None:
    """Runs can be repeated, and policies compared on the same arrivals."""
    source = Poisson(500, 1_000)
    first, again = (simulate(scheduler(ADAPTIVE), Device(), source.make(7), seed=7).latencies for _ in range(2))
    assert first == again
    assert source.make(7).times != source.make(8).times


def test_a_slot_runs_one_batch_at_a_time() -> None:
    """Batches beyond the slots wait at the device: a second in flight on one slot is only formed too early."""
    outcome = simulate(scheduler(NATURAL, slots=2), STEADY, Workload([0.0, 0.001, 0.002]), seed=1)
    assert outcome.latencies == pytest.approx([0.0085, 0.016, 0.0085 + 0.0085 + 0.0085 - 0.002])
    assert outcome.batch_sizes == [1, 1, 1]


def test_who_hangs_up_is_not_answered() -> None:
    """The caller leaves while its request waits; it is not in the next batch."""
    load = Workload([0.0, 0.001], patience=0.005)
    outcome = simulate(scheduler(NATURAL), STEADY, load, seed=1)
    assert outcome.batch_sizes == [1]
    assert outcome.since(0.0001) == pytest.approx([float("nan")], nan_ok=True)


@pytest.mark.parametrize("cv", [1.1, 13.0])
def test_synthesised_gaps_have_the_spread_of_the_trace(cv: float) -> None:
    """The mean exactly, the coefficient of variation as nearly as so few long gaps allow."""
    times = Replay(rate=100, count=100_000, gap_cv=cv).make(1).times
    gaps = [later - earlier for earlier, later in pairwise([0.0, *times])]
    mean = fmean(gaps)
    assert mean == pytest.approx(0.01)
    assert fmean((gap / mean - 1) ** 2 for gap in gaps) ** 0.5 == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("source", [Poisson(100, 20_000), Bursts(100, 20_000), Neighbours(10, 90, 20_000)])
def test_loads_keep_their_rate(source: Source) -> None:
    """The loads of a table differ in shape, not in how much they ask for."""
    load = source.make(1)
    assert isinstance(load, Workload)
    assert len(load.times) == 20_000
    assert load.times == sorted(load.times)
    assert 20_000 / load.times[-1] == pytest.approx(100, rel=0.05)


def test_texts_have_the_mean_length_that_was_asked_for() -> None:
    """After the longest have been cut, which lowers a lognormal's mean."""
    lengths = Texts(100, REQUESTS).make(1).lengths
    assert lengths is not None
    assert fmean(lengths) == pytest.approx(100, rel=0.02)
    assert max(lengths) == 512


def test_a_bar_is_judged_by_its_worst_cell() -> None:
    """And what could not be measured has not passed."""
    low, high = Bar("a", "low", 1.0, 1.1), Bar("a", "high", 1.2, 1.1)
    least = Bar("b", "some", 0.9, 0.95, at_most=False)
    assert worst([low, high, least]) == [high, least]
    assert [bar.passed for bar in (low, high, least)] == [True, False, False]
    unknown = Bar("a", "unknown", float("nan"), 1.1)
    assert not unknown.passed
    assert worst([unknown, low]) == [unknown]
