"""The load generator against servers that do what HTTP allows, and some that it does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from time import perf_counter

import pytest

from carpool.bench.arrivals import arrivals
from carpool.bench.client import ClosedLoop, Load, OpenLoop
from carpool.bench.dialects import Target
from carpool.bench.record import LOST, UNANSWERED, Record
from carpool.errors import Unreachable
from tests.support.upstream import RawUpstream, Script, reply

SECONDS = 0.3


def closed(target: Target) -> Load:
    return ClosedLoop(target, [target.encode("a text")], Record(), users=3)


def constant(target: Target) -> Load:
    times = arrivals("constant", 100.0, 1.0, "a")
    return OpenLoop(target, [target.encode("a text")], Record(), times, most_connections=8)


def measure(make: Callable[[Target], Load], scripts: list[Script], patience: float = 5.0) -> Load:
    async def main() -> Load:
        async with RawUpstream(*scripts) as server:
            load = make(Target(server.url, "tei"))
            await load.prepare()
            await load.run(0.0, SECONDS, patience)
            await server.until_left()
            return load

    return asyncio.run(main())


def say(data: bytes) -> Script:
    """Answer with these bytes."""

    async def script(writer: asyncio.StreamWriter, texts: list[str]) -> None:
        writer.write(data)

    return script


async def hang_up(writer: asyncio.StreamWriter, texts: list[str]) -> None:
    writer.close()


async def last_words(writer: asyncio.StreamWriter, texts: list[str]) -> None:
    writer.write(reply(b"[]", headers="connection: close\r\n"))
    writer.close()


def hang() -> tuple[Script, list[asyncio.Event]]:
    """Never answer."""
    waiting: list[asyncio.Event] = []

    async def script(writer: asyncio.StreamWriter, texts: list[str]) -> None:
        waiting.append(asyncio.Event())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[")

    return script, waiting


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"


@pytest.mark.parametrize("make", [closed, constant])
def test_replies_in_every_form_are_answers(make: Callable[[Target], Load]) -> None:
    """Chunked, after a 100, and on connections that the server closes: nothing is lost, and users come back."""
    scripts: list[Script] = [
        say(CHUNKED),
        say(b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"[]")),
        *[last_words] * 6,
    ]
    load = measure(make, scripts)
    assert set(load.record.status) == {200}
    assert len(load.record) > 12
    assert load.in_flight == 0


@pytest.mark.parametrize("make", [closed, constant])
def test_failures_are_seen_for_what_they_are(make: Callable[[Target], Load]) -> None:
    """A status, a connection that breaks, and bytes that are no HTTP; the load goes on after each."""
    load = measure(make, [say(reply(b"{}", "429 Too Many Requests")), hang_up, say(b"nonsense\r\n\r\n")])
    counted = Counter(load.record.status)
    assert (counted[429], counted[LOST]) == (1, 2)
    assert counted[200] > 5
    assert load.in_flight == 0


def test_an_open_loop_sends_on_time_whatever_became_of_the_others() -> None:
    """Half-answered requests hold their connections; the rest goes over others, until patience ends the run."""
    script, held = hang()
    load = measure(constant, [script] * 4, patience=0.1)
    counted = Counter(load.record.status)
    assert len(held) == 4
    assert counted[UNANSWERED] == 4
    assert counted[200] == len(load.record) - 4 == len(load.record.late) - 4 == 26


def test_an_open_loop_without_a_free_connection_is_late_and_says_so() -> None:
    """Latency counts from when a request was due, so it shows in both."""
    script, _ = hang()
    load = measure(constant, [script] * 8, patience=0.1)
    assert Counter(load.record.status)[UNANSWERED] == len(load.record) == 30
    assert len(load.record.late) == 8


def test_an_open_loop_that_is_behind_at_the_end_sends_all_the_same() -> None:
    """What was due is late, and not left out; what was due after the end is not sent."""

    async def main() -> Load:
        async with RawUpstream() as server:
            load = constant(Target(server.url, "tei"))
            await load.prepare()
            start = perf_counter() - 0.5
            load.until = start + SECONDS
            load.record.restart(start)
            load.start(start)
            load.send_rest()
            async with asyncio.timeout(5):
                while load.in_flight:
                    await asyncio.sleep(0)
            load.close()
            return load

    record = asyncio.run(main()).record
    assert len(record.status) == len(record.late) == 30
    assert min(record.late) > 0.2


def test_a_closed_loop_has_one_request_of_each_user() -> None:
    """Three users who are never answered have sent three requests."""
    script, _ = hang()
    load = measure(closed, [script] * 9, patience=0.05)
    assert list(load.record.status) == [UNANSWERED] * 3


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    """Not a run of failures."""
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        asyncio.run(closed(Target("http://127.0.0.1:1", "tei")).prepare())
