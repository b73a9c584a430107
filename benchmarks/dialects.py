"""What a request costs carpool in each dialect, as a multiple of its native route, in one run.

    python benchmarks/dialects.py [--rounds 5] [--seconds 2] [--floats 384]

In front of a synthetic upstream that answers in no time (benchmarks/device.py), 64 connections each send their
next text when they have the vector of the last. What is compared is the CPU time of carpool's process a
request, with that of the native route in the same round, as a processor's speed changes with what else runs on
it; what counts is the median of the rounds. The bar is 1.5 for OpenAI and KServe V2. Base64 and binary tensors
parse every float, which the others never do: with the extra `floats`, where that is installed.

It needs Debian's `wrk`, and two cores. The table goes to benchmarks/results/dialects.md as well.
"""

from __future__ import annotations

import argparse
import importlib.util
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
BARS = {"tei": None, "openai": BAR, "kserve": BAR, "openai_base64": BAR, "kserve_binary": BAR}


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


def measure(carpool: Program, rounds: int, seconds: int) -> dict[str, list[float]]:
    """CPU microseconds a request, by dialect, in each round."""
    dialects = [NATIVE, *BARS]
    for dialect in dialects:
        send(carpool, dialect, WARM_UP_SECONDS)
    costs: dict[str, list[float]] = {dialect: [] for dialect in dialects}
    for _ in range(rounds):
        for dialect in dialects:
            meter = Meter(carpool.processes, ())
            requests = send(carpool, dialect, seconds)
            costs[dialect].append(meter.stop().proxy / requests * 1e6)
    return costs


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
        f"answers in no time; {CONNECTIONS} connections, {arguments.rounds} alternating rounds: the median",
        "of the times, and of each round's ratio to the native route.",
        "Base64 and binary tensors parse every float, " + how_floats_are_read(),
        "TEI's answers have eight headers of their own.",
        "",
        "| dialect | CPU us | of native | bar |",
        "| --- | --- | --- | --- |",
    ]


def how_floats_are_read() -> str:
    """By what is installed here, which is what carpool is run with."""
    missing = [name for name in ("numpy", "pybase64", "simdjson") if not importlib.util.find_spec(name)]
    return f"without {' and '.join(missing)}." if missing else "with numpy, pybase64 and simdjson."


def rows(costs: dict[str, list[float]]) -> list[str]:
    """The table."""
    native = costs[NATIVE]
    found = [f"| {NATIVE} | {statistics.median(native):.1f} | 1.00 | |"]
    for dialect, bar in BARS.items():
        own = costs[dialect]
        times = statistics.median([mine / theirs for mine, theirs in zip(own, native, strict=True)])
        verdict = "" if bar is None else f"{'met' if times <= bar else 'MISSED'}: {bar}"
        found.append(f"| {dialect} | {statistics.median(own):.1f} | {times:.2f} | {verdict} |")
    return found


if __name__ == "__main__":
    main()
