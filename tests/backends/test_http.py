"""An upstream as a backend: what its replies mean, and how it is watched."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any

import pytest

from carpool.backends.http import HttpBackend
from carpool.errors import (
    BackendError,
    BatchFailed,
    BatchTooLarge,
    CarpoolError,
    Overloaded,
    Unavailable,
    Unreachable,
)
from carpool.wire.counting import count_tokens
from tests.support.servers import holds_within_a_second
from tests.support.upstream import RawUpstream, Script, Upstream, reply


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def refuses(status: str, body: bytes = b"", headers: str = "") -> Script:
    """Answers so."""

    async def script(writer: asyncio.StreamWriter, texts: list[str]) -> None:
        writer.write(reply(body, status, headers))

    return script


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("429 Too Many Requests", b'{"error":"Model is overloaded"}', Overloaded, "Model is overloaded"),
        ("503 Service Unavailable", b'{"error":"warming up"}', Unavailable, "503: warming up"),
        ("500 Oh", b"<html>", BatchFailed, "500: <html>"),
        ("424 Failed Dependency", b'{"error":"out of memory"}', BatchFailed, "out of memory"),
        ("413 Too Large", b"", BatchTooLarge, "413"),
        ("422 No", b'{"error":"batch size 9 > maximum allowed batch size 4"}', BatchTooLarge, "batch size 9"),
        ("401 Unauthorized", b"", BackendError, "401"),
        ("404 Not Found", b"", BackendError, "404"),
        ("502 Bad Gateway", b"", Unreachable, "502"),
        ("504 Gateway Timeout", b"", Unreachable, "504"),
    ],
)
def test_what_the_upstream_says_instead_of_vectors(
    status: str, body: bytes, kind: type[CarpoolError], words: str
) -> None:
    """Every refusal is an error whose type says what may help; the connection stays."""

    async def main() -> None:
        async with RawUpstream(refuses(status, body)) as upstream:
            backend = HttpBackend(upstream.url)
            await backend.start(lambda: None)
            with pytest.raises(kind, match=words) as caught:
                await backend.run([b'"a"'])
            assert type(caught.value) is kind
            assert len(await backend.run([b'"a"'])) == 1
            assert upstream.connections == 1
            await backend.close()

    run(main())


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7), (formatdate(0), 0), (formatdate(4e9), 86_400), ("9" * 99, 86_400), ("soon", None)],
)
def test_retry_after_is_read(said: str, seconds: int | None) -> None:
    """As a number or as a date; anything else is no word at all."""

    async def main() -> None:
        async with RawUpstream(refuses("503 Busy", headers=f"retry-after: {said}\r\n")) as upstream:
            backend = HttpBackend(upstream.url)
            await backend.start(lambda: None)
            with pytest.raises(Unavailable) as caught:
                await backend.run([b'"a"'])
            assert caught.value.retry_after == seconds
            await backend.close()

    run(main())


def test_a_limit_that_the_upstream_names_is_kept() -> None:
    """It is told to whoever forms batches, and batches that were formed before it was known go in pieces."""
    changes: list[int | None] = []

    async def main() -> None:
        refusal = refuses("422 No", b'{"error":"batch size 5 > maximum allowed batch size 2"}')
        async with RawUpstream(refusal) as upstream:
            backend = HttpBackend(upstream.url)
            await backend.start(lambda: changes.append(backend.capacity.batch_size))
            texts = [b'"a"', b'"b"', b'"c"', b'"d"', b'"e"']
            with pytest.raises(BatchTooLarge):
                await backend.run(texts)
            assert backend.capacity.batch_size == 2
            assert changes[-1] == 2
            assert len(await backend.run(texts)) == 5
            assert upstream.posts[1:] == [["a", "b"], ["c", "d"], ["e"]]
            await backend.close()

    run(main())


@pytest.mark.parametrize(
    ("headers", "tokens"),
    [
        ("X-Compute-Tokens: 60\r\n", 60),
        ("content-encoding: identity\r\nx-compute-tokens:60\r\n", 60),
        ("x-compute-tokens: many\r\n", 6),
        ("", 6),
    ],
)
def test_tokens_that_an_upstream_counts_reach_the_callers(headers: str, tokens: int) -> None:
    """Text Embeddings Inference tells them of a whole batch, in a header."""
    items = [b'"ten bytes!"', b'"a"']

    async def main() -> None:
        async with RawUpstream(refuses("200 OK", b"[[1],[2]]", headers)) as upstream:
            backend = HttpBackend(upstream.url)
            await backend.start(lambda: None)
            assert count_tokens(items, await backend.run(items)) == tokens
            await backend.close()

    run(main())


def test_items_that_are_json_already_travel_as_they_are(upstream: Upstream) -> None:
    """Escapes stay escapes."""

    async def main() -> None:
        backend = HttpBackend(upstream.url)
        await backend.start(lambda: None)
        items = [b'"\\u00e9"', '"é"'.encode(), b'"a"']
        assert len(await backend.run(items)) == 3
        assert upstream.batches == [["é", "é", "a"]]
        await backend.close()

    run(main())


def test_an_upstream_that_does_not_answer_in_time(upstream: Upstream) -> None:
    """It is an error and the connection is not used again."""
    upstream.hold()

    async def main() -> None:
        backend = HttpBackend(upstream.url, timeout=0.2)
        await backend.start(lambda: None)
        with pytest.raises(BackendError, match="did not answer in time"):
            await backend.run([b'"a"'])
        await backend.close()

    run(main())


def test_a_backend_that_is_not_started_says_so() -> None:
    """Instead of failing on something inside."""
    with pytest.raises(BackendError, match="not started"):
        asyncio.run(HttpBackend("http://a").run([b'"a"']))


def test_an_upstream_whose_name_is_not_known() -> None:
    """The system's words alone say so, whoever has asked."""

    async def main() -> None:
        backend = HttpBackend("http://nowhere.invalid")
        await backend.start(lambda: None)
        start = "the upstream cannot be reached at http://nowhere.invalid: "
        while not str(backend.trouble()).startswith(start):
            await asyncio.sleep(0.01)
        assert not set(str(backend.trouble()).removeprefix(start)) & set("[]:")
        await backend.close()

    run(main())


def test_an_upstream_that_is_not_up_yet_is_found_when_it_is() -> None:
    """The proxy starts before its upstream, says so, and joins by itself, within a second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    changes: list[str | None] = []

    async def main() -> None:
        backend = HttpBackend(f"http://127.0.0.1:{port}")
        await backend.start(lambda: changes.append(backend.trouble()))
        assert backend.trouble() is not None
        words = f"the upstream cannot be reached at http://127.0.0.1:{port}: Connection refused"
        while backend.trouble() != words:
            await asyncio.sleep(0.01)
        with pytest.raises(Unreachable, match="cannot be reached") as caught:
            await backend.run([b'"a"'])
        assert str(caught.value) == words
        assert backend.trouble() == words
        upstream = RawUpstream()
        upstream.port = port
        async with upstream:
            assert await holds_within_a_second(lambda: backend.trouble() is None)
            assert len(await backend.run([b'"a"'])) == 1
        assert changes[-1] is None
        with pytest.raises(Unreachable):
            await backend.run([b'"a"'])
        assert "cannot be reached" in str(changes[-1])
        await backend.close()

    run(main())
