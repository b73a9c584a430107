"""What no policy can beat: capacity, and lower bounds and exact optima of the mean latency.

The exact optima are in `optimum.json`. They were computed once, for Poisson arrivals and batches without
noise, by solving the Markov decision process "leave now or hold": for one slot over the number waiting
(policy iteration), for two slots over the number waiting and both slots' remaining times in steps of half a
millisecond (value iteration). Steps so coarse cost about 1 % at the lowest loads: at 5 and 10 % the values are
from finer steps, at 5 % extrapolated to none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import inf, isclose
from pathlib import Path

from benchmarks.scheduler.simulator import Device

STEPS = 4000  # batch sizes at which the bound's minimum is looked for


@dataclass(frozen=True)
class Optimum:
    """What the exact solvers found for one device and load; means in seconds, `None` where not solved."""

    exact: float | None
    natural: float | None
    bound: float


def capacity(device: Device, batch_size: int) -> float:
    """Requests per second when every batch is full: C·b/(a + c·b)."""
    return device.slots * batch_size / device.seconds(batch_size)


def poisson_bound(device: Device, batch_size: int, rate: float) -> float:
    """A mean latency that no policy without foresight can beat under Poisson arrivals.

    T ≥ min over m of a + c·m + (m/2λ)·[1 - C(1 - u)]₊², where m is the mean batch size and u = λ(a + cm)/(Cm)
    the utilisation it leaves: who arrives while all slots are busy (arrivals see time averages) waits for one
    to end, which happens λ/m times a second.
    """
    slots, a, c = device.slots, device.a, device.c
    if rate * c >= slots:
        return inf
    smallest = max(1.0, rate * a / (slots - rate * c))
    if smallest > batch_size:
        return inf
    best = inf
    for step in range(STEPS + 1):
        size = smallest + (batch_size - smallest) * step / STEPS
        utilisation = rate * (a + c * size) / (slots * size)
        all_busy = max(0.0, 1 - slots * (1 - utilisation))
        best = min(best, a + c * size + size / (2 * rate) * all_busy**2)
    return best


@cache
def _solved() -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((Path(__file__).parent / "optimum.json").read_text())
    return found


def optimum(device: Device, batch_size: int, load: float) -> Optimum | None:
    """The solved case of this device and load (a share of capacity), if there is one."""
    for case in _solved():
        if (
            case["C"] == device.slots
            and case["b_max"] == batch_size
            and isclose(case["a_ms"], device.a * 1000)
            and isclose(case["c_ms"], device.c * 1000)
            and isclose(case["load"], load)
        ):
            exact, natural = case.get("exact_mean_ms"), case.get("natural_mean_ms")
            return Optimum(
                exact=None if exact is None else exact / 1000,
                natural=None if natural is None else natural / 1000,
                bound=case["bound_mean_ms"] / 1000,
            )
    return None
