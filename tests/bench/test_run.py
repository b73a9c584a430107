"""A run against a server whose answers are the test's own."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from carpool.bench.dialects import Target
from carpool.bench.run import TRIES, Plan, measure, run
from carpool.bench.summary import Results
from carpool.errors import CarpoolError
from tests.bench.test_summary import record_of, results_of
from tests.support.upstream import InThread


class Telling(InThread):
    """It tells how many requests it has had, as batches of one; of the second question only after the third."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0
        self.asked = 0
        self._third: asyncio.Event

    def _runner(self) -> web.BaseRunner:
        self._third = asyncio.Event()
        app = web.Application()
        app.router.add_post("/embed", self._embed)
        app.router.add_get("/metrics", self._metrics)
        return web.AppRunner(app)

    async def _embed(self, request: web.Request) -> web.Response:
        self.served += 1
        return web.Response(body=b'{"embedding":[1]}')

    async def _metrics(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.asked == 2:
            await self._third.wait()
        elif self.asked == 3:
            self._third.set()
        name, count = "carpool_batch_items", self.served
        return web.Response(
            text=f"# TYPE {name} histogram\n"
            + f'{name}_bucket{{le="1"}} {count}\n{name}_bucket{{le="+Inf"}} {count}\n'
            + f"{name}_count {count}\n{name}_sum {count}\n"
        )


def test_a_server_that_tells_of_the_warm_up_too_late_has_batches_all_the_same() -> None:
    """It stalls with its machine: then those of the warm-up count too."""
    with Telling() as server:
        target = Target(f"{server.url}/embed")
        request = target.request(b'{"input":"a"}', "application/json")
        results = measure(target, [request], Plan(0.3, 0.1, users=1))
    assert server.asked == 3
    assert results.average_batch == 1
    assert results.batch_sizes == {"1": server.served, "+Inf": 0}


@pytest.mark.parametrize(
    ("latencies", "reason"), [([5000.0], "all answers came after the end"), ([], "no answer at all")]
)
def test_a_run_in_which_nothing_was_answered_is_tried_again(
    latencies: list[float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is one of several; where it stays so, the error says whether there were answers."""
    bad, good = results_of(record_of(latencies), 1.0), results_of(record_of([10.0]), 1.0)
    assert run_twice(monkeypatch, bad, good) is good
    with pytest.raises(CarpoolError, match=reason):
        run_twice(monkeypatch, bad, bad)


def test_a_run_in_which_all_were_refused_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """That was no bad moment: it would be refused again, for as long."""
    with pytest.raises(CarpoolError, match="503"):
        run_twice(monkeypatch, results_of(record_of([10.0], [503]), 1.0))


def run_twice(monkeypatch: pytest.MonkeyPatch, *outcomes: Results) -> Results:
    """At most, with these outcomes."""
    runs = iter(outcomes)
    monkeypatch.setattr("carpool.bench.run.measure", lambda *rest: next(runs))
    return run(Target("http://h"), [b""], Plan(1.0, 0.0), tries=TRIES)
