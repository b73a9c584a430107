"""carpool as a model server against its peers: the same model, texts and load, in one run.

    python benchmarks/peers/run.py noop|minilm [--rounds 3] [--seconds 5] [--only mosec,litserve] [--quick]

- noop: a short JSON in, a short JSON out, and a model that takes no time: what is left is the server.
- minilm: the embedded model on real sentences of mixed length. Every server runs carpool's own engine, so what
  differs is how batches are made and what the server costs on the same cores.

Loads: 64 users who each ask again at once, then Poisson arrivals at 10, 50 and 90 % of what carpool did there.
Rounds alternate between the servers, of which only one is awake at a time, and medians are compared. A few
answers are first compared with carpool's. CPU is of all processes of a server, for each good answer.

The first run installs the peers into build/peers/ (a few minutes). The table goes to
benchmarks/results/peers_CASE.md as well, with --quick (one round of 2 s) only to the terminal.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.sentences import sentences

from benchmarks.peers import model
from benchmarks.peers.servers import (
    BATCH,
    PEERS,
    ROOT,
    WAIT_MS,
    DidNotStart,
    NotInstalled,
    Server,
    install,
    run_carpool,
    run_peer,
)
from carpool.bench.dialects import Target
from carpool.bench.inputs import generate_texts
from carpool.bench.run import Plan, measure
from carpool.errors import CarpoolError

USERS = 64
SHARES = (0.1, 0.5, 0.9)
PATIENCE = 10.0  # seconds that the last answers of a load are waited for
QUIET_CORES, QUIET_SECONDS = 0.1, 20.0  # a server that still works on what it was sent is waited for, so long
WARM_UP_SECONDS = 1.0
OFFLINE_TEXTS = 512
OFFLINE_WINDOW = 64  # texts that wait are sorted by length within as many as there are users
MARGIN = 1.03  # medians of a few rounds are not known better than that
TOLERANCE = 0.03  # of the answer's length, between carpool's answer and a peer's: batches round differently
BAR_MOSEC, BAR_OFFLINE, BAR_P50 = 1.3, 0.9, 1.1
ADDED_MS = 1.0


@dataclass(frozen=True)
class Round:
    """One load on one server. Without a good answer, latencies are `nan`."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: float  # of what was sent
    complaint: str  # why the load generator does not believe it


class Rounds:
    """All rounds of a load on a server: medians, and what was wrong."""

    def __init__(self) -> None:
        self.all: list[Round] = []

    def median(self, value: Callable[[Round], float]) -> float:
        """The median of something."""
        return statistics.median(map(value, self.all))

    @property
    def complaints(self) -> int:
        """How many of them were not measured well."""
        return sum(bool(one.complaint) for one in self.all)


FIGURES: dict[str, Callable[[Round], float]] = {
    "req/s": lambda one: one.rate,
    "p50": lambda one: one.p50_ms,
    "p99": lambda one: one.p99_ms,
    "CPU per request": lambda one: one.cpu_us,
}


class Report:
    """Lines of Markdown, printed as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """One line."""
        self.lines.append(line)
        print(line, flush=True)

    def judge(self, what: str, value: float, bar: float, most: bool = False) -> None:
        """Whether a bar is met."""
        met = value <= bar if most else value >= bar
        self.say(
            f"- {'PASS' if met else 'FAIL'}: {what}: {value:.2f}, {'at most' if most else 'at least'} {bar:.2f}"
        )


@dataclass(frozen=True)
class Case:
    """What is sent."""

    name: str
    texts: Sequence[str]

    def target(self, server: Server) -> Target:
        """Where and how."""
        return Target(server.url, "native" if server.url.endswith("/embed") else "predict")

    def ask(self, server: Server, text: str) -> Any:
        """One answer."""
        return server.ask({"input" if server.url.endswith("/embed") else "data": text})


def case_of(name: str) -> Case:
    """Texts of 5 to 15 words, or sentences."""
    return Case(name, generate_texts(5, 15) if name == "noop" else sentences(2000))


def put_in_turn(
    case: Case, servers: Sequence[Server], plan: Plan, rounds: int, closed: Mapping[str, Rounds]
) -> dict[str, Rounds]:
    """Rounds of an open loop on those who answered so much with users."""
    able = [
        server
        for server in servers
        if server.name == "carpool" or closed[server.name].median(lambda one: one.rate) >= plan.rate
    ]
    return alternate(case, able, [replace(plan, seed=f"{plan.rate} {number}") for number in range(rounds)])


def put(case: Case, server: Server, plan: Plan) -> Round:
    """A load, on a server that has nothing left to do."""
    target = case.target(server)
    requests = [target.encode(text) for text in case.texts]
    wait_until_idle(server)
    measure(target, requests, replace(plan, duration=WARM_UP_SECONDS))
    wait_until_idle(server)
    before = server.cpu_seconds()
    results = measure(target, requests, plan)
    cpu = server.cpu_seconds() - before
    good = max(1, results.requests - results.failed)
    failed = results.failed / max(1, results.requests)
    latency, complaint = results.latency, results.generator.complaint
    return Round(results.throughput, latency.p50, latency.p99, cpu / good * 1e6, failed, complaint)


def wait_until_idle(server: Server) -> None:
    """Until it has worked off what nobody waits for any more, but not for ever."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        used, started = server.cpu_seconds(), time.monotonic()
        time.sleep(0.3)
        if server.cpu_seconds() - used < QUIET_CORES * (time.monotonic() - started):
            return


