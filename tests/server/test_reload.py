"""Upstreams come and go while `carpool serve` runs, and no request notices."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.servers import RunningServer, carpool_serve, until
from tests.support.upstream import Upstream, vector

CALLERS = 16


class Operator:
    """Writes the settings file of a running server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "carpool.toml"
        self.server: RunningServer

    def write(self, *upstreams: Upstream, more: str = "") -> None:
        self.file.write_text(f"inference_url = {json.dumps([each.url for each in upstreams])}\n{more}")

    def reload(self, *upstreams: Upstream, more: str = "") -> None:
        self.write(*upstreams, more=more)
        self.server.process.send_signal(signal.SIGHUP)

    def serves(self, *upstreams: Upstream) -> bool:
        """Whether these are all there are, and well."""
        known = self.health()
        return known == {each.url: None for each in upstreams}

    def health(self) -> dict[str, str | None]:
        reply = self.server.client.get("/health").json()
        return {each["url"]: each.get("reason") for each in reply["upstreams"]}

    def logged(self, words: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.server.log.read_text().splitlines())
        return [line for line in lines if line["event"] == words]

    def metric(self, name: str) -> dict[str, float]:
        """The lines of a metric, by its labels."""
        lines = self.server.client.get("/metrics").text.splitlines()
        found = (line.rsplit(" ", 1) for line in lines if line.startswith(f"{name}{{"))
        return {key.removeprefix(name): float(value) for key, value in found}


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


async def under_load(url: str, happens: Callable[[], Awaitable[None]]) -> int:
    """Check every answer while something happens; how many there were."""
    is_over = False

    async def caller(client: httpx.AsyncClient, number: int) -> int:
        count = 0
        while not is_over or not count:
            text = f"caller {number}, request {count}"
            reply = await client.post("/embed", json={"input": text})
            assert (reply.status_code, reply.json()) == (200, {"embedding": vector(text)})
            count += 1
        return count

    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        callers = [asyncio.create_task(caller(client, number)) for number in range(CALLERS)]
        await happens()
        is_over = True
        return sum(await asyncio.gather(*callers))


def test_no_request_is_lost_while_upstreams_come_and_go(operator: Operator) -> None:
    """By SIGHUP: a second one, then only that one, then another, under load; each change serves at once."""
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(Upstream()) for _ in range(3))
        operator.write(first)
        operator.server = stack.enter_context(carpool_serve(operator.folder, ["--config", str(operator.file)]))

        async def come_and_go() -> None:
            for now in [(first, second), (second,), (second, third), (third,), (first,), (third, first)]:
                operator.reload(*now)
                served = [len(each.batches) for each in now]
                await asyncio.to_thread(until, partial(operator.serves, *now))
                await asyncio.to_thread(until, partial(all_served, now, served))
                others = [each for each in (first, second, third) if each not in now]
                before = [len(each.batches) for each in others]
                enough = [len(each.batches) + 20 for each in now]
                await asyncio.to_thread(until, partial(all_served, now, enough))
                assert [len(each.batches) for each in others] == before

        assert asyncio.run(under_load(operator.server.url, come_and_go)) > CALLERS
        assert len(operator.logged("upstream added")) == 4
        until(lambda: len(operator.logged("upstream removed")) == 3)
        shown = operator.metric("carpool_replica_batches_total")
        assert all('outcome="ok"' in key for key in shown)
        urls = {each.url for each in (first, third)}
        assert {url for url in (first.url, second.url, third.url) if any(url in key for key in shown)} == urls
        assert operator.server.stop() == 0
        assert not operator.logged("batch failed")


def all_served(upstreams: tuple[Upstream, ...], before: list[int]) -> bool:
    return all(len(each.batches) > count for each, count in zip(upstreams, before, strict=True))


def test_an_upstream_that_is_removed_finishes_what_it_has(operator: Operator, upstream: Upstream) -> None:
    """Its callers get their answers; meanwhile it says so in /health and others are served elsewhere."""
    with Upstream() as other, ThreadPoolExecutor(1) as pool:
        operator.write(upstream)
        with carpool_serve(operator.folder, ["--config", str(operator.file)]) as server:
            operator.server = server
            until(lambda: operator.serves(upstream))
            upstream.hold()
            waiting = pool.submit(server.client.post, "/embed", json={"input": "a"})
            assert upstream.arrived.acquire(timeout=30)
            operator.reload(other)
            until(lambda: operator.health() == {upstream.url: "it is being removed", other.url: None})
            assert server.client.post("/embed", json={"input": "b"}).json() == {"embedding": vector("b")}
            assert {server.client.get("/elsewhere").status_code for _ in range(3)} == {404}
            assert other.batches == [["b"]]
            upstream.let_go()
            assert waiting.result(30).json() == {"embedding": vector("a")}
            until(lambda: operator.serves(other))


def test_a_change_of_the_file_is_noticed(operator: Operator, upstream: Upstream) -> None:
    """Without a signal, and what cannot change is named."""
    with Upstream() as other:
        operator.write(upstream, more="upstream_api_key = 'a'")
        with carpool_serve(operator.folder, ["--config", str(operator.file)]) as server:
            operator.server = server
            more = "max_batch_size = 8\nupstream_api_key = 'hush'\n[server]\nport = 1"
            operator.write(upstream, other, more=more)
            until(lambda: operator.serves(upstream, other))
            (warning,) = operator.logged("changed settings need a restart")
            assert warning["settings"] == ["max_batch_size", "upstream_api_key"]  # the port is a flag's
            assert "hush" not in server.log.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inference_url = ", "not a TOML file"),
        ('inference_url = ["http://b", "c"]', 'inference_url = "c" is not a URL'),
    ],
)
def test_a_bad_file_is_logged_and_changes_nothing(
    operator: Operator, upstream: Upstream, text: str, words: str
) -> None:
    """The server goes on as it was, and takes the next good one."""
    operator.write(upstream)
    with carpool_serve(operator.folder, ["--config", str(operator.file)]) as server, Upstream() as other:
        operator.server = server
        until(lambda: operator.serves(upstream))
        operator.file.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: bool(operator.logged("the settings were not reloaded")))
        assert words in operator.logged("the settings were not reloaded")[0]["error"]
        assert operator.serves(upstream)
        operator.reload(other)
        until(lambda: operator.serves(other))


def test_without_any_upstream_in_the_file_those_there_are_stay(operator: Operator, upstream: Upstream) -> None:
    """A proxy does not become a model server, or a server of nothing, while it runs."""
    operator.write(upstream)
    with carpool_serve(operator.folder, ["--config", str(operator.file)]) as server:
        operator.server = server
        operator.reload()
        until(lambda: bool(operator.logged("changed settings need a restart")))
        assert operator.logged("changed settings need a restart")[0]["settings"] == ["inference_url"]
        until(lambda: operator.serves(upstream))
