"""The proxy's HTTP client against an upstream that does what HTTP allows, and what it does not."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from carpool.backends.http import HttpBackend
from carpool.errors import BackendError, Unreachable
from tests.support.upstream import RawUpstream, Script, honest, reply, vector

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on either of the loops that carpool runs on; none may take longer than a minute."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 60))

    return run


@asynccontextmanager
async def talking(*scripts: Script, **options: Any) -> AsyncIterator[tuple[RawUpstream, HttpBackend]]:
    """A raw upstream and a backend that talks to it."""
    async with RawUpstream(*scripts) as upstream:
        backend = HttpBackend(upstream.url, upstream="tei", **options)
        await backend.start(lambda: None)
        try:
            yield upstream, backend
        finally:
            await backend.close()


def says(*pieces: bytes, close: bool = False, reset: bool = False) -> Script:
    """Answers with these bytes, a turn of the loop between the pieces, then ends the connection or does not."""

    async def script(writer: asyncio.StreamWriter, texts: list[str]) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if reset:
            writer.transport.abort()
        elif close:
            writer.close()

    return script


async def is_honest(backend: HttpBackend, *texts: str) -> bool:
    """Whether each text gets its own vector."""
    results = await backend.run([json.dumps(text).encode() for text in texts])
    return [json.loads(bytes(result)) for result in results] == [vector(text) for text in texts]


def chunked(*pieces: bytes) -> bytes:
    """A reply's bytes in chunks."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


ONE = b"[[0.5,1]]"


@pytest.mark.parametrize(
    "pieces",
    [
        [reply(ONE)],
        [b"HTT", b"P/1.1 200 OK\r\nContent-Len", b"gth: 9\r\n\r", b"\n", b"[[0.5", b",1]]"],
        [*(bytes([byte]) for byte in reply(ONE))],
        [b"HTTP/1.1 200\r\nContent-Length:9\r\n\r\n" + ONE],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n" + ONE],
        [reply(ONE, headers="connection: keep-alive\r\nvary: Accept-Encoding\r\n")],
        [reply(ONE, headers="x-large: " + "x" * 20_000 + "\r\n")],
        [b"HTTP/1.1 100 Continue\r\n\r\n", reply(ONE)],
        [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + reply(ONE)],
        [chunked(ONE)],
        [chunked(b"[[", b"0.5,", b"1]", b"]")],
        [*(bytes([byte]) for byte in chunked(b"[[0.", b"5,1]]"))],
        [reply(gzip.compress(ONE), headers="content-encoding: gzip\r\n")],
        [reply(zlib.compress(ONE), headers="Content-Encoding: deflate\r\n")],
        [chunked(ONE).replace(b"\r\n", b"\r\ncontent-encoding: identity\r\n", 1)],
    ],
)
def test_every_way_to_say_a_vector_is_understood(run: Run, pieces: list[bytes]) -> None:
    """Slowly, in chunks, compressed, after an interim reply: it is the same bytes."""

    async def main() -> None:
        async with talking(says(*pieces)) as (_, backend):
            (result,) = await backend.run([b'"a"'])
            assert bytes(result) == b"[0.5,1]"
            assert await is_honest(backend, "next")

    run(main())


