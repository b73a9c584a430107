"""Python functions as backends: whatever they do in their thread, nobody else has to suffer for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from carpool import BackendError, Batcher, BatchFailed, Limits
from tests.support.programs import printed_by


def run_in_time(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What is tested here used to hang."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def raises_over_bad(error: BaseException) -> Callable[[list[str]], list[str]]:
    def function(items: list[str]) -> list[str]:
        if "bad" in items:
            raise error
        return items

    return function


@pytest.mark.parametrize(
    "error",
    [StopIteration(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_function_raises_is_the_error_of_the_bad_input(error: BaseException) -> None:
    """Also what would end a program, or what a future refuses to carry; its companions are answered."""

    async def main() -> list[Any]:
        async with Batcher(raises_over_bad(error)) as batcher:
            return await asyncio.gather(*map(batcher.submit, ["a", "bad", "b"]), return_exceptions=True)

    first, refused, last = run_in_time(main())
    assert (first, last) == ("a", "b")
    assert isinstance(refused, BatchFailed)
    assert refused.message == f"the model raised {type(error).__name__}"
    assert refused.__cause__ is error


def test_the_error_says_what_was_raised() -> None:
    """In its `detail`; a class whose text cannot be had is an error all the same."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit

    async def error_of(error: BaseException) -> str:
        async with Batcher(raises_over_bad(error)) as batcher:
            with pytest.raises(BatchFailed) as caught:
                await batcher.submit("bad")
            return str(caught.value)

    assert run_in_time(error_of(ValueError("no such word"))) == "the model raised ValueError: no such word"
    assert run_in_time(error_of(Mute())) == "the model raised Mute"


def test_a_generator_does_its_work_in_the_thread() -> None:
    """Calling it does nothing yet; the loop must not be where it is run to its end."""

    def names(items: list[str]) -> Iterator[str]:
        for _ in items:
            yield threading.current_thread().name

    async def main() -> str:
        async with Batcher(names) as batcher:
            return await batcher.submit("a")

    assert run_in_time(main()) != threading.current_thread().name


def test_a_function_that_hangs_once_does_not_take_the_next_batch_with_it() -> None:
    """A thread cannot be stopped: another one takes its place."""
    forever = threading.Event()
    called: list[str] = []

    def may_hang(items: list[str]) -> list[str]:
        called.extend(items)
        if "hang" in items:
            forever.wait()
        return items

    async def main() -> None:
        async with Batcher(may_hang, limits=Limits(batch_timeout=0.05)) as batcher:
            with pytest.raises(BackendError, match="did not answer in time"):
                await batcher.submit("hang")
            assert await batcher.submit("a") == "a"

    run_in_time(main())
    forever.set()
    assert called == ["hang", "a"]


def test_batch_after_batch_runs_in_the_same_thread() -> None:
    """A model may keep what belongs to a thread."""
    names = []

    def note(items: list[int]) -> list[int]:
        names.append(threading.get_ident())
        return items

    async def main() -> None:
        async with Batcher(note) as batcher:
            for item in range(20):
                await batcher.submit(item)

    run_in_time(main())
    assert len(set(names)) == 1


def test_a_batcher_that_is_forgotten_leaves_no_thread() -> None:
    """Not every batcher is closed: those of `@batched` are not."""
    threads: list[threading.Thread] = []

    def note(items: list[int]) -> list[int]:
        threads.append(threading.current_thread())
        return items

    async def main() -> None:
        await Batcher(note).submit(1)

    run_in_time(main())
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_a_function_that_hangs_does_not_keep_the_program_from_ending() -> None:
    """It has a moment; there is nobody left who waits for it."""
    printed = printed_by("""
        import asyncio, threading, carpool
        from carpool.backends import callable

        callable._LAST_SECONDS = 0.01

        @carpool.batched(batch_timeout=0.05)
        def hangs(items):
            threading.Event().wait()

        async def main():
            try:
                await hangs(1)
            except carpool.BackendError as error:
                print(error)

        asyncio.run(main())
    """)
    assert printed.startswith("the backend did not answer in time")


def test_threads_are_served_while_they_outlive_the_main_one() -> None:
    """Python lets executors take nothing any more by then; so does not everybody who works for them."""
    printed = printed_by("""
        import threading, carpool

        @carpool.batched
        def double(numbers):
            return [2 * number for number in numbers]

        def work():
            threading.main_thread().join()
            print(double.blocking(1), double.blocking(2))

        double.blocking(0)
        threading.Thread(target=work).start()
    """)
    assert printed == "2 4\n"
