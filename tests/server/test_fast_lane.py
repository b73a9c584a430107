"""The fast lane itself: whatever the segments, every request gets its own reply, whole and in order."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import weakref
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.in_process import KEEP_ALIVE, Echo, lane
from tests.server.raw import post, post_chunked, text
from tests.support.clients import hang_up

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
SECONDS = 60


def run(coroutine: Coroutine[Any, Any, None], new_loop: Callable[[], Any] = uvloop.new_event_loop) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(coroutine, SECONDS))


def run_without_collector(coroutine: Coroutine[Any, Any, None], new_loop: Callable[[], Any]) -> None:
    """So that what has a cycle stays, as it would for long in a server."""
    gc.collect()
    gc.disable()
    try:
        run(coroutine, new_loop)
    finally:
        gc.enable()


async def turns_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split()[1])
    (length,) = (int(line[16:]) for line in head.split("\r\n") if line.startswith("content-length: "))
    return status, await reader.readexactly(length)


KINDS: dict[str, tuple[Callable[[str], bytes], int]] = {
    "a head that comes again and again": (lambda word: post(text(word)), 200),
    "a head of its own": (lambda word: post(text(word), f"x-trace: {word}"), 200),
    "with other fields": (lambda word: post(b'{"x":1,"input":"' + word.encode() + b'"}'), 200),
    "chunked": (lambda word: post_chunked(*(b"%c" % byte for byte in text(word))), 200),
    "predict": (lambda word: post(b'{"data":"' + word.encode() + b'"}', path="/predict"), 200),
    "blank": (lambda word: post(text("")), 400),
    "not JSON": (lambda word: post(word.encode()), 400),
    "not UTF-8": (lambda word: post(b'{"input":"\xff' + word.encode() + b'"}'), 400),
    "too large": (lambda word: post(text(word * 300)), 413),
    "too large in chunks": (lambda word: post_chunked(text(word * 150), text(word * 150)), 413),
    "of another type": (lambda word: post(text(word), "content-type: text/plain"), 415),
    "by ASGI, of any path": (lambda word: post(text(word), path="/nowhere"), 404),
    "by ASGI, a query": (lambda word: post(text(word), path="/embed?x=1"), 200),
    "by ASGI, to read": (lambda word: b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n", 200),
}

requests = st.tuples(st.sampled_from(sorted(KINDS)), st.text("abc", min_size=4, max_size=8))


def is_answer_to(kind: str, word: str, status: int, body: bytes) -> bool:
    if status != KINDS[kind][1]:
        return False
    if status != 200 or kind == "by ASGI, to read":
        return "error" in json.loads(body) or b"healthy" in body
    answer = json.loads(body)
    return bool(answer.get("embedding", answer.get("result")) == [word])


@settings(max_examples=150, deadline=None)
@given(
    conversation=st.lists(requests, min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=30),
    clean_cuts=st.sets(st.sampled_from(["starts", "bodies"])),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    all_at_once=st.booleans(),
)
def test_however_requests_are_cut_each_gets_its_own_reply_in_its_turn(
    conversation: list[tuple[str, str]],
    cuts: list[float],
    clean_cuts: set[str],
    pauses: list[int],
    all_at_once: bool,
) -> None:
    """Known heads and new ones, either lane, refused and answered, pipelined in any number, cut anywhere."""
    stream = b"".join(KINDS[kind][0](word) for kind, word in conversation)
    starts = {found.start() for found in re.finditer(rb"(POST|GET) /", stream)}
    bodies = {found.end() for found in re.finditer(rb"\r\n\r\n", stream)}
    clean = (starts if "starts" in clean_cuts else set()) | (bodies if "bodies" in clean_cuts else set())
    places = sorted({0, len(stream), *clean, *(round(cut * len(stream)) for cut in cuts)})
    segments = [stream[start:end] for start, end in pairwise(places)]

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await turns_until(lambda: bool(server.connections))
            (connection,) = server.connections

            async def send() -> None:
                # Handed to the protocol as a transport would do it, since a socket would join them.
                for number, segment in enumerate(segments):
                    if not all_at_once:
                        for _ in range(pauses[number % len(pauses)]):
                            await asyncio.sleep(0)
                    await turns_until(lambda: not connection.flow.read_paused)
                    connection.data_received(segment)

            sending = asyncio.create_task(send())
            for kind, word in conversation:
                status, body = await read_reply(reader)
                assert is_answer_to(kind, word, status, body), (kind, word, status, body)
            await sending
            assert server.service.is_idle
            writer.close()

    run(main())


def test_a_body_that_comes_byte_by_byte_takes_little_more_than_its_bytes() -> None:
    """It is kept in few pieces, and comes out whole, also where large ones follow."""
    word = "".join(map(str, range(12_000)))
    body = text(word)
    small, large = body[:40_000], [body[40_000:45_000], body[45_000:]]
    request = post_chunked(*(small[at : at + 1] for at in range(len(small))), *large)

    async def main() -> None:
        async with lane(Echo(), limit=100_000) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await turns_until(lambda: bool(server.connections))
            (connection,) = server.connections
            connection.data_received(request[:-1])
            assert len(connection._serving.pieces) <= 4
            connection.data_received(request[-1:])
            status, answer = await read_reply(reader)
            assert is_answer_to("chunked", word, status, answer)
            writer.close()

    run(main())


@LOOPS
def test_a_client_that_does_not_read_pins_little_and_is_not_worked_for(new_loop: Callable[[], Any]) -> None:
    """Once its replies do not leave, its requests wait; when it reads again it gets every one of them."""
    count, padding = 3000, 20_000

    async def main() -> None:
        async with lane(Echo(padding)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**16)
            sending = asyncio.create_task(send(writer))
            await turns_until(lambda: bool(server.connections))
            (connection,) = server.connections
            await turns_until(lambda: connection.flow.write_paused)
            await turns_until(lambda: connection.flow.read_paused and server.service.is_idle)
            run_by_then = server.backend.run_items
            assert run_by_then < count
            # The transport's own high-water mark, and the reply that went over it.
            assert connection.transport.get_write_buffer_size() <= 65536 + padding + 1000
            for _ in range(1000):
                await asyncio.sleep(0)
            assert server.backend.run_items == run_by_then
            for number in range(count):
                status, body = await read_reply(reader)
                assert status == 200
                assert json.loads(body)["embedding"][0] == f"word {number}"
            await sending
            writer.close()

    async def send(writer: asyncio.StreamWriter) -> None:
        for number in range(count):
            writer.write(post(text(f"word {number}")))
            await writer.drain()

    run(main(), new_loop)


@LOOPS
def test_an_idle_connection_is_closed_and_a_busy_one_is_not(new_loop: Callable[[], Any]) -> None:
    """The keep-alive timer counts from the last reply, whichever lane wrote it."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(3):
                for request in (post(text("word")), post(text("word"), path="/nowhere")):
                    writer.write(request)
                    await read_reply(reader)
                    server.clock.advance(KEEP_ALIVE - 1)
            (connection,) = server.connections
            server.clock.advance(0.9)
            assert not connection.transport.is_closing()
            server.clock.advance(0.2)
            assert await reader.read() == b""
            writer.close()

    run(main(), new_loop)


