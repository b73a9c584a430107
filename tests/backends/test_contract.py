"""The contract that every backend passes, whatever runs the batch."""

from __future__ import annotations

import asyncio
import json
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

MakeBackend = Callable[[], Backend[str, Any]]


@pytest.fixture(params=["async function", "function", "process", "http", "fake"])
def make_backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, upstream: Upstream
) -> MakeBackend:
    """A backend of each kind; each gives every item a result that tells whose it is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def in_loop(items: list[str]) -> list[str]:
        return items

    kinds: dict[str, MakeBackend] = {
        "async function": lambda: CallableBackend(in_loop),
        "function": lambda: CallableBackend(lambda items: items),
        "process": lambda: ProcessBackend("toy_model:load", {}),
        "http": lambda: HttpBackend(upstream.url),
        "fake": FakeBackend,
    }
    return kinds[request.param]


def is_result_of(item: str, result: Any) -> bool:
    if isinstance(result, str):
        return result == item
    value = json.loads(bytes(result))
    return bool(value[0] == item or value == vector(item))


@asynccontextmanager
async def started(make: MakeBackend) -> AsyncIterator[Backend[str, Any]]:
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
        items = [f'{number} "quoted"\n日本 \\ \x00' for number in range(size)]
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
                answers = await asyncio.gather(*(backend.run([item, item * 2]) for item in "abc"))
                for item, results in zip("abc", answers, strict=True):
                    assert is_result_of(item, results[0])
                    assert is_result_of(item * 2, results[1])

    asyncio.run(main())


def test_its_life(make_backend: MakeBackend) -> None:
    """Well once it has run a batch; closing twice does no harm."""

    async def main() -> None:
        async with started(make_backend) as backend:
            await backend.run(["a"])
            assert backend.trouble() is None
            assert backend.capacity.in_flight is None or backend.capacity.in_flight >= 1
        await backend.close()

    asyncio.run(main())


def test_a_cancelled_batch_does_not_spoil_the_next(make_backend: MakeBackend) -> None:
    """The driver cancels a batch that takes too long; its late answer must not become the next one's."""

    async def main() -> None:
        async with started(make_backend) as backend:
            await backend.run(["warm"])
            task = asyncio.ensure_future(backend.run(["cancelled"]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            results = await backend.run(["next"])
            assert is_result_of("next", results[0])

    asyncio.run(asyncio.wait_for(main(), 60))
