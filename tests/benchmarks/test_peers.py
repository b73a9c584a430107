import base64
import json
from collections.abc import Iterator

import pytest
from benchmarks.peers.cases import CASES, Question
from benchmarks.peers.loads import Round, Rounds, ahead
from benchmarks.peers.model import Noop, load
from benchmarks.peers.servers import Server, peers, run

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


def test_a_server_sleeps_while_others_are_measured(carpool: Server) -> None:
    """What is asleep answers nobody, and all of it goes on when it is woken."""
    carpool.sleep()
    until(lambda: all(process.status() == "stopped" for process in carpool.processes))
    carpool.wake()
    assert carpool.ask(Question(b'{"data":"four"}')) == 4
    assert len(carpool.processes) == 2