@LOOPS
@pytest.mark.parametrize("part", [10, -4])
def test_a_request_that_is_half_sent_when_the_server_stops(new_loop: Callable[[], Any], part: int) -> None:
    """With its head read it is answered, and the connection closed; before that, closed at once."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            request = post(text("word"))
            for _ in range(2):
                writer.write(request)
                await read_reply(reader)
            (connection,) = server.connections
            connection.data_received(request[:part])
            connection.shutdown()
            if part < 0:
                connection.data_received(request[part:])
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"connection: close" in head
            rest = await reader.read()
            assert rest == (b'{"embedding":["word"]}' if part < 0 else b"")
            writer.close()

    run(main(), new_loop)


@LOOPS
def test_a_client_that_does_not_read_and_asks_one_by_one_pins_no_more(new_loop: Callable[[], Any]) -> None:
    """Also with a head that is known."""
    padding = 20_000

    async def main() -> None:
        async with lane(Echo(padding)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**16)
            await turns_until(lambda: bool(server.connections))
            (connection,) = server.connections
            sent = 0
            while not connection.flow.read_paused:
                connection.data_received(post(text("word")))
                sent += 1
                await turns_until(lambda: server.service.is_idle)
            assert connection.transport.get_write_buffer_size() <= 65536 + padding + 1000
            for _ in range(sent):
                assert (await read_reply(reader))[0] == 200
            writer.close()

    run(main(), new_loop)


@LOOPS
def test_a_reply_may_take_longer_than_a_connection_may_be_idle(new_loop: Callable[[], Any]) -> None:
    """The timer of an earlier reply does not end the request that came before it rang."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(2):
                writer.write(post(text("word")))
                assert (await read_reply(reader))[0] == 200
            server.backend.gate.clear()
            writer.write(post(text("word")))
            await turns_until(lambda: not server.service.is_idle)
            server.clock.advance(10 * KEEP_ALIVE)
            server.backend.gate.set()
            assert (await read_reply(reader))[0] == 200
            writer.close()

    run(main(), new_loop)


