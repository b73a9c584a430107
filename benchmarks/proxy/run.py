"""carpool as a proxy: what a request costs it, against nginx and against the upstream itself, in one run.

    python benchmarks/proxy/run.py [--quick] [--soak [N]] [--rounds 5] [--seconds 5] [--carpool NAME=PYTHON]

Behind every proxy stands the same synthetic upstream (benchmarks/device.py). Four questions, each with a bar:

1. What does a request cost? The upstream answers in no time, 256 connections each send their next text when
   they have the vector of the last. CPU time of the proxy's processes a request, and requests a second.
2. How much of the upstream's capacity gets through? A batch of b takes 8 + 0.5·b ms on one serial device.
3. How long does a text take, at 10, 50 and 90 % of that capacity (a Poisson process)?
4. What does the proxy add when nothing queues? Like 3 at 10 %, with so many devices that no text meets another:
   on the single one texts that come alone are too many already (8.5 ms each), so "directly" would mean a queue.

`--soak` adds a fifth: does the memory stay flat over a million requests?

Rounds alternate between the programs, and medians are compared; multiples of nginx's CPU are taken within a
round. Each waits until the machine is quiet; one in which others used more than 0.15 core is run again, within
`--tries`, and the table says how often.
`--carpool compiled=build/compiled/bin/python` measures another installed carpool beside this one.

It needs Debian's `nginx-light` and `wrk`, and two cores. The table goes to benchmarks/results/proxy.md as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.machine import cpu_of_everyone, describe_machine, describe_run, wait_until_quiet
from benchmarks.proxy.load import Load, as_much_as_it_takes, at_rate
from benchmarks.proxy.programs import (
    OTHER_CORE,
    PROXY_CORE,
    Program,
    pin_this_process,
    run_carpool,
    run_device,
    run_nginx,
)
from benchmarks.proxy.usage import OTHERS_CORES, QUIET_SECONDS, Meter, Usage, resident_bytes

A_MS, C_MS, BATCH_SIZE = 8.0, 0.5, 32  # the main case of the scheduler's simulations; carpool's default size
SATURATION = BATCH_SIZE / (A_MS + C_MS * BATCH_SIZE) * 1000  # texts a second of one serial device
LOADS = (0.1, 0.5, 0.9)
ENOUGH_DEVICES = 64  # that at 10 % no text meets another
WARM_UP_SECONDS = 2.0
SOAK_GROWTH_MIB = 2.0  # from the middle third of the run to the last: less than 5 bytes a request
# The bars, by floats a reply: CPU us per request, and as a multiple of nginx's.
BARS = {384: (16.0, 1.25), 1024: (21.0, 1.35)}
SHARE_BAR = 0.97  # of the upstream's saturation
ADDED_BAR_MS = 1.0
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "proxy.md"


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long. `carpools` maps a name to the interpreter that runs it."""

    rounds: int
    seconds: int
    tries: int  # of a round that others disturb
    connections: int
    soak: int  # requests
    carpools: Mapping[str, str]


@dataclass(frozen=True)
class Round:
    """One load on one program, and how often it was run before others left the machine alone."""

    load: Load
    usage: Usage
    dropped: int
    batch_size: float  # the mean

    @property
    def cost(self) -> float:
        """CPU microseconds of the proxy a request."""
        return self.usage.proxy / max(1, self.load.requests) * 1e6

    @property
    def counts(self) -> bool:
        """Whether others left the machine alone."""
        return self.usage.others_cores <= OTHERS_CORES


