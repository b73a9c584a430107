"""Mean latency against load, as a picture: `benchmarks/results/latency_against_load.png`.

One panel for each number of slots. Shaded is what no policy can reach: below the exact optimum for one and two
slots, below a lower bound for four.

    python benchmarks/scheduler/figure.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.scheduler.bounds import optimum, poisson_bound
from benchmarks.scheduler.experiment import Experiment, Summary, best, measure
from benchmarks.scheduler.simulator import Device
from benchmarks.scheduler.tables import ADAPTIVE, CANDIDATES, SEEDS, TIMEOUTS, Measured
from benchmarks.scheduler.workloads import Poisson
from carpool.core.policy import BatchPolicy

OUTPUT = Path(__file__).parents[1] / "results" / "latency_against_load.png"
SLOTS = (1, 2, 4)
LOADS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
REQUESTS, QUICK_REQUESTS = 20_000, 3_000
INK, FAINT, FLOOR = "#222222", "#777777", "#e9e6df"
LOWEST, HIGHEST = 7, 90  # milliseconds


@dataclass(frozen=True)
class Name:
    """Where a line's name begins: in which panel, at which load (in per cent) and latency."""

    slots: int
    load: float
    milliseconds: float
    rotation: float = 0


@dataclass(frozen=True)
class Line:
    """A policy's look, where there are several the best of them at each load, and where it is named."""

    label: str
    policies: tuple[BatchPolicy, ...]
    colour: str
    width: float
    dashes: str
    names: tuple[Name, ...]


LINES = (
    Line("timeout 100 ms", (TIMEOUTS[100],), "#b0b0b0", 1.6, "-", (Name(2, 22, 52),)),
    Line("timeout 10 ms", (TIMEOUTS[10],), "#959595", 1.6, "-", (Name(2, 20, 19.2, 13),)),
    Line("timeout 5 ms", (TIMEOUTS[5],), "#757575", 1.6, "-", (Name(2, 6, 13.7, 5),)),
    Line("best timeout, in hindsight", tuple(CANDIDATES), "#1f5fa8", 1.4, "--", (Name(4, 6, 11.1, 21),)),
    Line("carpool adaptive", (ADAPTIVE,), "#d1450b", 3.0, "-", (Name(1, 36, 14.2), Name(2, 40, 12.6))),
)


def cell(policy: BatchPolicy, slots: int, load: float, requests: int) -> Experiment:
    """One policy at one load."""
    experiment = Experiment(policy, Device(slots), Poisson(1, requests))
    return Experiment(policy, Device(slots), Poisson(load * experiment.capacity, requests))


def floor(slots: int) -> list[float]:
    """What no policy can be below, at each load.

    The bound, raised to the exact optimum where that was solved; between solved loads their ratio is
    interpolated, and above the last it stays.
    """
    device, size = Device(slots), ADAPTIVE.max_batch_size
    bounds = [poisson_bound(device, size, load * slots * size / device.seconds(size)) for load in LOADS]
    known: list[tuple[float, float]] = []
    for load, bound in zip(LOADS, bounds, strict=True):
        solved = optimum(device, size, load)
        if solved is not None and solved.exact is not None:
            known.append((load, solved.exact / bound))
    return [bound * _interpolate(known, load) for load, bound in zip(LOADS, bounds, strict=True)]


def _interpolate(known: list[tuple[float, float]], load: float) -> float:
    if not known:
        return 1.0
    before = max((pair for pair in known if pair[0] <= load), default=known[0])
    after = min((pair for pair in known if pair[0] >= load), default=known[-1])
    if before[0] == after[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (load - before[0]) / (after[0] - before[0])


def draw(axes: Axes, slots: int, measured: Measured, requests: int) -> None:
    """One panel."""
    percent = [100 * load for load in LOADS]
    bottom = [1000 * seconds for seconds in floor(slots)]
    axes.fill_between(percent, LOWEST, bottom, color=FLOOR, linewidth=0, zorder=0)
    for line in LINES:
        summaries: list[Summary] = [
            best([cell(policy, slots, load, requests) for policy in line.policies], measured) for load in LOADS
        ]
        axes.plot(
            percent,
            [1000 * summary.mean for summary in summaries],
            line.dashes,
            color=line.colour,
            linewidth=line.width,
            solid_capstyle="round",
            zorder=3,
        )
    axes.set_title(f"{slots} batch{'es' if slots > 1 else ''} at a time", loc="left", fontsize=11, color=INK)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_xlim(5, 95)
    axes.set_xticks([5, 25, 50, 75, 95], ["5", "25", "50", "75", "95 %"])
    axes.set_yticks([10, 20, 40, 80], ["10", "20", "40", "80 ms"])
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=9, colors=FAINT)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    write(axes, slots)


def write(axes: Axes, slots: int) -> None:
    """Names next to the lines, each once, in the panel where there is room for it."""
    for line in LINES:
        for name in line.names:
            if name.slots == slots:
                weight = "bold" if line.policies == (ADAPTIVE,) else "normal"
                axes.text(
                    name.load,
                    name.milliseconds,
                    line.label,
                    color=line.colour,
                    fontsize=10,
                    fontweight=weight,
                    rotation=name.rotation,
                    rotation_mode="anchor",
                )
    kind = "the lower bound" if slots == 4 else "the exact optimum"
    axes.text(92, LOWEST * 1.08, f"no policy can go below\n{kind}", ha="right", fontsize=9, color="#8f8a7c")


def main() -> None:
    """Simulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, one seed")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    requests = QUICK_REQUESTS if options.quick else REQUESTS
    experiments = [
        cell(policy, slots, load, requests)
        for slots in SLOTS
        for line in LINES
        for policy in line.policies
        for load in LOADS
    ]
    measured = measure(experiments, SEEDS[:1] if options.quick else SEEDS)
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, panels = plt.subplots(1, len(SLOTS), figsize=(11.5, 5.2), sharey=True)
    for axes, slots in zip(panels, SLOTS, strict=True):
        draw(axes, slots, measured, requests)
    figure.suptitle("Mean latency against load", x=0.012, ha="left", fontsize=14, color=INK)
    figure.supxlabel("load, as a share of what full batches can do", fontsize=9, color=FAINT)
    figure.tight_layout(w_pad=2)
    figure.savefig(options.output, dpi=160)


if __name__ == "__main__":
    main()