@LOOPS
@pytest.mark.parametrize("how", ["closed", "reset", "reset while it waits"])
def test_a_connection_that_is_gone_is_freed_at_once(new_loop: Callable[[], Any], how: str) -> None:
    """The server searches for garbage seldom: whatever has a cycle would pile up until then."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for request in (post(text("word")), post(text("word"), path="/nowhere"), post(text("word"))):
                writer.write(request)
                await read_reply(reader)
            if how == "reset while it waits":
                server.backend.gate.clear()
                writer.write(post(text("next")))
                await turns_until(lambda: not server.service.is_idle)
            (connection,) = map(weakref.ref, server.connections)
            if how == "closed":
                writer.close()
            else:
                hang_up(writer, reset=True)
            await turns_until(lambda: not server.connections)
            server.backend.gate.set()
            await turns_until(lambda: connection() is None)

    run_without_collector(main(), new_loop)


KNOWN = post(text("word"))
TOO_LARGE = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"


@pytest.mark.parametrize(
    ("segments", "statuses"),
    [
        # A part of a head, three bytes longer than the body before it: what `find` says when it finds nothing.
        ((KNOWN, KNOWN[:19], KNOWN[19:], b"POS" + text("word")), [200, 200]),
        ((b"\r\n\r\n" + KNOWN, b"\r\n\r\n" + text("word")), [200, 400]),
        # The body of a request that is refused already, which looks like requests.
        (
            (KNOWN, TOO_LARGE, *([KNOWN] * (100_000 // len(KNOWN))), b"x" * (100_000 % len(KNOWN)), KNOWN),
            [200, 413, 200],
        ),
        ((KNOWN, post_chunked(KNOWN)[:-5], b"0\r\n\r\n", KNOWN), [200, 400, 200]),
    ],
)
def test_what_is_known_by_its_bytes_is_a_head_where_one_can_stand(
    segments: tuple[bytes, ...], statuses: list[int]
) -> None:
    """And nothing else: not the part of one, not what is within a body."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await turns_until(lambda: bool(server.connections))
            (connection,) = server.connections
            for segment in segments:
                connection.data_received(segment)
                await turns_until(lambda: server.service.is_idle)
            assert [(await read_reply(reader))[0] for _ in statuses] == statuses
            assert server.backend.run_items == statuses.count(200)
            writer.close()

    run(main())


