"""What the real server adds to what the scheduler promises: measured latency against the simulation's.

Behind `carpool serve` stands a synthetic device (device.py) on which a batch of b takes `a + c·b`. An open
loop sends single texts as a Poisson process at shares of the device's saturation, `C·b_max/(a + c·b_max)`.
Latency counts from when a text was *meant* to be sent, so a server that stalls cannot slow the clock down.
The same arrivals then go through the simulator with the S(b) that was measured at the device directly; what
the measured mean has beyond the simulated one is the overhead of the path: HTTP twice, event loops, wakeups.

    python benchmarks/served.py [--slots 1] [--policy adaptive] [--rounds 3] [--seconds 20] [--requests 8000]

The table goes to benchmarks/results/served.md as well.

Rounds alternate between the loads, so that a machine whose speed drifts treats all alike. A round lasts
`--seconds` or `--requests`, whichever is less. Rounds in which the generator itself was late, or others used
the machine, are left out of the medians.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.device import Cost, run_precisely
from benchmarks.gain import Server, serve
from benchmarks.machine import cpu_of_everyone, describe_machine, describe_run, wait_until_quiet
from benchmarks.open_loop import Pool, percentile, poisson, send_load
from benchmarks.scheduler import simulator
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.scheduler import Scheduler

LOADS = (0.05, 0.20, 0.40, 0.60, 0.80)  # those of the design's tables that are stable under every policy
CALIBRATED_SIZES = (1, 2, 4, 8, 16, 32)
CALIBRATION_CALLS = 30  # of each size
NO_OP_CALLS = 500
WARM_UP_CALLS = 50
WARM_UP_REQUESTS = 500
WARM_UP_LOAD = 0.20
START_SECONDS = 30.0
# A round counts if 99 texts of 100 were sent within this time of when they were meant to be: the time of one
# batch of 4, and the mean lateness, which is printed, is a small part of it.
LATE_MS = 10.0
# A round counts if nobody else used more than this: server, generator and device need 0.7 of two cores.
OTHERS_CORES = 0.3
RESULTS = Path(__file__).parent / "results" / "served.md"
QUIET_SECONDS = 60.0  # how long to wait before a round for the machine to be that quiet


@dataclass(frozen=True)
class Plan:
    """What is to be measured, as the command line has it."""

    slots: int
    policy: BatchPolicy
    a_ms: float
    c_ms: float
    rounds: int
    seconds: float
    requests: int

    @property
    def saturation(self) -> float:
        """Texts per second that the device can do."""
        size = self.policy.max_batch_size
        return self.slots * size / (self.a_ms + self.c_ms * size) * 1000


@dataclass(frozen=True)
class Running:
    """A server, and the device behind it."""

    server: Server
    device: Server


@dataclass(frozen=True)
class Round:
    """One load on the server. Times are in milliseconds."""

    requests: float
    failed: float
    mean: float
    p50: float
    p99: float
    simulated: float  # the mean
    batch_size: float
    simulated_batch_size: float
    sent_late: float  # the mean; it is part of the measured mean and no fault of the server's
    sent_late_p99: float
    device_idle: float  # the median before a batch: under a backlog, what the server takes between two batches
    device_late_p99: float
    server_cores: float
    generator_cores: float
    device_cores: float
    others_cores: float

    @property
    def counts(self) -> bool:
        """Whether it measured the server, and not a late generator or a busy machine."""
        return self.sent_late_p99 <= LATE_MS and self.others_cores <= OTHERS_CORES


@contextmanager
def run_device(a_ms: float, c_ms: float, slots: int) -> Iterator[Server]:
    """device.py on a free port."""
    script = str(Path(__file__).parent / "device.py")
    command = [sys.executable, script, "--a-ms", str(a_ms), "--c-ms", str(c_ms), "--slots", str(slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            found = re.match(rb"http://\S+", process.stdout.readline())
            if found is None:
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield Server(found[0].decode(), psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def run_both(plan: Plan, a_ms: float, c_ms: float) -> Iterator[Running]:
    """A device, and `carpool serve` in front of it once it is healthy."""
    policy = plan.policy
    with ExitStack() as stack:
        device = stack.enter_context(run_device(a_ms, c_ms, plan.slots))
        server = stack.enter_context(
            serve(
                *("--inference-url", device.url),
                *("--max-concurrent-workers", str(plan.slots)),
                *("--max-batch-size", str(policy.max_batch_size)),
                *("--policy", policy.name),
                *("--max-wait-time-ms", str(policy.max_wait * 1000)),
            )
        )
        wait_until_healthy(server)
        yield Running(server, device)


def wait_until_healthy(server: Server) -> None:
    """Ask for `/health` until it is 200."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(server.url + "/health").close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


