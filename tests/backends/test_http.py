"""The proxy's upstream client against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from carpool.backends.http import TeiBackend, embed_url
from carpool.errors import BackendError, Overloaded
from tests.support.upstream import Upstream


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://tei:8080", "http://tei:8080/embed"),
        ("http://tei:8080/", "http://tei:8080/embed"),
        ("https://tei/custom/path", "https://tei/custom/path"),
        ("http://tei/embed?key=a", "http://tei/embed?key=a"),
    ],
)
def test_a_base_url_means_embed_and_a_path_is_used_as_it_is(given: str, used: str) -> None:
    """So that one setting serves both."""
    assert str(embed_url(given)) == used


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, b'{"error":"Model is overloaded"}', Overloaded, "Model is overloaded"),
        (500, b"<html>", BackendError, "the upstream answered 500"),
        (200, b"not json", BackendError, "not a JSON array"),
        (200, b'["a"]', BackendError, "not an array of vectors"),
    ],
)
def test_what_the_upstream_says_instead_of_vectors(
    upstream: Upstream, status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    """Every such reply is an error with a name."""
    upstream.answer_with = (status, body)

    async def main() -> None:
        backend = TeiBackend(upstream.url)
        await backend.start(lambda: None)
        with pytest.raises(kind, match=words):
            await backend.run([b'"a"'])
        upstream.answer_with = None
        assert len(await backend.run([b'"a"'])) == 1
        await backend.close()

    run(main())


def test_an_upstream_that_does_not_answer_in_time(upstream: Upstream) -> None:
    """It is an error and the connection is not used again."""
    upstream.hold()

    async def main() -> None:
        backend = TeiBackend(upstream.url, timeout=0.2)
        await backend.start(lambda: None)
        with pytest.raises(BackendError, match="did not answer in time"):
            await backend.run([b'"a"'])
        await backend.close()

    run(main())


def test_an_upstream_that_is_not_up_yet_is_found_when_it_is() -> None:
    """The proxy starts before its upstream, says so, and joins by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def main() -> None:
        backend = TeiBackend(f"http://127.0.0.1:{port}")
        await backend.start(lambda: None)
        assert backend.trouble() is not None
        with pytest.raises(BackendError, match="cannot be reached"):
            await backend.run([b'"a"'])
        late = Upstream()
        late.port = port
        with late:
            while backend.trouble() is not None:
                await asyncio.sleep(0.01)
            assert len(await backend.run([b'"a"'])) == 1
        await backend.close()

    run(main())