@LOOPS
@pytest.mark.parametrize("before", [KNOWN, post(text("word"), "x-trace: 1")], ids=["known", "new"])
def test_what_cannot_be_parsed_does_not_overtake_an_answer(new_loop: Callable[[], Any], before: bytes) -> None:
    """Whichever way the head of the request in front of it was read."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(KNOWN)
            assert (await read_reply(reader))[0] == 200
            (connection,) = server.connections
            server.backend.gate.clear()
            connection.data_received(before)
            connection.data_received(b"\x00garbage")
            server.backend.gate.set()
            assert [(await read_reply(reader))[0] for _ in range(2)] == [200, 400]
            assert await reader.read() == b""
            writer.close()

    run(main(), new_loop)


def test_a_head_is_known_whatever_the_length_of_its_body() -> None:
    """As long as it is a length that may be served, and the only one."""

    async def main() -> None:
        async with lane(Echo(), limit=1000) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(post(text("word")))
            assert (await read_reply(reader))[0] == 200
            (connection,) = server.connections

            def known_length(digits: str) -> int | None:
                head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>" + digits.encode(), post(text("word")))
                known = connection.lane.recognise(head[: head.index(b"\r\n\r\n") + 4])
                return None if known is None else known.length

            assert [known_length(digits) for digits in ("1", "0", "999", "1000")] == [1, 0, 999, 1000]
            strange = (
                "1001",
                "9" * 30,
                "-1",
                "+1",
                "1_0",
                "",
                " 1",
                "1 ",
                "0x1",
                "1\r\ncontent-length: 2",
                "1\n2",
            )
            assert not any(known_length(digits) for digits in strange)
            writer.close()

    run(main())


def test_heads_are_forgotten_before_they_fill_the_memory() -> None:
    """However many different ones there are; and long ones are not kept at all."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for number in range(3000):
                writer.write(post(text("word"), f"x-trace: {number}"))
                assert (await read_reply(reader))[0] == 200
            (connection,) = server.connections
            assert len(connection.lane.heads) == 3000 - 2048
            for number, is_known in ((0, False), (2999, True)):  # also where another length is all that is new
                head = post(text("another"), f"x-trace: {number}").removesuffix(text("another"))
                assert (connection.lane.recognise(head) is not None) == is_known
            writer.write(post(text("word"), "x-trace: " + "x" * 5000))
            assert (await read_reply(reader))[0] == 200
            assert max(map(len, connection.lane.heads)) < 2500
            writer.close()

    run(main())


def test_the_beginnings_of_replies_are_forgotten_before_they_fill_the_memory() -> None:
    """In the words of TEI nearly every one is another: its headers tell how long the text was."""

    async def main() -> None:
        async with lane(Echo()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for length in range(1, 401):
                writer.write(post(b'{"inputs":"' + b"x" * length + b'"}'))
                assert await read_reply(reader) == (200, b'[["' + b"x" * length + b'"]]')
            (connection,) = server.connections
            assert len(connection.lane._frames) == 400 - 257
            writer.close()

    run(main())


@LOOPS
def test_a_large_body_that_waits_for_its_turn_is_not_read_to_its_end(new_loop: Callable[[], Any]) -> None:
    """Its client is not read from until then, and what is kept of it is little."""
    word = "x" * 1_000_000
    large = post(text(word))

    async def main() -> None:
        async with lane(Echo(), limit=len(large)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=len(large))
            server.backend.gate.clear()
            writer.write(post(text("word")))
            await turns_until(lambda: not server.service.is_idle)
            (connection,) = server.connections
            is_paused = []
            for part in (large[:60_000], large[60_000:70_000]):
                connection.data_received(part)
                is_paused.append(connection.flow.read_paused)
            assert is_paused == [False, True]
            writer.write(large[70_000:])
            server.backend.gate.set()
            assert await read_reply(reader) == (200, b'{"embedding":["word"]}')
            assert is_answer_to("chunked", word, *await read_reply(reader))
            writer.close()

    run(main(), new_loop)