def test_a_reply_that_ends_with_its_connection(run: Run) -> None:
    """HTTP allows to tell no length; the next batch gets a connection of its own."""

    async def main() -> None:
        async with talking(says(b"HTTP/1.1 200 OK\r\n\r\n" + ONE, close=True)) as (upstream, backend):
            assert len(await backend.run([b'"a"'])) == 1
            assert await is_honest(backend, "next")
            assert upstream.connections == 2

    run(main())


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (says(close=True), Unreachable),
        (says(reset=True), Unreachable),
        (says(b"HTTP/1.1 200 OK\r\ncontent-le", close=True), Unreachable),
        (says(reply(ONE, length=10), close=True), Unreachable),
        (says(reply(ONE, length=10), reset=True), Unreachable),
        (says(chunked(ONE)[:-5], close=True), Unreachable),
        (says(b"HTTP/1.1 200 OK\r\n\r\n[[1]", close=True), BackendError),
        (says(reply(ONE, headers="x-folded: a\r\n b\r\n")), BackendError),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), BackendError),
        (
            says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            BackendError,
        ),
        (says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-length: 8\r\n\r\n" + ONE), BackendError),
        (says(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n" + ONE), BackendError),
        (says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), BackendError),
        (says(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000), BackendError),
        (says(reply(b"x", headers="content-encoding: br\r\n")), BackendError),
        (says(reply(b"xx", headers="content-encoding: gzip\r\n")), BackendError),
        (says(reply(gzip.compress(ONE)[:-9], headers="content-encoding: gzip\r\n")), BackendError),
        (says(reply(b"")), BackendError),
        (says(reply(b"<html>")), BackendError),
        (says(reply(b"[[1],[2]]")), BackendError),
        (says(reply(b"[]")), BackendError),
        (says(reply(ONE + b" x")), BackendError),
        (says(b"HTTP/1.1 204 No Content\r\n\r\n"), BackendError),
        (says(reply(b"", "302 Found", headers="location: /elsewhere\r\n")), BackendError),
    ],
)
def test_what_is_no_answer_is_an_error_and_the_next_batch_is_answered(
    run: Run, script: Script, kind: type[BackendError]
) -> None:
    """Truncated, garbled or of the wrong count: it reaches nobody, and spoils nothing that comes after."""

    async def main() -> None:
        async with talking(script) as (upstream, backend):
            with pytest.raises(BackendError) as caught:
                await backend.run([b'"a"'])
            assert isinstance(caught.value, Unreachable) == (kind is Unreachable)
            assert await is_honest(backend, "next", "and the one after")
            assert len(upstream.posts) == 2

    run(main())


def test_an_idle_connection_that_was_closed_costs_nothing(run: Run) -> None:
    """Keep-alive ends whenever the upstream likes; a batch that meets the end goes on a new connection."""

    async def main() -> None:
        async with talking() as (upstream, backend):
            for number in range(3):
                assert await is_honest(backend, f"text {number}")
                assert upstream.connections == number + 1
                upstream.hang_up()

    run(main())


def test_a_request_that_dies_with_a_kept_connection_is_sent_once_more(run: Run) -> None:
    """The upstream closed it when the request was on its way; on a new connection it must answer or fail."""

    async def main() -> None:
        async with talking() as (upstream, backend):
            assert await is_honest(backend, "first")
            upstream.scripts = [says(close=True)]
            assert await is_honest(backend, "again")
            assert upstream.posts == [["first"], ["again"], ["again"]]
            upstream.scripts = [says(close=True), says(reset=True)]
            with pytest.raises(Unreachable):
                await backend.run([b'"never"'])
            assert upstream.posts[3:] == [["never"], ["never"]]
            upstream.scripts = [says(), says(b"H", close=True)]
            with pytest.raises(Unreachable):
                await asyncio.gather(backend.run([b'"kept"']), asyncio.wait_for(backend.run([b'"x"']), 0.2))

    run(main())


@pytest.mark.parametrize(
    "extra", [b"x", honest(["b"]), reply(b"[[9]]"), b"HTTP/1.1 500 Oh\r\n\r\n", b"\r\n" * 3000]
)
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_what_follows_a_reply_is_nobodys(run: Run, extra: bytes, in_one_piece: bool) -> None:
    """A second reply to one request must not become the next one's."""

    async def main() -> None:
        first = honest(["a"])
        script = says(first + extra) if in_one_piece else says(first, extra)
        async with talking(script) as (upstream, backend):
            assert await is_honest(backend, "a")
            if not in_one_piece:
                await upstream.until_left()  # by a client that got more than it asked for
            assert await is_honest(backend, "b")
            assert upstream.connections == 2

    run(main())


