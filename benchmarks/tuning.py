"""How good `carpool tune`'s search is: on simulated devices, against the whole grid.

For each device and goal: the best setting that the grid has, the one that the search finds, and the runs that
each took. The scheduler is the real one and time is simulated: a grid of hundreds of runs takes half a minute.

    python benchmarks/tuning.py [--requests 3000]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scheduler.experiment import percentile
from benchmarks.scheduler.simulator import ClosedLoop, Device, simulate
from carpool.bench.curve import Line
from carpool.bench.goal import Goal
from carpool.bench.search import Run, Search, Setting, Space, Trial
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.scheduler import Scheduler

WARM_UP = 0.1  # of the arrivals
ROUNDS = 12  # requests of each user at least, or its latencies are those of the start
SPACE = Space((1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 4), (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256))
CASES: Sequence[tuple[Device, str]] = (
    (Device(1, 0.008, 0.0005), "max throughput with p99 < 100 ms"),
    (Device(1, 0.008, 0.0005), "max throughput with p99 < 40 ms"),
    (Device(1, 0.008, 0.0005), "max throughput"),
    (Device(1, 0.008, 0.0005), "min p99 with throughput > 500"),
    (Device(2, 0.008, 0.0005), "max throughput with p99 < 60 ms"),
    (Device(1, 0.002, 0.004), "max throughput with p99 < 50 ms"),
    (Device(2, 0.020, 0.0002), "max throughput with p50 < 60 ms"),
    (Device(1, 0.001, 0.0001), "min p50 with throughput > 4000"),
)


@cache
def simulated(device: Device, requests: int) -> Run:
    """A run is a closed loop on the device. It is the same whenever it is done, so it is done once."""

    @cache
    def run(setting: Setting, users: int) -> Trial:
        policy = BatchPolicy(
            max_batch_size=setting.max_batch_size, objective=setting.objective_ms / 1000 or None
        )
        scheduler = Scheduler(policy, Limits(max_in_flight=setting.in_flight))
        load = ClosedLoop(users, max(requests, users * ROUNDS))
        outcome = simulate(scheduler, device, load, seed=1)
        since = outcome.arrived[int(len(outcome.arrived) * WARM_UP)]
        latencies = sorted(1000 * seconds for seconds in outcome.since(since) if seconds == seconds)
        percentiles = (percentile(latencies, share) for share in (0.5, 0.95, 0.99))
        return Trial(setting, users, outcome.rate(since, outcome.last_end), *percentiles)

    return run


@dataclass(frozen=True)
class Outcome:
    """What was found, what there was to find, and how many runs either took."""

    found: Trial
    best: Trial
    runs: int
    grid: int
    loss: float  # relative


def tune(device: Device, goal: Goal, requests: int) -> Outcome:
    """Search, then look everywhere."""
    run = simulated(device, requests)
    search = Search(run, goal, SPACE, Line(device.a * 1000, device.c * 1000))
    found = search.find()
    every = [
        run(Setting(size, in_flight), users)
        for size, in_flight, users in product(SPACE.batch_sizes, SPACE.in_flight, SPACE.users)
    ]
    best = max(every, key=goal.score)
    (keeps, value), (_, most) = goal.score(found), goal.score(best)
    loss = (most - value) / abs(most) if keeps else float("inf")
    return Outcome(found, best, len(search.trials), SPACE.size, loss)


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    requests = parser.parse_args().requests
    print("| device | goal | found | best of the grid | off by | runs | of the grid's |")
    print("|" + " --- |" * 7)
    for device, text in CASES:
        outcome = tune(device, Goal.parse(text), requests)
        print(
            f"| {device.slots} x ({device.a * 1000:g} + {device.c * 1000:g}·b ms) | {text} "
            f"| {_describe(outcome.found)} | {_describe(outcome.best)} | {outcome.loss:.1%} "
            f"| {outcome.runs} | {outcome.runs / outcome.grid:.0%} of {outcome.grid} |",
            flush=True,
        )


def _describe(trial: Trial) -> str:
    setting = trial.setting
    objective = f", told {setting.objective_ms} ms" if setting.objective_ms else ""
    return (
        f"{setting.max_batch_size} x {setting.in_flight}{objective}, {trial.users} users: "
        f"{trial.throughput:.0f}/s, p99 {trial.p99:.1f} ms"
    )


if __name__ == "__main__":
    main()