class Rounds:
    """All rounds of one program. Figures are medians of those that count, or of all where none does."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self._all = rounds
        good = [one for one in rounds if one.counts]
        self._used = good or list(rounds)
        self._note = f"{len(good)} of {len(rounds)}, {sum(one.dropped for one in rounds)} dropped"

    def median(self, value: Callable[[Round], float]) -> float:
        """The median of something."""
        return statistics.median(map(value, self._used))

    def per_request(self, cpu: Callable[[Usage], float]) -> float:
        """CPU microseconds a request."""
        return self.median(lambda one: cpu(one.usage) / max(1, one.load.requests) * 1e6)

    def cost_over(self, other: Rounds) -> float:
        """The proxy's CPU a request as a multiple of another's in the same round: machines change speed."""
        costs = [one.cost / other_one.cost for one, other_one in zip(self._all, other._all, strict=True)]
        return statistics.median(costs)

    def latencies(self) -> str:
        """Two cells: p50 and p99."""
        p50, p99 = self.median(lambda one: one.load.p50_ms), self.median(lambda one: one.load.p99_ms)
        return f"{p50:.2f} | {p99:.2f}"

    def disturbance(self) -> str:
        """Three cells: failures, what others used, and the rounds that count."""
        failed = self.median(lambda one: one.load.failed)
        return f"{failed:.0f} | {self.median(lambda one: one.usage.others_cores):.2f} | {self._note}"


class Report:
    """Lines of Markdown, printed as they come; every bar that is missed is remembered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.passed = True

    def say(self, line: str = "") -> None:
        """One line."""
        self.lines.append(line)
        print(line, flush=True)

    def table(self, *columns: str) -> None:
        """The head of a table."""
        self.say(f"| {' | '.join(columns)} |")
        self.say("|" + " --- |" * len(columns))

    def judge(self, what: str, value: float, bar: float, unit: str = "", most: bool = True) -> None:
        """Whether a bar is met: `most` says on which side."""
        good = value <= bar if most else value >= bar
        self.passed = self.passed and good
        side = "at most" if most else "at least"
        self.say(f"- {'PASS' if good else 'FAIL'}: {what}: {value:.2f}{unit}, {side} {bar:g}{unit}")


def measure(program: Program, device: Program, load: Callable[[], Load], tries: int) -> Round:
    """Put a load on a program, again if others disturbed it."""
    for dropped in range(tries):
        wait_until_quiet(cpu_of_everyone, OTHERS_CORES, QUIET_SECONDS)
        count_batches(device)
        meter = Meter(program.processes, device.processes)
        result = Round(load(), meter.stop(), dropped, count_batches(device))
        if result.counts:
            break
    return result


def count_batches(device: Program) -> float:
    """The mean size of the batches that the device has run since it was last asked."""
    with urllib.request.urlopen(device.url + "/statistics") as reply:
        ran = json.load(reply)
    return float(ran["items"] / max(1, ran["batches"]))


def warm_up(plan: Plan, programs: Sequence[Program]) -> None:
    """A first load, which does not count."""
    for program in programs:
        as_much_as_it_takes(program.url, plan.connections, WARM_UP_SECONDS)


def alternate(
    plan: Plan, device: Program, programs: Sequence[Program], load: Callable[[Program, int], Load]
) -> dict[str, Rounds]:
    """Rounds of all programs in turn."""
    rounds: dict[str, list[Round]] = {program.name: [] for program in programs}
    for number in range(plan.rounds):
        for program in programs:

            def put(program: Program = program, number: int = number) -> Load:
                return load(program, number)

            rounds[program.name].append(measure(program, device, put, plan.tries))
    return {name: Rounds(all_of_it) for name, all_of_it in rounds.items()}


