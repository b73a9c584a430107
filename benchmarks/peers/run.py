"""carpool as a model server against its peers: the same model, inputs and load, in one run.

    python benchmarks/peers/run.py CASE [--rounds N] [--seconds S] [--only mosec,litserve] [--quick]

- noop: a short JSON in, a short JSON out, and a model that takes no time: what is left is the server.
- minilm: the embedded model on real sentences of mixed length. Most servers run carpool's own engine, so what
  differs is how batches are made and what the server costs on the same cores; three run sentence-transformers.
- resnet18: 3 x 224 x 224 numbers as JSON, 3 MB each. All run the same network on torch, carpool also on
  OpenVINO.
- resnet18-jpeg: the same with JPEGs.

Loads: 64 users who each ask again at once, then Poisson arrivals at 10, 50 and 90 % of what carpool did there
(with resnet18 on carpool alone, as the peers take seconds for each answer); with both of resnet18 also 1,000
users, for none of whom carpool may fail. They wait for up to a minute, for which carpool is started with
`--queue-timeout-ms 300000` there; otherwise it has its defaults. Rounds alternate between the servers, of which
only one is awake at a time, and medians are compared; length and number of the rounds are the case's own. A few
answers are first compared with carpool's. CPU is of all processes of a server, for each good answer.

`build/compiled/bin/python benchmarks/peers/run.py noop` (after `make test-compiled`, with psutil installed
there) measures carpool with its compiled core, as it does with minilm; both of resnet18 have the plain one, in
an environment with torch.

The first run installs the peers into build/peers/ (a few minutes). The table goes to
benchmarks/results/peers_CASE.md as well, with --quick (one round of 2 s) only to the terminal.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.machine import describe_machine, describe_run
from benchmarks.peers.cases import BATCH, CASES, CROWD_SECONDS, Case
from benchmarks.peers.loads import FIGURES, USERS, Rounds, ahead, alternate, due
from benchmarks.peers.servers import (
    ENGINES,
    PATHS,
    ROOT,
    DidNotStart,
    NotInstalled,
    Peer,
    Server,
    install,
    peers,
    run,
)
from carpool.bench.run import Plan
from carpool.core import scheduler

SHARES = (0.1, 0.5, 0.9)
CROWD = Plan(10.0, 0.0, users=1000, patience=CROWD_SECONDS)
# Of the answer's length, between carpool's answer and another's: batches round differently, and the embedded
# model's weights are of 8 bits where those of sentence-transformers are full.
TOLERANCE, TOLERANCE_OF_WEIGHTS = 0.03, 0.1
CHECKED = 5  # answers
BAR_MOSEC, BAR_OFFLINE, BAR_P50 = 1.3, 0.9, 1.1
BAR_SENTENCE_TRANSFORMERS = 3.0
BARS_SMARTBATCH = {"carpool": 1.5, "carpool, OpenVINO": 6.0}  # with 3 MB of JSON a request; else to be ahead
ADDED_MS = 1.0


class Report:
    """Lines of Markdown, printed as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """One line."""
        self.lines.append(line)
        print(line, flush=True)

    def judge(self, what: str, value: float, bar: float, most: bool = False) -> None:
        """Whether a bar is met; `nan` is that there was no good answer to judge by."""
        met = value <= bar if most else value >= bar
        verdict = "NO RESULT" if math.isnan(value) else "PASS" if met else "FAIL"
        self.say(f"- {verdict}: {what}: {_number(value)}, {'at most' if most else 'at least'} {bar:.2f}")