def alternate(case: Case, servers: Sequence[Server], plans: Sequence[Plan]) -> dict[str, Rounds]:
    """A round of each plan on every server in turn."""
    rounds = {server.name: Rounds() for server in servers}
    for plan in plans:
        for server in servers:
            server.wake()
            try:
                rounds[server.name].all.append(put(case, server, plan))
            except (CarpoolError, OSError) as error:
                print(f"{server.name}: {error}", file=sys.stderr)
                rounds[server.name].all.append(Round(0.0, math.nan, math.nan, math.nan, 1.0, str(error)))
            finally:
                server.sleep()
    return rounds


def show(report: Report, title: str, rounds: Mapping[str, Rounds], closed: Mapping[str, Rounds]) -> None:
    """A table, and who is better than carpool at what."""
    report.say(f"\n## {title}\n")
    report.say("| server | req/s | p50 ms | p99 ms | CPU us a request | failed | doubtful rounds |")
    report.say("|" + " --- |" * 7)
    for name, of in rounds.items():
        rate, p50, p99, cpu = (of.median(value) for value in FIGURES.values())
        failed = of.median(lambda one: one.failed)
        report.say(
            f"| {name} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cpu:,.0f} | {failed:.1%} "
            f"| {of.complaints} of {len(of.all)} |"
        )
    report.say()
    for name, of in rounds.items():
        if reasons := [one.complaint for one in of.all if one.complaint]:
            report.say(f"Doubtful, {name}: {'; '.join(reasons)}.\n")
    if absent := closed.keys() - rounds.keys():
        report.say(
            f"Not run, as it is more than they answered with {USERS} users: {', '.join(sorted(absent))}.\n"
        )
    better = [
        f"{name} in {', '.join(what)}" for name, of in rounds.items() if (what := ahead(of, rounds["carpool"]))
    ]
    report.say(f"Better than carpool by more than 3 %: {'; '.join(better) or 'none'}.")


def ahead(peer: Rounds, ours: Rounds) -> list[str]:
    """The figures in which a peer is better."""
    found = []
    for name, value in FIGURES.items():
        theirs, mine = peer.median(value), ours.median(value)
        ratio = theirs / mine if name == "req/s" else mine / theirs
        if ratio > MARGIN:
            found.append(f"{name} ({theirs:,.4g} against {mine:,.4g})")
    return found


class Offline:
    """What the engine does without any server, in this process: the measure of case minilm."""

    def __init__(self, case: Case) -> None:
        self._model = model.load(case.name)
        self._texts = case.texts[:OFFLINE_TEXTS]
        self.rates: list[float] = []
        self.alone_ms: list[float] = []

    def run(self) -> None:
        """Sorted windows in batches, then one by one."""
        started = time.perf_counter()
        for texts in _batches(self._texts):
            self._model(texts)
        self.rates.append(len(self._texts) / (time.perf_counter() - started))
        for text in self._texts[:100]:
            started = time.perf_counter()
            self._model([text])
            self.alone_ms.append((time.perf_counter() - started) * 1000)


def _batches(texts: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(texts), OFFLINE_WINDOW):
        window = sorted(texts[start : start + OFFLINE_WINDOW], key=len)
        for place in range(0, len(window), BATCH):
            yield window[place : place + BATCH]


def check_answers(case: Case, servers: Sequence[Server]) -> None:
    """Everyone must say what carpool says: a number, or a vector that is close."""
    for text in case.texts[:5]:
        expected = _vector(case.ask(servers[0], text))
        for server in servers[1:]:
            got = _vector(case.ask(server, text))
            if len(got) != len(expected) or math.dist(got, expected) > TOLERANCE * math.hypot(*expected):
                raise SystemExit(f"{server.name} answers something else than carpool to {text!r}")


