import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest
from benchmarks.peers.cases import CASES, Question
from benchmarks.peers.figure import TITLES, read_rates
from benchmarks.peers.loads import Round, Rounds, ahead, due
from benchmarks.peers.model import Noop, load
from benchmarks.peers.offline import pace
from benchmarks.peers.run import Report, judge_crowd, judge_throughput, show
from benchmarks.peers.servers import Server, peers, run

from carpool.bench.run import Plan
from tests.support.servers import until


@pytest.fixture(scope="module")
def carpool() -> Iterator[Server]:
    case = CASES["noop"]
    with run(peers(case)[0], case) as server:
        yield server


def rounds(rate: float, p50: float, p99: float, cpu: float) -> Rounds:
    made = Rounds()
    made.all.append(Round(rate, p50, p99, cpu, failed=0.0, complaint=""))
    return made


def test_the_peers_model_says_what_carpools_does() -> None:
    """Every server runs the same model: one gets it as values, the others as the JSON of their answers."""
    assert Noop().predict(["ab", ""]) == [2, 0]
    assert load("noop")(["ab", ""]) == [b'{"result":2}', b'{"result":0}']


def test_every_server_of_a_case_gets_the_same_in_its_own_words() -> None:
    """A picture goes as bytes to some and in base64 to others; a text under the names that each wants."""
    case = CASES["resnet18-jpeg"]
    asked = {peer.dialect: case.questions(peer.dialect)[0] for peer in peers(case)}
    assert asked["image"].media_type == "image/jpeg"
    assert base64.b64decode(json.loads(asked["base64"].body)["data"]) == asked["image"].body
    case = CASES["minilm"]
    native, openai = (json.loads(case.questions(dialect)[0].body) for dialect in ("native", "openai"))
    assert openai["input"] == [native["input"]]


def test_a_peer_is_better_where_more_is_good_or_less_is() -> None:
    """A peer gets credit for a higher rate, and for lower latencies and CPU."""
    ours = rounds(rate=100, p50=10, p99=20, cpu=30)
    assert [what.split(" (")[0] for what in ahead(rounds(120, 12, 15, 25), ours)] == [
        "req/s",
        "p99",
        "CPU per request",
    ]
    assert ahead(rounds(101, 9.9, 19.9, 29.9), ours) == []


@pytest.mark.parametrize(
    ("case", "peers", "expected"),
    [
        (
            "noop",
            {"mosec": 100.0},
            ["FAIL: req/s, of mosec's: 1.20", "PASS: CPU per request, of mosec's: 1.00"],
        ),
        (
            "minilm",
            {"mosec": 110.0, "infinity": 30.0, "litserve + sentence-transformers": 5.0},
            ["PASS: req/s, of infinity's: 4.00", "PASS: req/s, of mosec's: 1.09"],
        ),
        (
            "resnet18",
            {"carpool, OpenVINO": 300.0, "smartbatch": 60.0},
            [
                "PASS: req/s of carpool, of smartbatch's: 2.00",
                "FAIL: req/s of carpool, OpenVINO, of smartbatch's: 5.00",
            ],
        ),
    ],
)
def test_each_case_has_its_bars(case: str, peers: dict[str, float], expected: list[str]) -> None:
    """The rates of 64 users, of which carpool did 120, are compared with whom the case names."""
    report = Report()
    rates = {"carpool": 120.0, **peers}
    judge_throughput(CASES[case], {name: rounds(rate, 1, 1, 1) for name, rate in rates.items()}, report)
    assert [line.removeprefix("- ").split(", at ")[0] for line in report.lines] == expected


def test_a_server_without_a_good_answer_is_no_result() -> None:
    """Its bar says so instead of being left out; rounds that have figures are enough for a median."""
    report, peer = Report(), rounds(0.0, nan, nan, nan)
    judge_throughput(CASES["resnet18"], {"carpool": rounds(9, 1, 1, 1), "smartbatch": peer}, report)
    assert report.lines == ["- NO RESULT: req/s of carpool, of smartbatch's: -, at least 1.50"]
    assert isnan(peer.median(lambda one: one.p50_ms))
    peer.all.append(rounds(5.0, 7.0, 8.0, 9.0).all[0])
    assert peer.median(lambda one: one.p50_ms) == 7.0


def test_what_failed_is_told_by_name() -> None:
    """A peer's own refusals are not taken for the load generator's patience."""
    report, peer = Report(), rounds(5, 1, 1, 1)
    peer.all[0] = replace(peer.all[0], errors={"429 Too Many Requests": 3})
    peer.all.append(replace(peer.all[0], errors={"429 Too Many Requests": 1, "not answered": 2}))
    show(report, "64 users", {"carpool": rounds(9, 1, 1, 1), "smartbatch": peer}, {})
    assert "Failed, smartbatch, in all rounds: 4 x 429 Too Many Requests, 2 x not answered.\n" in report.lines


def test_the_engine_alone_runs_each_input_when_it_comes() -> None:
    """In their order, none before it is due; one that waits for another has the wait in its latency."""
    begun: list[tuple[str, float]] = []

    def run(items: Sequence[Any]) -> list[bytes]:
        begun.append((items[0], time.perf_counter()))
        return [b""]

    moments = due(Plan(1.0, 0.0, rate=4.0, arrivals="constant"))
    assert moments == [0.0, 0.25, 0.5, 0.75]
    started = time.perf_counter()
    told = pace(run, ["a", "b"], [0.0, 0.02, 0.0])
    assert [item for item, _ in begun] == ["a", "b", "a"]
    assert begun[1][1] - started >= 0.02
    assert told["latency_ms"][2] >= 20.0 + told["alone_ms"][2]  # so the wait is not in the latter


def test_the_picture_has_every_server_of_the_committed_tables() -> None:
    """It reads the first table of each, whatever is behind it."""
    for case in TITLES:
        rates = read_rates(CASES[case].table.read_text(encoding="utf-8"))
        assert {peer.name for peer in peers(CASES[case])} >= rates.keys() >= {"carpool", "mosec"}
        assert min(rates.values()) > 0


def test_the_crowds_carpool_waits_as_long_as_its_users() -> None:
    """Who asks for two engines gets both with the flags of the case."""
    for peer in peers(CASES["resnet18"])[:2]:
        assert "--queue-timeout-ms 300000" in " ".join(peer.command)


def test_nobody_in_the_crowd_may_fail() -> None:
    """Not even one of a thousand."""
    report = Report()
    crowd = rounds(1, 1, 1, 1)
    judge_crowd({"carpool": crowd}, report)
    crowd.all[0] = replace(crowd.all[0], failed=0.001)
    judge_crowd({"carpool": crowd}, report)
    assert [line[2:6] for line in report.lines] == ["PASS", "FAIL"]


def test_a_server_sleeps_while_others_are_measured(carpool: Server) -> None:
    """What is asleep answers nobody, and all of it goes on when it is woken."""
    carpool.sleep()
    until(lambda: all(process.status() == "stopped" for process in carpool.processes))
    carpool.wake()
    assert carpool.ask(Question(b'{"data":"four"}')) == 4
    assert len(carpool.processes) == 2