async def time_calls(pool: Pool, count: int) -> float:
    """The median seconds of `count` calls, one at a time, after some that do not count."""
    await pool.open(1)
    for _ in range(WARM_UP_CALLS):
        await pool.call()
    seconds = statistics.median([await pool.call() for _ in range(count)])
    pool.close()
    return seconds


def calibrate(device: Server) -> tuple[dict[int, float], Cost]:
    """S(b) measured at the device directly, and the `a` and `c` of the straight line through it."""
    times = {
        size: run_precisely(time_calls(Pool(device.url, size), CALIBRATION_CALLS)) for size in CALIBRATED_SIZES
    }
    c, a = statistics.linear_regression(list(times), list(times.values()))
    return times, Cost(a, c)


def measure_no_op(plan: Plan) -> tuple[float, float]:
    """The median seconds of one text to a device that takes no time: through the server, and directly."""
    with run_both(plan, 0.0, 0.0) as running:
        served = run_precisely(time_calls(Pool(running.server.url), NO_OP_CALLS))
        direct = run_precisely(time_calls(Pool(running.device.url, 1), NO_OP_CALLS))
    return served, direct


def simulate(plan: Plan, cost: Cost, times: list[float]) -> tuple[float, float]:
    """The mean latency in seconds, and the mean batch size, of the same arrivals in the simulator."""
    device = simulator.Device(plan.slots, cost.a, cost.c, noise=0.0)
    scheduler = Scheduler(plan.policy, Limits(max_in_flight=plan.slots))
    outcome = simulator.simulate(scheduler, device, simulator.Workload(times, told=False), seed=0)
    return statistics.fmean(outcome.latencies), statistics.fmean(outcome.batch_sizes)


def run_round(plan: Plan, running: Running, cost: Cost, times: list[float]) -> Round:
    """Put a load on the server and measure; simulate the same arrivals."""
    read_statistics(running.device)
    stop = count_cores(running.server.process, psutil.Process(), running.device.process)
    latencies, late = run_precisely(send_load(running.server.url, times))
    server_cores, generator_cores, device_cores, others_cores = stop()
    ran = read_statistics(running.device)
    if not latencies:
        raise RuntimeError("the server answered nothing")
    simulated, simulated_batch_size = simulate(plan, cost, times)
    return Round(
        requests=len(times),
        failed=len(times) - len(latencies),
        mean=statistics.fmean(latencies),
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        simulated=simulated * 1000,
        batch_size=ran["items"] / ran["batches"],
        simulated_batch_size=simulated_batch_size,
        sent_late=statistics.fmean(late),
        sent_late_p99=percentile(late, 99),
        device_idle=ran["idle_p50_ms"],
        device_late_p99=ran["late_p99_ms"],
        server_cores=server_cores,
        generator_cores=generator_cores,
        device_cores=device_cores,
        others_cores=others_cores,
    )


def read_statistics(device: Server) -> Mapping[str, float]:
    """What the device has run since it was last asked."""
    with urllib.request.urlopen(device.url + "/statistics") as reply:
        ran: dict[str, float] = json.load(reply)
    return ran


def count_cores(*processes: psutil.Process) -> Callable[[], list[float]]:
    """Start to count; the result stops, and gives the cores that each used, and all others on the machine."""

    def spent() -> list[float]:
        each = [sum(process.cpu_times()[:2]) for process in processes]
        return [*each, cpu_of_everyone() - sum(each)]

    before, started = spent(), time.monotonic()

    def stop() -> list[float]:
        seconds = time.monotonic() - started
        return [max(0.0, after - was) / seconds for after, was in zip(spent(), before, strict=True)]

    return stop