def _vector(answer: Any) -> list[float]:
    return answer if isinstance(answer, list) else [float(answer)]


def start_all(case: Case, only: Sequence[str], stack: ExitStack, report: Report) -> list[Server]:
    """carpool, and every peer that can be had; who cannot is said to be missing."""
    servers = [stack.enter_context(run_carpool(case.name))]
    versions: dict[str, str] = {}
    for peer in PEERS:
        if only and peer.name not in only:
            continue
        try:
            versions |= install(peer, case.name)
            servers.append(stack.enter_context(run_peer(peer, case.name)))
        except (NotInstalled, DidNotStart) as error:
            report.say(f"Missing: {peer.name}: {' '.join(str(error).split())}\n")
    report.say(", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n")
    check_answers(case, servers)
    for server in servers:
        server.sleep()
    return servers


def compare(case: Case, rounds: int, seconds: float, only: Sequence[str], report: Report) -> None:
    """All loads, and the bars."""
    with ExitStack() as stack:
        servers = start_all(case, only, stack, report)
        offline = Offline(case) if case.name != "noop" else None
        plan = Plan(seconds, 0.0, patience=PATIENCE)
        closed: dict[str, Rounds] = {server.name: Rounds() for server in servers}
        for _ in range(rounds):
            if offline:
                offline.run()
            for name, of in alternate(case, servers, [replace(plan, users=USERS)]).items():
                closed[name].all += of.all
        show(report, f"{USERS} users", closed, closed)
        saturation = closed["carpool"].median(lambda one: one.rate)
        light = closed
        for share in SHARES:
            at_share = put_in_turn(case, servers, replace(plan, rate=saturation * share), rounds, closed)
            show(report, f"{share:.0%} of carpool's {saturation:,.0f} requests/s, Poisson", at_share, closed)
            light = at_share if share == SHARES[0] else light
    judge(report, closed, light, offline)


def judge(report: Report, closed: dict[str, Rounds], light: dict[str, Rounds], offline: Offline | None) -> None:
    """The bars."""
    report.say("\n## Bars\n")
    ours = closed["carpool"]
    rate = ours.median(lambda one: one.rate)
    peers = {name: of for name, of in closed.items() if name != "carpool"}
    if offline is None and "mosec" in peers:
        report.judge("req/s, of mosec's", rate / peers["mosec"].median(lambda one: one.rate), BAR_MOSEC)
    for name, of in peers.items() if offline is None else ():
        cost = ours.median(lambda one: one.cpu_us) / of.median(lambda one: one.cpu_us)
        report.judge(f"CPU per request, of {name}'s", cost, 1.0, most=True)
    if offline:
        throughput, alone = statistics.median(offline.rates), statistics.median(offline.alone_ms)
        report.say(
            f"- Offline, batches of {BATCH} sorted within {OFFLINE_WINDOW}: {throughput:,.0f} texts/s; "
            f"a text alone: {alone:.2f} ms"
        )
        report.judge("req/s, of the engine's own offline", rate / throughput, BAR_OFFLINE)
        for name, of in peers.items():
            report.judge(f"req/s, of {name}'s", rate / of.median(lambda one: one.rate), 1.0)
        p50 = light["carpool"].median(lambda one: one.p50_ms)
        report.judge("p50 at 10 % load, ms", p50, BAR_P50 * alone + ADDED_MS, most=True)


def describe(case: Case, rounds: int, seconds: float, report: Report) -> None:
    """What was measured, on what, how."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    report.say(f"# carpool as a model server against its peers: {case.name}\n")
    report.say(
        f"`python {' '.join(sys.orig_argv[1:])}`, {datetime.date.today()}, commit {git.stdout.strip()}\n"
    )
    report.say(
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores shared with the load generator, "
        f"load average {os.getloadavg()[0]:.1f} before; Linux {platform.release()}, "
        f"Python {platform.python_version()}. "
        f"Medians of {rounds} rounds of {seconds:g} s. Batches of at most {BATCH}; "
        f"peers may wait {WAIT_MS[case.name]} ms for more.\n"
    )


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(WAIT_MS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="", help="peers, with commas between; all if it is not given")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, to see that it works; no file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is to outlive this, least of all asleep
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    case, report = case_of(options.case), Report()
    describe(case, rounds, seconds, report)
    compare(case, rounds, seconds, [name for name in options.only.split(",") if name], report)
    if not options.quick:
        path = ROOT / "benchmarks" / "results" / f"peers_{case.name}.md"
        path.write_text("\n".join(report.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
