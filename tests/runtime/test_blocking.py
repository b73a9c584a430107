"""The facade for threads, as a user calls it: whatever happens, no thread is left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import carpool
from carpool import BackendError, Unavailable
from carpool.errors import ShuttingDown
from tests.support.programs import printed_by


def test_the_blocking_facade_maps_and_raises_and_closes() -> None:
    """Errors cross the thread as they are; after `close` it says so."""

    def invert(numbers: list[int]) -> list[float]:
        return [1 / number for number in numbers]

    with carpool.BlockingBatcher(invert) as batcher:
        assert batcher(4) == 0.25
        assert batcher.map([1, 2]) == [1.0, 0.5]
        with pytest.raises(BackendError, match="ZeroDivisionError"):
            batcher(0)
    with pytest.raises(Unavailable, match="closed"):
        batcher(1)
    batcher.close()


def test_a_blocking_caller_can_give_up() -> None:
    """`timeout=` raises TimeoutError and the next caller is served."""
    release = threading.Event()

    def slow(items: list[str]) -> list[str]:
        release.wait(10)
        return items

    with carpool.BlockingBatcher(slow) as batcher:
        with pytest.raises(TimeoutError):
            batcher("a", timeout=0.01)
        release.set()
        assert batcher("b", timeout=10) == "b"


@pytest.mark.parametrize("is_async", [True, False])
def test_a_function_that_waits_for_itself_is_told_so(is_async: bool) -> None:
    """In its thread, or on the loop; the next is served."""

    def nested(items: list[str]) -> list[str]:
        return [batcher(item) for item in items] if "itself" in items else items

    async def nested_too(items: list[str]) -> list[str]:
        return nested(items)

    batcher: carpool.BlockingBatcher[str, str] = carpool.BlockingBatcher(nested_too if is_async else nested)
    with batcher:
        with pytest.raises(BackendError, match="is called by its own function"):
            batcher("itself", timeout=10)
        assert batcher("a", timeout=10) == "a"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_function_that_exits_does_not_end_the_thread_of_the_blocking_facade(
    error: BaseException, is_async: bool
) -> None:
    """Its caller gets an error and the next call is served."""

    def exits(items: list[str]) -> list[str]:
        if "bad" in items:
            raise error
        return items

    async def exits_too(items: list[str]) -> list[str]:
        return exits(items)

    batcher = carpool.BlockingBatcher(exits_too if is_async else exits)
    with pytest.raises(BackendError, match=type(error).__name__):
        batcher("bad", timeout=10)
    assert batcher("a", timeout=10) == "a"
    batcher.close()


def test_a_call_that_meets_close_is_answered_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has seen that the batcher is open; then it must not end before the call is in."""
    batcher: carpool.BlockingBatcher[str, str] = carpool.BlockingBatcher(lambda items: items)
    assert batcher("first") == "first"
    is_between, is_closed = threading.Event(), threading.Event()
    hand_over = asyncio.run_coroutine_threadsafe

    def close() -> None:
        is_between.wait(10)
        batcher.close()
        is_closed.set()

    def hand_over_late(coroutine: Coroutine[Any, Any, str], loop: asyncio.AbstractEventLoop) -> Future[str]:
        if threading.current_thread() is not closing:
            is_between.set()
            is_closed.wait(0.1)
        return hand_over(coroutine, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", hand_over_late)
    closing = threading.Thread(target=close)
    closing.start()
    assert batcher("second", timeout=10) == "second"
    closing.join(10)
    with pytest.raises(ShuttingDown):
        batcher("third", timeout=10)


def test_calls_and_close_in_any_order() -> None:
    """Nobody hangs, and nobody gets an error of the event loop behind it."""

    def call(batcher: carpool.BlockingBatcher[int, int]) -> str:
        try:
            return str(batcher(1, timeout=10))
        except ShuttingDown:
            return "closed"

    with ThreadPoolExecutor(4) as callers:
        for _ in range(100):
            batcher: carpool.BlockingBatcher[int, int] = carpool.BlockingBatcher(lambda items: items)
            answers = [callers.submit(call, batcher) for _ in range(3)]
            closing = callers.submit(batcher.close)
            assert {answer.result(20) for answer in answers} <= {"1", "closed"}
            closing.result(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_caller_outlives_the_loop() -> None:
    """A function may stop the loop that it runs on; then whoever waits is told, and whoever comes."""

    async def stops(items: list[int]) -> list[int]:
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()
        return items

    batcher = carpool.BlockingBatcher(stops)
    for item in range(2):
        with pytest.raises(ShuttingDown):
            batcher(item, timeout=10)
    batcher.close()


def test_a_process_that_was_forked_has_a_batcher_of_its_own() -> None:
    """The thread of its parent did not come along; the parent's goes on."""
    printed = printed_by("""
        import os, warnings, carpool

        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons, about forks beside threads

        @carpool.batched
        def double(numbers):
            return [2 * number for number in numbers]

        print(double.blocking(1), flush=True)
        if child := os.fork():
            os.waitpid(child, 0)
            print(double.blocking(3))
        else:
            print(double.blocking(2, timeout=10))
        double.blocking.close()
    """)
    assert printed.split() == ["2", "4", "6"]
