"""`@batched` and the facade for threads, as a user writes them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import carpool
from carpool import BackendError, ConfigError
from carpool.testing import run


def test_await_is_one_in_one_out_and_map_is_many() -> None:
    """The decorated function is called with one input and sees a list."""
    seen: list[list[int]] = []

    @carpool.batched
    async def square(numbers: list[int]) -> list[int]:
        seen.append(numbers)
        return [number * number for number in numbers]

    async def main() -> None:
        assert list(await asyncio.gather(square(2), square(3))) == [4, 9]
        assert await square.map([4, 5]) == [16, 25]

    run(main())
    assert seen == [[2, 3], [4, 5]]
    assert square.__name__ == "square"
    assert "adaptive" in repr(square)


def test_settings_are_those_of_policy_and_limits() -> None:
    """A size of two makes three batches of five."""
    sizes: list[int] = []

    @carpool.batched(max_batch_size=2, policy="timeout", max_wait=0.01)
    async def count(items: list[str]) -> list[int]:
        sizes.append(len(items))
        return [len(items)] * len(items)

    async def main() -> None:
        await count.map("abcde")

    run(main())
    assert sizes == [2, 2, 1]


def test_a_setting_out_of_range_is_refused_where_it_is_written() -> None:
    """The error comes at decoration, not at the first call."""
    with pytest.raises(ConfigError, match="max_batch_size 0 is out of range"):
        carpool.batched(max_batch_size=0)


def test_a_sync_function_runs_off_the_event_loop() -> None:
    """A slow plain function must not stop the loop, so it runs in a thread."""
    threads: list[str] = []

    @carpool.batched
    def shout(words: list[str]) -> list[str]:
        threads.append(threading.current_thread().name)
        return [word.upper() for word in words]

    async def main() -> list[str]:
        return list(await asyncio.gather(shout("a"), shout("b")))

    assert asyncio.run(main()) == ["A", "B"]
    assert threads[0] != threading.main_thread().name


def test_each_event_loop_has_its_own_queue() -> None:
    """A function decorated at import works in one `asyncio.run` after another."""

    @carpool.batched
    async def echo(items: list[int]) -> list[int]:
        return items

    async def main(item: int) -> int:
        return await echo(item)

    assert [run(main(1)), run(main(2))] == [1, 2]


@pytest.mark.parametrize("answer", ["ab", {"a": 1, "b": 2}, {1, 2}, None, 7])
def test_a_return_value_without_a_result_per_input_in_order_is_refused(answer: object) -> None:
    """Two letters, keys or set members are not two results."""

    @carpool.batched
    async def wrong(items: list[str]) -> list[str]:
        return answer  # type: ignore[return-value]

    async def main() -> None:
        for error in await asyncio.gather(wrong("x"), wrong("y"), return_exceptions=True):
            assert isinstance(error, BackendError)
            assert f"returned {type(answer).__name__}" in str(error)

    run(main())


def test_threads_share_batches() -> None:
    """Callers that block in eight threads leave as one batch: the policy waits until it is full."""
    sizes: list[int] = []

    @carpool.batched(policy="timeout", max_batch_size=8, max_wait=60)
    def negate(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [-item for item in items]

    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(negate.blocking, range(8))) == [0, -1, -2, -3, -4, -5, -6, -7]
    assert sizes == [8]
    negate.blocking.close()