def test_connections_are_kept_and_carry_one_request_at_a_time(run: Run) -> None:
    """Ten batches at once need ten connections, ten batches in turn need one."""

    async def main() -> None:
        async with talking() as (upstream, backend):
            for number in range(10):
                assert await is_honest(backend, str(number))
            assert upstream.connections == 1
            assert all(await asyncio.gather(*(is_honest(backend, str(number)) for number in range(10))))
            assert upstream.connections <= 10

    run(main())


def test_memory_is_read_into_again_only_when_nobody_has_a_slice_of_it(run: Run) -> None:
    """Replies come over one connection, shorter and longer; a vector that is kept stays what it was."""
    sizes = [1, 7, 3, 7, 7, 2, 40, 1, 1]

    async def main() -> None:
        async with talking() as (upstream, backend):
            kept, buffers = [], set()
            for turn, size in enumerate(sizes * 3):
                texts = [f"{turn}-{number}" for number in range(size)]
                results = await backend.run([json.dumps(text).encode() for text in texts])
                assert [json.loads(bytes(result)) for result in results] == [vector(text) for text in texts]
                if turn % 4 == 0:
                    kept.append((texts[-1], results[-1]))
                buffers.add(id(memoryview(results[0]).obj))
                del results
            assert all(json.loads(bytes(result)) == vector(text) for text, result in kept)
            assert len(kept) <= len(buffers) <= len(kept) + 1
            assert upstream.connections == 1

    run(main())


def test_a_late_reply_is_nobodys(run: Run) -> None:
    """Whoever is cancelled takes its connection along; the answer that still comes finds nobody."""

    async def main() -> None:
        gate = asyncio.Event()

        async def late(writer: asyncio.StreamWriter, texts: list[str]) -> None:
            await gate.wait()
            writer.write(honest(texts))

        async with talking(late, late) as (upstream, backend):
            batches = [asyncio.create_task(backend.run([b'"given up %d"' % number])) for number in range(2)]
            while len(upstream.posts) < 2:
                await asyncio.sleep(0.001)
            batches[0].cancel()
            assert await is_honest(backend, "next")
            gate.set()
            assert json.loads(bytes((await batches[1])[0])) == vector("given up 1")
            assert await is_honest(backend, "after that")
            assert batches[0].cancelled()

    run(main())


def test_an_answer_before_the_question_is_refused(run: Run) -> None:
    """A 200 that comes while the request is still being sent answers something else; a refusal may be early."""

    async def main() -> None:
        async with talking() as (upstream, backend):
            upstream.early = [reply(ONE), reply(b'{"error":"too much"}', "413 Payload Too Large")]
            text = b'"%b"' % (b"x" * (32 * 1024**2))
            with pytest.raises(BackendError, match="answered before"):
                await backend.run([text])
            with pytest.raises(BackendError, match="413: too much"):
                await backend.run([text])
            assert await is_honest(backend, "next")

    run(main())


def test_a_reply_over_the_bound_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is announced: by its length, in chunks, or compressed."""
    monkeypatch.setattr("carpool.backends.http.backend._LARGEST_REPLY", 1000)
    long = b"[[" + b"1," * 1000 + b"1]]"
    scripts = [
        says(reply(long[:100], length=10**12)),
        says(chunked(long)),
        says(reply(gzip.compress(long), headers="content-encoding: gzip\r\n")),
    ]

    async def main() -> None:
        async with talking(*scripts) as (_, backend):
            for _ in range(3):
                with pytest.raises(BackendError, match="too large: allowed: 1000 bytes"):
                    await backend.run([b'"a"'])
            assert await is_honest(backend, "next")

    run(main())


def test_a_reply_that_drips_is_bounded_in_time(run: Run) -> None:
    """Bytes that keep coming are no reason to wait for ever."""

    async def main() -> None:
        drip = says(reply(ONE, length=10**6), *[b"1"] * 1000)
        async with talking(drip, timeout=0.2) as (_, backend):
            with pytest.raises(BackendError, match="did not answer in time"):
                await backend.run([b'"a"'])
            assert await is_honest(backend, "next")

    run(main())