@contextmanager
def run_carpools(plan: Plan, device: Program) -> Iterator[list[Program]]:
    """Every carpool of the plan, side by side; who has nothing to do costs nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(run_carpool(name, python, device)) for name, python in plan.carpools.items()]


def compare(
    plan: Plan, upstream: AbstractContextManager[Program], load: Callable[[Program, int], Load]
) -> dict[str, Rounds]:
    """Rounds through every carpool, through nginx, and directly."""
    with upstream as device, run_nginx(device) as nginx, run_carpools(plan, device) as carpools:
        programs = [*carpools, nginx, Program("directly", device.url)]
        warm_up(plan, programs)
        return alternate(plan, device, programs, load)


def measure_cost(plan: Plan, floats: int, report: Report) -> None:
    """The first question."""

    def load(program: Program, number: int) -> Load:
        return as_much_as_it_takes(program.url, plan.connections, plan.seconds)

    rounds = compare(plan, run_device(0, 0, 1, floats), load)
    report.say(f"\n## CPU per request: {floats} floats, {plan.connections} connections, instant upstream\n")
    report.table(
        *("through", "proxy CPU us", "requests/s", "proxy's core busy", "p50 ms", "p99 ms"),
        *("batch", "upstream CPU us", "load CPU us", "failed", "others, cores", "rounds"),
    )
    for name, of in rounds.items():
        rate, busy = of.median(lambda one: one.load.rate), of.median(lambda one: one.usage.busy)
        proxy, upstream, generator = (
            of.per_request(cpu) for cpu in (attrgetter("proxy"), attrgetter("upstream"), attrgetter("load"))
        )
        report.say(
            f"| {name} | {proxy:.1f} | {rate:,.0f} | {busy:.0%} | {of.latencies()} "
            f"| {of.median(lambda one: one.batch_size):.1f} | {upstream:.1f} "
            f"| {generator:.1f} | {of.disturbance()} |"
        )
    report.say()
    most, most_of_nginx = BARS[floats]
    for name in plan.carpools:
        cost, times = rounds[name].median(attrgetter("cost")), rounds[name].cost_over(rounds["nginx"])
        report.judge(f"{name}, CPU per request at {floats} floats", cost, most, " us")
        report.judge(f"{name}, nginx's at {floats} floats", times, most_of_nginx, " x")


def measure_capacity(plan: Plan, report: Report) -> None:
    """The second and the third question, on one serial device."""
    shares: dict[str, float] = {}
    rows: list[str] = []

    def flat_out(program: Program, number: int) -> Load:
        return as_much_as_it_takes(program.url, plan.connections, plan.seconds * 2)

    with run_device(A_MS, C_MS, 1, 384) as device, run_carpools(plan, device) as carpools:
        warm_up(plan, carpools)
        for name, of in alternate(plan, device, carpools, flat_out).items():
            shares[name] = of.median(lambda one: one.load.rate) / SATURATION
            rows.append(row_of(f"{name} | flat out, {plan.connections} connections", of))
        for share in LOADS:
            rate = SATURATION * share

            def at_share(program: Program, number: int, rate: float = rate) -> Load:
                return at_rate(program.url, rate, plan.seconds * 2, f"{rate} {number}")

            for name, of in alternate(plan, device, carpools, at_share).items():
                rows.append(row_of(f"{name} | {share:.0%}", of))
    report.say(
        f"\n## Throughput and latency: b texts take {A_MS:g} + {C_MS:g}·b ms on one serial device, 384 floats\n"
    )
    report.say(
        f"The device saturates at {SATURATION:.0f} requests/s in batches of {BATCH_SIZE}; one at a time it "
        f"does {1000 / (A_MS + C_MS):.0f}, which is less than 10 % of that.\n"
    )
    report.table(
        *("through", "load", "requests/s", "p50 ms", "p99 ms", "batch", "proxy CPU us"),
        *("failed", "others, cores", "rounds"),
    )
    for row in rows:
        report.say(row)
    report.say()
    for name, share in shares.items():
        report.judge(f"{name}, share of the saturation", share * 100, SHARE_BAR * 100, " %", most=False)


def row_of(start: str, of: Rounds) -> str:
    """A row of a table of rates and latencies."""
    return (
        f"| {start} | {of.median(lambda one: one.load.rate):,.0f} | {of.latencies()} "
        f"| {of.median(lambda one: one.batch_size):.1f} "
        f"| {of.per_request(lambda used: used.proxy):.1f} | {of.disturbance()} |"
    )


def measure_added(plan: Plan, report: Report) -> None:
    """The fourth question."""
    rate = SATURATION * LOADS[0]

    def load(program: Program, number: int) -> Load:
        return at_rate(program.url, rate, plan.seconds * 2, f"added {number}")

    rounds = compare(plan, run_device(A_MS, C_MS, ENOUGH_DEVICES, 384), load)
    report.say(f"\n## Added latency: {rate:.0f} requests/s, {ENOUGH_DEVICES} devices, so that nothing queues\n")
    report.table(
        *("through", "load", "requests/s", "p50 ms", "p99 ms", "batch", "proxy CPU us"),
        *("failed", "others, cores", "rounds"),
    )
    for name, of in rounds.items():
        report.say(row_of(f"{name} | {LOADS[0]:.0%}", of))
    report.say()
    direct = rounds["directly"].median(lambda one: one.load.p50_ms)
    for name in plan.carpools:
        added = rounds[name].median(lambda one: one.load.p50_ms) - direct
        report.judge(f"{name}, p50 added at {LOADS[0]:.0%}", added, ADDED_BAR_MS, " ms")


def measure_memory(plan: Plan, report: Report) -> None:
    """The fifth question. Every piece of the run opens its connections anew."""
    report.say(f"\n## Memory over {plan.soak:,} requests: 384 floats, instant upstream\n")
    report.table("through", "requests", "first MiB", "middle third", "last third", "most")
    with run_device(0, 0, 1, 384) as device, run_carpools(plan, device) as carpools:
        for carpool in carpools:
            answered, sizes = 0, [_mebibytes(carpool)]
            while answered < plan.soak:
                answered += as_much_as_it_takes(carpool.url, plan.connections, 2).requests
                sizes.append(_mebibytes(carpool))
            third = max(1, len(sizes) // 3)
            middle, last = statistics.median(sizes[third : 2 * third]), statistics.median(sizes[-third:])
            cells = " | ".join(f"{size:.1f}" for size in (sizes[0], middle, last, max(sizes)))
            report.say(f"| {carpool.name} | {answered:,} | {cells} |\n")
            report.judge(f"{carpool.name}, growth of the memory", last - middle, SOAK_GROWTH_MIB, " MiB")


def _mebibytes(program: Program) -> float:
    return resident_bytes(program.processes) / 2**20


def describe(plan: Plan, report: Report) -> None:
    """What was measured, on what, how."""
    printed = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    nginx = printed.rpartition("/")[2].strip()
    wrk = (
        subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split("[")[0].strip()
    )
    report.say("# carpool as a proxy\n")
    report.say(f"{describe_run()}\n")
    where = f"The proxies on core {PROXY_CORE}, upstream and load generator on core {OTHER_CORE}."
    report.say(
        f"{describe_machine()}, uvloop {version('uvloop')}, nginx {nginx}, {wrk}. {where} "
        f"Medians of {plan.rounds} rounds of "
        f"{plan.seconds:g} s (twice that where the device takes time); rounds in which others used more than "
        f"{OTHERS_CORES} core were dropped and repeated. No two texts are alike. "
        "CPU is user + system, to 10 ms a round."
    )
    names = ", ".join(
        f"{name} ({os.path.relpath(python)})"
        for name, python in plan.carpools.items()
        if python != sys.executable
    )
    if names:
        report.say(f"\nBeside the carpool of this checkout: {names}.")


def read_plan() -> Plan:
    """The plan that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="whole ones, as wrk wants them")
    parser.add_argument("--tries", type=int, default=4, help="of a round that others disturb")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="one round of two seconds, to see that it works")
    parser.add_argument(
        "--soak",
        type=int,
        nargs="?",
        const=1_000_000,
        default=0,
        help="measure the memory over so many requests",
    )
    parser.add_argument(
        "--carpool", metavar="NAME=PYTHON", action="append", default=[], help="measure another carpool as well"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.tries = 1, 2.0, 2
    others = dict(pair.split("=", 1) for pair in options.carpool)
    carpools = {"carpool": sys.executable} | {name: os.path.abspath(path) for name, path in others.items()}
    return Plan(options.rounds, options.seconds, options.tries, options.connections, options.soak, carpools)


def main() -> None:
    """Measure, print, write; the exit status is 1 where a bar is missed."""
    plan, report = read_plan(), Report()
    if (os.cpu_count() or 1) <= max(PROXY_CORE, OTHER_CORE):
        raise SystemExit("two cores are needed: one for the proxy, one for upstream and load generator")
    pin_this_process()
    describe(plan, report)
    for floats in BARS:
        measure_cost(plan, floats, report)
    measure_capacity(plan, report)
    measure_added(plan, report)
    if plan.soak:
        measure_memory(plan, report)
    RESULTS.write_text("\n".join(report.lines) + "\n")
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