def measure_loads(plan: Plan, running: Running, cost: Cost) -> dict[float, list[Round]]:
    """All rounds of all loads, in turn."""
    rounds: dict[float, list[Round]] = {load: [] for load in LOADS}
    warm_up = poisson(plan.saturation * WARM_UP_LOAD, WARM_UP_REQUESTS, "warm up")
    run_precisely(send_load(running.server.url, warm_up))
    for number in range(plan.rounds):
        for load in LOADS:
            rate = plan.saturation * load
            count = min(plan.requests, int(rate * plan.seconds))
            times = poisson(rate, count, f"{load} {number}")
            wait_until_quiet(cpu_of_everyone, OTHERS_CORES, QUIET_SECONDS)
            rounds[load].append(run_round(plan, running, cost, times))
    return rounds


def median_of(rounds: Sequence[Round]) -> Round:
    """The median of everything."""
    return Round(
        **{field.name: statistics.median(getattr(one, field.name) for one in rounds) for field in fields(Round)}
    )


def table(plan: Plan, rounds: Mapping[float, Sequence[Round]]) -> Iterator[str]:
    """The lines of the table."""
    yield (
        "| load | texts/s | texts a round | rounds | mean ms | p50 | p99 | simulated mean | overhead ms "
        "| batch size | simulated | sent late, mean | p99 | device: idle p50 | late p99 "
        "| cores: server | generator | device | others |"
    )
    yield "|" + " --- |" * 19
    for load, all_of_it in rounds.items():
        good = [one for one in all_of_it if one.counts]
        row = median_of(good or all_of_it)
        overhead = statistics.median(one.mean - one.simulated for one in good or all_of_it)
        note = "" if good else " (disturbed)"
        note += f" ({row.failed:.0f} failed)" if row.failed else ""
        yield (
            f"| {load:.0%}{note} | {plan.saturation * load:.0f} | {row.requests:.0f} "
            f"| {len(good)} of {len(all_of_it)} | {row.mean:.2f} | {row.p50:.2f} | {row.p99:.2f} "
            f"| {row.simulated:.2f} | {overhead:.2f} | {row.batch_size:.2f} | {row.simulated_batch_size:.2f} "
            f"| {row.sent_late:.2f} | {row.sent_late_p99:.2f} "
            f"| {row.device_idle:.2f} | {row.device_late_p99:.2f} | {row.server_cores:.2f} "
            f"| {row.generator_cores:.2f} | {row.device_cores:.2f} | {row.others_cores:.2f} |"
        )


def read_plan() -> Plan:
    """The plan that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1, help="devices, and batches in flight")
    parser.add_argument("--a-ms", type=float, default=8.0)
    parser.add_argument("--c-ms", type=float, default=0.5)
    parser.add_argument("--policy", choices=("adaptive", "timeout"), default="adaptive")
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=8000)
    options = parser.parse_args()
    return Plan(
        slots=options.slots,
        policy=BatchPolicy(options.policy, options.max_batch_size, options.max_wait_ms / 1000),
        a_ms=options.a_ms,
        c_ms=options.c_ms,
        rounds=options.rounds,
        seconds=options.seconds,
        requests=options.requests,
    )


def main() -> None:
    """Calibrate, measure, write."""
    plan = read_plan()
    machine = describe_machine()
    served, direct = measure_no_op(plan)
    with run_both(plan, plan.a_ms, plan.c_ms) as running:
        sizes, cost = calibrate(running.device)
        rounds = measure_loads(plan, running, cost)
    measured = ", ".join(f"{size}: {seconds * 1000:.2f}" for size, seconds in sizes.items())
    text = "\n".join(
        [
            "# The real server against the simulation\n",
            f"{describe_run()}; {machine}\n",
            f"`{plan.policy}`; {plan.slots} slots; {plan.a_ms:g} + {plan.c_ms:g}·b ms, which saturates at "
            f"{plan.saturation:.0f} texts/s; medians of {plan.rounds} rounds.\n",
            f"- S(b) at the device, ms: {measured}; fitted {cost.a * 1000:.2f} + {cost.c * 1000:.3f}·b",
            f"- A no-op takes {served * 1000:.2f} ms through the server, {direct * 1000:.2f} ms directly\n",
            *table(plan, rounds),
        ]
    )
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
