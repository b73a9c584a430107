"""The contract that every backend passes, whatever runs the batch."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from carpool.backends.base import Backend
from carpool.backends.callable import CallableBackend
from carpool.backends.http import HttpBackend
from carpool.backends.process.parent import ProcessBackend
from carpool.testing import FakeBackend
from tests.support.upstream import Upstream, vector

MakeBackend = Callable[[], Backend[bytes, Any]]


@pytest.fixture(params=["async function", "function", "process", "http", "fake"])
def make_backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, upstream: Upstream
) -> MakeBackend:
    """A backend of each kind; each gives every item a result that tells whose it is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)

    async def in_loop(items: list[bytes]) -> list[bytes]:
        return items

    kinds: dict[str, MakeBackend] = {
        "async function": lambda: CallableBackend(in_loop),
        "function": lambda: CallableBackend(lambda items: items),
        "process": lambda: ProcessBackend("toy_model:load", {}),
        "http": lambda: HttpBackend(upstream.url),
        "fake": FakeBackend,
    }
    return kinds[request.param]


def in_json(text: str) -> bytes:
    return json.dumps(text).encode()


def is_result_of(item: bytes, result: Any) -> bool:
    text, value = json.loads(item), json.loads(bytes(result))
    return bool(value == text or value[0] == text or value == vector(text))


@asynccontextmanager
async def started(make: MakeBackend) -> AsyncIterator[Backend[bytes, Any]]:
    backend = make()
    await backend.start(lambda: None)
    try:
        yield backend
    finally:
        await backend.close()


@pytest.mark.parametrize("size", [1, 2, 33])
def test_one_result_per_item_in_their_order(make_backend: MakeBackend, size: int) -> None:
    """Including texts that need escaping on the way."""

    async def main() -> None:
        items = [in_json(f'{number} "quoted"\n日本 \\ \x00') for number in range(size)]
        async with started(make_backend) as backend:
            results = await backend.run(items)
            assert len(results) == size
            assert all(map(is_result_of, items, results))

    asyncio.run(main())


def test_batch_after_batch(make_backend: MakeBackend) -> None:
    """A backend is used many times, and at once where it says it can."""

    async def main() -> None:
        async with started(make_backend) as backend:
            for _ in range(3):
                answers = await asyncio.gather(
                    *(backend.run([in_json(text), in_json(text * 2)]) for text in "abc")
                )
                for text, results in zip("abc", answers, strict=True):
                    assert is_result_of(in_json(text), results[0])
                    assert is_result_of(in_json(text * 2), results[1])

    asyncio.run(main())


def test_its_life(make_backend: MakeBackend) -> None:
    """Well once it has run a batch; closing twice does no harm."""

    async def main() -> None:
        async with started(make_backend) as backend:
            await backend.run([b'"a"'])
            assert backend.trouble() is None
            assert backend.capacity.in_flight is None or backend.capacity.in_flight >= 1
        await backend.close()

    asyncio.run(main())


def test_a_cancelled_batch_does_not_spoil_the_next(make_backend: MakeBackend) -> None:
    """The driver cancels a batch that takes too long; its late answer must not become the next one's."""

    async def main() -> None:
        async with started(make_backend) as backend:
            await backend.run([b'"warm"'])
            task = asyncio.ensure_future(backend.run([b'"cancelled"']))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            results = await backend.run([b'"next"'])
            assert is_result_of(b'"next"', results[0])

    asyncio.run(asyncio.wait_for(main(), 60))