class Offline:
    """What an engine does without any server, in a process of its own that only works while it is asked."""

    def __init__(self, peer: Peer, case: Case, stack: ExitStack, options: str = "") -> None:
        script = ROOT / "benchmarks" / "peers" / "offline.py"
        self._process = stack.enter_context(
            subprocess.Popen(
                [
                    peer.python,
                    script,
                    case.name,
                    ENGINES[peer.name] if peer.environment else "auto",
                    options,
                ],
                env=os.environ | {"PYTHONPATH": PATHS},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(self._process.terminate)
        self._measured: list[dict[str, Any]] = []
        self._paced: list[dict[str, Any]] = []

    def run(self, _: Plan) -> None:
        """Batches out of sorted windows, then one by one, as fast as it can."""
        self._measured.append(self._ask([]))

    def pace(self, plan: Plan) -> None:
        """An open loop on the engine alone, one input after another."""
        self._paced.append(self._ask(due(plan)))

    def paced(self, figure: str) -> float:
        """Milliseconds in those loops: `alone_ms` an input takes; in `latency_ms` is the wait for others."""
        return float(statistics.median(statistics.median(one[figure]) for one in self._paced))

    def _ask(self, moments: Sequence[float]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(moments).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @property
    def rate(self) -> float:
        """Inputs a second in batches."""
        return float(statistics.median(one["rate"] for one in self._measured))

    @property
    def alone_ms(self) -> float:
        """What an input takes alone, one after another without a pause: of each the median, and of those."""
        runs = [one["alone_ms"] for one in self._measured]
        return float(statistics.median(statistics.median(times) for times in zip(*runs, strict=True)))


def start_all(case: Case, only: Sequence[str], stack: ExitStack, report: Report) -> list[Server]:
    """Ours, and every peer that can be had; who cannot is said to be missing. All are asleep then."""
    servers: list[Server] = []
    versions: dict[str, str] = {}
    for peer in peers(case):
        if only and peer.name not in (*ENGINES, *only):
            continue
        try:
            versions |= install(peer)
            servers.append(stack.enter_context(run(peer, case)))
        except (NotInstalled, DidNotStart) as error:
            if peer.name == "carpool":
                raise SystemExit(f"nothing to compare with: {error}") from None
            report.say(f"Missing: {peer.name}: {' '.join(str(error).split())}\n")
    report.say(", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".\n")
    check_answers(case, servers)
    for server in servers:
        server.sleep()
    return servers


def check_answers(case: Case, servers: Sequence[Server]) -> None:
    """Everyone must say what carpool says: a number, or a vector that is close."""
    first, *others = servers
    expected = [_vector(first.ask(one)) for one in case.questions(first.dialect)[:CHECKED]]
    for server in others:
        tolerance = TOLERANCE if server.model == case.model else TOLERANCE_OF_WEIGHTS
        for question, right in zip(case.questions(server.dialect), expected, strict=False):
            given = _vector(server.ask(question))
            if len(given) != len(right) or math.dist(given, right) > tolerance * math.hypot(*right):
                raise SystemExit(
                    f"{server.name} answers something else than carpool to {question.body[:100]!r}"
                )


def _vector(answer: Any) -> list[float]:
    return answer if isinstance(answer, list) else [float(answer)]


def compare(case: Case, only: Sequence[str], report: Report) -> None:
    """All loads, and the bars."""
    with ExitStack() as stack:
        servers = start_all(case, only, stack, report)
        offline, packed = start_offline(case, servers, stack)
        plan = Plan(case.seconds, 0.0, patience=case.patience)
        engines = [*offline.values(), *packed.values()]
        users = [replace(plan, users=USERS)] * case.rounds
        closed = alternate(case, servers, users, [engine.run for engine in engines])
        show(report, f"{USERS} users", closed, closed)
        saturation = closed["carpool"].median(lambda one: one.rate)
        loads = [open_loops(plan, saturation * share, case.rounds) for share in SHARES]
        loops = []
        for share, plans in zip(SHARES, loads, strict=True):
            alone = [engine.pace for engine in engines] if share == SHARES[0] else []
            loops.append(alternate(case, able(case, servers, plans[0].rate, closed), plans, alone))
            show(report, f"{share:.0%} of carpool's {saturation:,.0f} requests/s, Poisson", loops[-1], closed)
        report.say("\n## Bars\n")
        judge_throughput(case, closed, report)
        for name, engine in offline.items():
            if case.model == "minilm":
                judge_offline(closed[name], engine, report)
            judge_light_load(name, loops[0][name], engine, report)
            if name in packed:
                say_packed(name, packed[name], report)
        if case.model == "resnet18":
            ours = [server for server in servers if server.name in ENGINES]
            judge_crowd(alternate(case, ours, [CROWD]), report)


def start_offline(
    case: Case, servers: Sequence[Server], stack: ExitStack
) -> tuple[dict[str, Offline], dict[str, Offline]]:
    """An engine for each carpool, where there is one that takes time; and torch's with the weights it packs.

    A bar is a multiple of the model's own time, so it is not lower for what carpool makes faster.
    """
    if case.model == "noop":
        return {}, {}
    running = {server.name for server in servers}
    ours = [peer for peer in peers(case) if peer.name in ENGINES and peer.name in running]
    if case.model != "resnet18":
        return {peer.name: Offline(peer, case, stack) for peer in ours}, {}
    own = {peer.name: Offline(peer, case, stack, "&pack=false") for peer in ours}
    return own, {peer.name: Offline(peer, case, stack) for peer in ours if ENGINES[peer.name] == "torch"}


def open_loops(plan: Plan, rate: float, rounds: int) -> list[Plan]:
    """Rounds of a rate, each with other arrivals."""
    return [replace(plan, rate=rate, seed=f"{rate} {number}") for number in range(rounds)]


def able(case: Case, servers: Sequence[Server], rate: float, closed: Mapping[str, Rounds]) -> list[Server]:
    """Those who answered so much with users, and are asked at other loads at all."""
    asked = [server for server in servers if case.peers_in_open_loops or server.name in ENGINES]
    return [
        server
        for server in asked
        if server.name == "carpool" or closed[server.name].median(lambda one: one.rate) >= rate
    ]


def judge_throughput(case: Case, closed: Mapping[str, Rounds], report: Report) -> None:
    """The bars between servers."""
    rates = {name: of.median(lambda one: one.rate) for name, of in closed.items()}
    theirs = {name: rate for name, rate in rates.items() if name not in ENGINES}
    if case.model == "noop":
        if "mosec" in theirs:
            report.judge("req/s, of mosec's", _ratio(rates["carpool"], theirs["mosec"]), BAR_MOSEC)
        for name in theirs:
            ours, cost = (closed[each].median(lambda one: one.cpu_us) for each in ("carpool", name))
            report.judge(f"CPU per request, of {name}'s", ours / cost, 1.0, most=True)
    elif case.model == "minilm":
        foreign = {peer.name for peer in peers(case) if peer.model != case.model}
        others = {name: rate for name, rate in theirs.items() if name in foreign}
        if others:
            best = max(others, key=others.__getitem__)
            ratio = _ratio(rates["carpool"], others[best])
            report.judge(f"req/s, of {best}'s", ratio, BAR_SENTENCE_TRANSFORMERS)
        for name in (name for name in theirs if name not in others):
            report.judge(f"req/s, of {name}'s", _ratio(rates["carpool"], theirs[name]), 1.0)
    elif "smartbatch" in theirs:
        for name in (name for name in ENGINES if name in rates):
            ratio = _ratio(rates[name], theirs["smartbatch"])
            bar = BARS_SMARTBATCH[name] if case.name == "resnet18" else 1.0
            report.judge(f"req/s of {name}, of smartbatch's", ratio, bar)


def _ratio(ours: float, theirs: float) -> float:
    """`nan` where a peer gave no good answer."""
    return ours / theirs if theirs else math.nan


def judge_offline(closed: Rounds, engine: Offline, report: Report) -> None:
    """What serving costs beside the engine alone, when there is much to do."""
    rate = closed.median(lambda one: one.rate)
    report.judge("req/s, of the engine's own offline", rate / engine.rate, BAR_OFFLINE)


def judge_light_load(name: str, light: Rounds, engine: Offline, report: Report) -> None:
    """What serving costs when there is little to do, where a model's own time is that at the same load."""
    alone, least = engine.paced("alone_ms"), engine.paced("latency_ms")
    report.say(f"- Offline, {name}: {engine.rate:,.0f}/s in batches of {BATCH}")
    report.say(
        f"- One alone: {engine.alone_ms:.2f} ms one after another, {alone:.2f} ms with this load's pauses"
    )
    report.say(f"- The same inputs at the same times, one by one on the engine alone: p50 {least:.2f} ms")
    p50 = light.median(lambda one: one.p50_ms)
    report.judge(f"p50 of {name} at 10 % load, ms", p50, BAR_P50 * alone + ADDED_MS, most=True)


def say_packed(name: str, engine: Offline, report: Report) -> None:
    """What the bar would be, were it a multiple of what the engine takes as carpool changes it."""
    alone = engine.paced("alone_ms")
    allowed = BAR_P50 * alone + ADDED_MS
    report.say(
        f"- Of {name}, with the weights packed: {alone:.2f} ms alone with this load's pauses, from which "
        f"{allowed:.2f} would follow; no bar"
    )


def judge_crowd(crowd: Mapping[str, Rounds], report: Report) -> None:
    """Nothing may fail."""
    for name, of in crowd.items():
        what = f"failed of {name} with {CROWD.users} users, %{f' ({_kinds(of)})' if of.errors else ''}"
        report.judge(what, of.median(lambda one: one.failed) * 100, 0, most=True)


def _kinds(of: Rounds) -> str:
    """What failed how often, in all rounds."""
    return ", ".join(f"{count} x {error}" for error, count in of.errors.items())


def show(report: Report, title: str, rounds: Mapping[str, Rounds], closed: Mapping[str, Rounds]) -> None:
    """A table, and who is better than carpool at what."""
    report.say(f"\n## {title}\n")
    report.say("| server | req/s | p50 ms | p99 ms | CPU us a request | failed | doubtful rounds |")
    report.say("|" + " --- |" * 7)
    for name, of in rounds.items():
        rate, p50, p99, cpu = (of.median(value) for value in FIGURES.values())
        failed = of.median(lambda one: one.failed)
        report.say(
            f"| {name} | {_number(rate, 1 if rate < 100 else 0)} | {_number(p50)} | {_number(p99)} "
            f"| {_number(cpu, 0)} | {failed:.1%} | {of.complaints} of {len(of.all)} |"
        )
    report.say()
    for name, of in rounds.items():
        if of.errors:
            report.say(f"Failed, {name}, in all rounds: {_kinds(of)}.\n")
        if reasons := [one.complaint for one in of.all if one.complaint]:
            report.say(f"Doubtful, {name}: {'; '.join(reasons)}.\n")
    if absent := closed.keys() - rounds.keys():
        report.say(f"Not run: {', '.join(sorted(absent))}.\n")
    better = [
        f"{name} in {', '.join(what)}"
        for name, of in rounds.items()
        if name not in ENGINES and (what := ahead(of, rounds["carpool"]))
    ]
    report.say(f"Better than carpool by more than 3 %: {'; '.join(better) or 'none'}.")


def _number(value: float, digits: int = 2) -> str:
    """A dash where there was no good answer."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def describe(case: Case, report: Report) -> None:
    """What was measured, on what, how."""
    report.say(f"# carpool as a model server against its peers: {case.name}\n")
    report.say(f"{describe_run()}\n")
    report.say(
        f"{describe_machine()}. {_how_carpool_runs(case)} The load generator shares the cores. "
        f"Medians of {case.rounds} rounds of {case.seconds:g} s. "
        f"Batches of at most {BATCH}; peers may wait {case.wait_ms} ms for more. {_differences(case)}\n"
    )


def _differences(case: Case) -> str:
    """What is not as in every case."""
    own = f"carpool has `{' '.join(case.flags)}`, for the 1,000 users. " if case.flags else ""
    if case.peers_in_open_loops:
        return f"{own}Open loops are for those who answered as much with {USERS} users."
    return f"{own}Open loops are for carpool alone, as each answer takes the peers seconds."


def _how_carpool_runs(case: Case) -> str:
    is_of_this_python = not peers(case)[0].environment
    is_compiled = is_of_this_python and not str(scheduler.__file__).endswith(".py")
    return "carpool with its compiled core." if is_compiled else "carpool in plain Python."


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rounds", type=int, help="the case's own if it is not given, as with --seconds")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", default="", help="peers, with commas between; all if it is not given")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, to see that it works; no file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is to outlive this, least of all asleep
    case, report = CASES[options.case], Report()
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    case = replace(case, rounds=rounds or case.rounds, seconds=seconds or case.seconds)
    describe(case, report)
    compare(case, [name for name in options.only.split(",") if name], report)
    if not options.quick:
        case.table.write_text("\n".join(report.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
