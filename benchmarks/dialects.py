"""What a request costs carpool in each dialect, as a multiple of its native route, in one run.

    python benchmarks/dialects.py [--rounds 5] [--seconds 2] [--floats 384]

In front of a synthetic upstream that answers in no time (benchmarks/device.py), 64 connections each send their
next text when they have the vector of the last. What is compared is the CPU time of carpool's process a
request; rounds alternate between the dialects, and medians are compared. The bar is 1.5 for OpenAI (floats) and
KServe V2 (JSON). Base64 and binary tensors parse every float, which the others never do: they have no bar.

It needs Debian's `wrk`, and two cores. The table goes to benchmarks/results/dialects.md as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.machine import describe_machine, describe_run
from benchmarks.proxy.programs import Program, pin_this_process, run_carpool, run_device
from benchmarks.proxy.usage import Meter

SCRIPT = Path(__file__).with_suffix(".lua")
RESULTS = Path(__file__).parent / "results" / "dialects.md"
CONNECTIONS = 64
WARM_UP_SECONDS = 1
BAR = 1.5
NATIVE = "native"
BARS = {"tei": None, "openai": BAR, "kserve": BAR, "openai_base64": None, "kserve_binary": None}


def main() -> None:
    """Measure, print, and write the table down."""
    arguments = read_arguments()
    pin_this_process()
    with (
        run_device(0, 0, 64, arguments.floats) as device,
        run_carpool("carpool", sys.executable, device) as carpool,
    ):
        costs = measure(carpool, arguments.rounds, arguments.seconds)
    table = "\n".join([*describe(arguments), *rows(costs)])
    print(table)
    RESULTS.write_text(f"# Dialects\n\n{table}\n")


def read_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--floats", type=int, default=384)
    return parser.parse_args()


def measure(carpool: Program, rounds: int, seconds: int) -> dict[str, float]:
    """CPU microseconds a request, by dialect: the median of the rounds."""
    dialects = [NATIVE, *BARS]
    for dialect in dialects:
        send(carpool, dialect, WARM_UP_SECONDS)
    costs: dict[str, list[float]] = {dialect: [] for dialect in dialects}
    for _ in range(rounds):
        for dialect in dialects:
            meter = Meter(carpool.processes, ())
            requests = send(carpool, dialect, seconds)
            costs[dialect].append(meter.stop().proxy / requests * 1e6)
    return {dialect: statistics.median(found) for dialect, found in costs.items()}


def send(carpool: Program, dialect: str, seconds: int) -> int:
    """Put as much on it as it takes; how many requests that was, all of which must be answered well."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(SCRIPT), carpool.url, dialect]
    try:
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SystemExit("wrk is not installed: apt-get install wrk") from None
    load = json.loads(printed.splitlines()[-1])
    if load["failed"]:
        raise SystemExit(f"{dialect}: {load['failed']} of {load['requests']} requests failed")
    return int(load["requests"])


def describe(arguments: argparse.Namespace) -> list[str]:
    """What was measured, where and when."""
    return [
        f"{describe_run()}; {describe_machine()}",
        "",
        "CPU time of carpool's process (user + system) a request of one text, in front of an upstream that",
        f"answers in no time; {CONNECTIONS} connections, medians of {arguments.rounds} alternating rounds.",
        "Base64 and binary tensors parse every float; TEI's answers have eight headers of their own.",
        "",
        "| dialect | CPU us | of native | bar |",
        "| --- | --- | --- | --- |",
    ]


def rows(costs: dict[str, float]) -> list[str]:
    """The table."""
    native = costs[NATIVE]
    found = [f"| {NATIVE} | {native:.1f} | 1.00 | |"]
    for dialect, bar in BARS.items():
        times = costs[dialect] / native
        verdict = "" if bar is None else f"{'met' if times <= bar else 'MISSED'}: {bar}"
        found.append(f"| {dialect} | {costs[dialect]:.1f} | {times:.2f} | {verdict} |")
    return found


if __name__ == "__main__":
    main()
