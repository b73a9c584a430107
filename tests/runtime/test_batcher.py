"""The asyncio driver in virtual time: waits are exact and take none."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from math import nan
from typing import Any

import pytest
import uvloop

from carpool import BackendError, Batcher, BatchFailed, BatchPolicy, Limits, Overloaded, TimedOut, Unavailable
from carpool.core.replica import Capacity
from carpool.core.request import Request
from carpool.errors import Abandoned, BadInput, CarpoolError, ShuttingDown, Unreachable
from carpool.observe.observer import BatchEnded, BatchLeft, Fact, ReplicaStatus, RequestRefused, RequestsEnded
from carpool.testing import FakeBackend, run


def test_requests_of_one_turn_of_the_loop_travel_together() -> None:
    """Simultaneous arrivals coalesce without any wait."""
    backend = FakeBackend()

    async def main() -> None:
        async with Batcher(backend) as batcher:
            assert await asyncio.gather(*(batcher.submit(item) for item in "abc")) == ["a", "b", "c"]
        assert asyncio.get_running_loop().time() == 0.0

    run(main())
    assert backend.batches == [["a", "b", "c"]]


def test_the_timeout_policy_waits_exactly_as_long_as_it_may() -> None:
    """The timer is set for the oldest request and not moved by later ones."""
    backend = FakeBackend()

    async def main() -> None:
        async with Batcher(backend, BatchPolicy("timeout", 8, 0.1)) as batcher:
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(0.06)
            assert await batcher.submit("b") == "b"
            assert await first == "a"

    run(main())
    assert backend.batches == [["a", "b"]]
    assert backend.left_at == [pytest.approx(0.1)]


def test_what_arrives_while_a_batch_runs_leaves_when_it_is_back() -> None:
    """Natural batching: the slot is the timer."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        async with Batcher(backend) as batcher:
            tasks = [asyncio.create_task(batcher.submit(0))]
            for item in range(1, 5):
                await asyncio.sleep(0.2)
                tasks.append(asyncio.create_task(batcher.submit(item)))
            assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]

    run(main())
    assert backend.batches == [[0], [1, 2, 3, 4]]
    assert backend.left_at == [0.0, 1.0]


def test_map_returns_results_in_order_across_batches() -> None:
    """A list longer than a batch is split and comes back whole."""
    backend = FakeBackend(seconds=0.1)

    async def main() -> list[int]:
        async with Batcher(backend, BatchPolicy(max_batch_size=4), Limits(max_in_flight=2)) as batcher:
            assert await batcher.map([]) == []
            return await batcher.map(range(10))

    assert run(main()) == list(range(10))
    assert [len(batch) for batch in backend.batches] == [4, 4, 2]


def test_a_failing_batch_gives_each_caller_an_error_of_its_own() -> None:
    """Every caller gets BackendError with the cause, and no two raise the same object."""
    backend = FakeBackend()
    cause = RuntimeError("out of luck")
    backend.outcomes = [cause]

    async def main() -> list[Any]:
        async with Batcher(backend, BatchPolicy(isolate=False)) as batcher:
            errors = await asyncio.gather(*(batcher.submit(item) for item in "ab"), return_exceptions=True)
            assert await batcher.submit("c") == "c"
            return errors

    errors = run(main())
    assert [type(error) for error in errors] == [BatchFailed, BatchFailed]
    assert errors[0] is not errors[1]
    assert [error.__cause__ for error in errors] == [cause, cause]
    assert str(errors[0]) == "the model raised RuntimeError: out of luck"


@pytest.mark.parametrize("outcome", [["A"], ["A", "B", "C"], []])
def test_a_wrong_count_gives_every_caller_an_error(outcome: list[str]) -> None:
    """Never someone else's answer."""
    backend = FakeBackend()
    backend.outcomes = [outcome]

    async def main() -> list[Any]:
        async with Batcher(backend) as batcher:
            return await asyncio.gather(*(batcher.submit(item) for item in "ab"), return_exceptions=True)

    assert all(isinstance(error, BackendError) for error in run(main()))


def test_an_items_own_error_is_raised_to_its_caller_alone() -> None:
    """The backend put an exception in one place; even a StopIteration, which futures refuse."""
    backend = FakeBackend()
    backend.outcomes = [["A", KeyError("b"), StopIteration()]]

    async def main() -> list[Any]:
        async with Batcher(backend) as batcher:
            return await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)

    good, missing, stopped = run(main())
    assert good == "A"
    assert isinstance(missing, KeyError)
    assert isinstance(stopped, BackendError)


class Unusual(BaseException):
    """Such as trio's and pytest's own."""


async def inner_task_is_cancelled() -> None:
    inner = asyncio.create_task(asyncio.sleep(1.0))
    inner.cancel()
    await inner


async def exits() -> None:
    sys.exit(3)


async def is_unusual() -> None:
    raise Unusual


@pytest.mark.parametrize("trouble", [inner_task_is_cancelled, exits, is_unusual])
def test_whatever_an_async_function_raises_is_the_error_of_the_bad_input(
    trouble: Callable[[], Awaitable[None]],
) -> None:
    """The program goes on, and the batch is searched for the input that is to blame."""

    async def function(items: list[str]) -> list[str]:
        if "bad" in items:
            await trouble()
        return items

    async def main() -> list[Any]:
        async with Batcher(function) as batcher:
            return await asyncio.gather(*map(batcher.submit, ["a", "bad", "b"]), return_exceptions=True)

    first, refused, last = run(main())
    assert (first, last) == ("a", "b")
    assert isinstance(refused, BatchFailed)


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_items_own_error_ends_nothing_else(error: BaseException) -> None:
    """It was computed, and nobody has pressed Ctrl-C."""
    backend = FakeBackend()
    backend.outcomes = [["A", error]]

    async def main() -> list[Any]:
        async with Batcher(backend) as batcher:
            return await asyncio.gather(*map(batcher.submit, "ab"), return_exceptions=True)

    good, failed = run(main())
    assert good == "A"
    assert isinstance(failed, BatchFailed)
    assert failed.__cause__ is error


def test_ctrl_c_ends_the_program_while_a_function_runs() -> None:
    """In the main thread, where it comes to; who waits is told."""
    backend = FakeBackend()
    backend.outcomes = [KeyboardInterrupt()]
    delivered: list[Request] = []

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(backend)
        batcher.enqueue(Request(["a"], delivered.append))
        await asyncio.sleep(1.0)

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert [type(request.error) for request in delivered] == [ShuttingDown]


class NoSuchWord(BadInput):
    """An error as users write them: its text is made of what it is told."""

    def __init__(self, *, word: str, place: int) -> None:
        super().__init__(f"no such word: {word}", f"at {place}")
        self.place = place


class Wilful(BadInput):
    """One that cannot even be made without what it asks for."""

    def __new__(cls, *, word: str) -> Wilful:
        return super().__new__(cls, word)

    def __init__(self, *, word: str) -> None:
        super().__init__(word)
        self.args = (word, word)


@pytest.mark.parametrize("error", [NoSuchWord(word="xyz", place=7), Wilful(word="xyz")])
@pytest.mark.parametrize("is_item", [False, True])
def test_a_users_own_class_of_error_arrives(error: CarpoolError, is_item: bool) -> None:
    """Raised, or in the list; each caller has one of its own if it can be copied."""
    backend = FakeBackend()
    backend.outcomes = [[error, error]] if is_item else [error]

    async def main() -> list[Any]:
        async with Batcher(backend) as batcher:
            return await asyncio.gather(*map(batcher.submit, "ab"), return_exceptions=True)

    first, second = run(main())
    assert type(first) is type(second) is type(error)
    assert str(first) == str(second) == str(error)
    assert vars(first) == vars(error)
    assert (first is second) == isinstance(error, Wilful)


def test_a_cancelled_caller_is_not_run_and_its_companions_are() -> None:
    """Cancelling while queued takes the item out of the queue."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        async with Batcher(backend) as batcher:
            running, leaving = (asyncio.create_task(batcher.submit(item)) for item in "ab")
            await asyncio.sleep(0.5)
            queued, kept = (asyncio.create_task(batcher.submit(item)) for item in "cd")
            await asyncio.sleep(0)
            leaving.cancel()
            queued.cancel()
            assert list(await asyncio.gather(running, kept)) == ["a", "d"]
            assert batcher.statistics().waiting == 0

    run(main())
    assert backend.batches == [["a", "b"], ["d"]]


def test_a_batch_that_takes_too_long_fails_and_frees_its_slot() -> None:
    """The backend is cancelled and the next batch runs."""
    backend = FakeBackend(seconds=10.0)

    async def main() -> None:
        async with Batcher(backend, limits=Limits(batch_timeout=2.0)) as batcher:
            with pytest.raises(BackendError, match="did not answer in time"):
                await batcher.submit("a")
            assert asyncio.get_running_loop().time() == pytest.approx(2.0)
            backend.seconds = 1.0
            assert await batcher.submit("b") == "b"

    run(main())


def test_a_backends_own_timeout_is_not_taken_for_ours() -> None:
    """TimeoutError is what many clients raise."""
    backend = FakeBackend()
    backend.outcomes = [TimeoutError()]

    async def main() -> None:
        async with Batcher(backend, limits=Limits(batch_timeout=2.0)) as batcher:
            with pytest.raises(BackendError, match="the model raised TimeoutError"):
                await batcher.submit("a")

    run(main())


def test_timers_that_are_due_at_once_are_fine_with_uvloop(caplog: pytest.LogCaptureFixture) -> None:
    """Its handle has no time then, and batches end while it is set."""

    async def main() -> None:
        async with Batcher(no_wait, BatchPolicy("timeout", 8, 0.0003), Limits(max_in_flight=2)) as batcher:
            for _ in range(20):
                assert await asyncio.gather(*map(batcher.submit, range(9))) == [*range(9)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))
    assert not caplog.records


async def no_wait(items: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return items


def test_a_request_that_waits_too_long_times_out_while_the_slot_is_busy() -> None:
    """Nobody has to wait for the batch in front to learn it."""
    backend = FakeBackend(seconds=10.0)

    async def main() -> None:
        async with Batcher(backend, limits=Limits(queue_timeout=1.5)) as batcher:
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(1.0)
            with pytest.raises(TimedOut, match="1500 ms"):
                await batcher.submit("b")
            assert asyncio.get_running_loop().time() == pytest.approx(2.5)
            assert await first == "a"

    run(main())
    assert backend.batches == [["a"]]


def test_a_full_queue_refuses() -> None:
    """What is over the bound is refused at arrival and the rest is answered."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> list[Any]:
        async with Batcher(backend, BatchPolicy(max_batch_size=1), Limits(max_queue_size=2)) as batcher:
            return await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)

    answers = run(main())
    assert answers[:2] == ["a", "b"]
    assert isinstance(answers[2], Overloaded)


def test_close_answers_everything_admitted_and_takes_nothing_new() -> None:
    """Nothing admitted is lost at shutdown."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(backend, BatchPolicy(max_batch_size=1))
        await batcher.start()
        tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.5)
        with pytest.raises(Unavailable, match="shutting down"):
            await batcher.submit("d")
        await closing
        assert backend.closed
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]
        await batcher.close()

    run(main())


def test_close_ends_the_batches_for_which_nobody_waits() -> None:
    """Before the backend is released: what runs there must not be left behind."""
    cancelled: list[bool] = []

    class Noting(FakeBackend):
        async def run(self, items: Sequence[Any], group: Hashable = None) -> Sequence[Any]:
            try:
                return await super().run(items, group)
            except asyncio.CancelledError:
                cancelled.append(self.closed)
                raise

    async def main() -> None:
        async with Batcher[str, str](Noting(1000.0)) as batcher:
            await cancel_at(0.5, asyncio.create_task(batcher.submit("a")))
        assert len(asyncio.all_tasks()) == 1
        assert asyncio.get_running_loop().time() == pytest.approx(0.5)

    run(main())
    assert cancelled == [False]


def test_backends_are_released_at_once() -> None:
    """A hundred workers that take a second each to end take a second; one that fails keeps none."""

    class Lingering(FakeBackend):
        async def close(self) -> None:
            await asyncio.sleep(1.0)
            await super().close()

    class Failing(FakeBackend):
        async def close(self) -> None:
            raise OSError("no such process")

    backends = [Failing(), *(Lingering() for _ in range(100))]

    async def main() -> None:
        batcher = Batcher[str, str](backends)
        await batcher.start()
        with pytest.raises(OSError, match="no such process"):
            await batcher.close()
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)

    run(main())
    assert all(backend.closed for backend in backends[1:])


def test_interrupting_the_loop_answers_who_waits() -> None:
    """A batch whose task is cancelled still ends its requests."""
    backend = FakeBackend(seconds=5.0)
    delivered: list[Request] = []

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(backend)
        batcher.enqueue(Request(["a"], delivered.append))
        await asyncio.sleep(1.0)  # `run` cancels what is left when this returns

    run(main())
    assert [type(request.error) for request in delivered] == [ShuttingDown]


def test_a_caller_cancelled_in_the_turn_of_its_answer_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cancellation and answer may cross; companions are still delivered."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        async with Batcher(backend) as batcher:
            gone, kept = (asyncio.create_task(batcher.submit(item)) for item in "ab")
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0)
            loop.call_at(1.0, gone.cancel)
            assert await kept == "b"

    run(main())
    assert not caplog.records


class Recorder:
    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


class Raiser:
    def observe(self, fact: Fact) -> None:
        raise RuntimeError(f"no {type(fact).__name__}")


def test_observers_hear_facts_and_one_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The failing observer is logged, the other hears everything, the callers notice nothing."""
    recorder = Recorder()
    backend = FakeBackend(seconds=0.5)

    async def main() -> None:
        observers: Sequence[Any] = [Raiser(), recorder]
        limits = Limits(max_queue_size=2)
        async with Batcher(backend, limits=limits, name="m", observers=observers) as batcher:
            answers = await asyncio.gather(*map(batcher.submit, "abc"), return_exceptions=True)
            assert answers[:2] == ["a", "b"]

    with caplog.at_level(logging.ERROR):
        run(main())
    refused, left, ended, requests = recorder.facts
    assert isinstance(refused, RequestRefused)
    assert left == BatchLeft("m", 1, 2, 2, "slot free", 0.0, 0, "0")
    assert ended == BatchEnded("m", 1, 2, 0.5, None, "0")
    assert requests == RequestsEnded("m", [0.5, 0.5], [])
    assert "an observer failed on BatchLeft" in caplog.text


def test_a_plain_function_is_a_backend_too() -> None:
    """The library needs no class from its user."""

    async def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    async def main() -> list[int]:
        async with Batcher(double) as batcher:
            return await asyncio.gather(*map(batcher.submit, range(3)))

    assert run(main()) == [0, 2, 4]


async def reciprocals(numbers: list[float]) -> list[float]:
    return [1 / number for number in numbers]


def test_one_bad_input_fails_alone() -> None:
    """The batch is run again in halves until only the bad one fails."""

    async def main() -> list[Any]:
        async with Batcher(reciprocals) as batcher:
            inputs = [*range(1, 20), 0, *range(20, 30)]
            return await asyncio.gather(*map(batcher.submit, inputs), return_exceptions=True)

    answers = run(main())
    assert [answer for answer in answers if not isinstance(answer, float)] == [answers[19]]
    assert isinstance(answers[19].__cause__, ZeroDivisionError)


def test_equal_inputs_share_one_computation() -> None:
    """Whether they wait together or one is already running; each caller gets the result."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        async with Batcher(backend, key=str) as batcher:
            first = [asyncio.create_task(batcher.submit(item)) for item in "aab"]
            await asyncio.sleep(0.5)
            assert await batcher.submit("a") == "a"
            assert asyncio.get_running_loop().time() == pytest.approx(1.0)
            assert list(await asyncio.gather(*first)) == ["a", "a", "b"]

    run(main())
    assert backend.batches == [["a", "b"]]


@pytest.mark.parametrize("callback", ["cost", "key"])
def test_a_callback_that_raises_is_that_callers_error(callback: str) -> None:
    """The batching goes on, and the other callers notice nothing."""

    def only_letters(item: str) -> float:
        if not item.isalpha():
            raise ValueError(f"not a letter: {item}")
        return ord(item)

    async def main() -> list[Any]:
        callbacks: dict[str, Any] = {callback: only_letters}
        async with Batcher(FakeBackend(), **callbacks) as batcher:
            return await asyncio.gather(*map(batcher.submit, "a1b"), return_exceptions=True)

    first, refused, last = run(main())
    assert (first, last) == ("a", "b")
    assert isinstance(refused, ValueError)


def test_a_batcher_belongs_to_one_event_loop() -> None:
    """What was under way in the first is lost with it, so the second could wait for ever."""
    batcher: Batcher[str, str] = Batcher(echo)

    async def again() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop; make one in each"):
            await asyncio.wait_for(batcher.submit("b"), 1.0)
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await batcher.start()

    assert run(batcher.submit("a")) == "a"
    run(again())


def test_a_function_that_waits_for_itself_is_told_so() -> None:
    """Its batch holds the slot that it would wait for; others are served. In a task of its own it may call."""
    tasks: list[asyncio.Task[str]] = []

    async def nested(items: list[str]) -> list[str]:
        if "itself" in items:
            return [await batcher.submit(item) for item in items]
        if "later" in items:
            tasks.append(asyncio.create_task(batcher.submit("b")))
        return items

    batcher: Batcher[str, str] = Batcher(nested)

    async def main() -> None:
        with pytest.raises(BackendError, match="is called by its own function"):
            await asyncio.wait_for(batcher.submit("itself"), 1.0)
        assert await batcher.submit("later") == "later"
        assert await tasks[0] == "b"

    run(main())


async def echo(items: list[str]) -> list[str]:
    return items


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priority": "urgent"}, "the priority 'urgent' is unknown; allowed: high, normal, low"),
        ({"timeout": nan}, "the timeout nan is no number of seconds"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    """By what was wrong with it, and what is allowed."""

    async def main() -> None:
        async with Batcher(FakeBackend()) as batcher:
            with pytest.raises(ValueError, match=message):
                await batcher.submit("a", **arguments)
            assert await batcher.submit("b", timeout=1, priority="high") == "b"

    run(main())


def test_a_batcher_has_one_backend_at_least_and_knows_which() -> None:
    """Nothing waits for what cannot come."""
    with pytest.raises(ValueError, match="one backend at least"):
        Batcher[str, str]([])

    async def main() -> None:
        first, second = FakeBackend(), FakeBackend()
        async with Batcher[str, str]([first, second]) as batcher:
            with pytest.raises(ValueError, match="no such backend"):
                await batcher.remove(FakeBackend())
            await batcher.remove(second)
            with pytest.raises(ValueError, match="no such backend"):
                await batcher.remove(second)

    run(main())


def test_what_cannot_be_answered_in_time_is_refused_at_arrival() -> None:
    """Once batch times are known; it says when to come back, and is never run."""
    backend = FakeBackend(seconds=1.0)

    async def main() -> None:
        async with Batcher(backend, BatchPolicy(max_batch_size=1)) as batcher:
            for item in range(8):
                await batcher.submit(item)
            queued = asyncio.gather(*(batcher.submit(item) for item in range(100, 106)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="too long for a deadline of 2000 ms") as refused:
                await batcher.submit("hopeless", timeout=2.0)
            assert 1 <= refused.value.retry_after <= 30
            await queued

    run(main())
    assert ["hopeless"] not in backend.batches


def test_several_backends_share_the_work() -> None:
    """A batcher of two runs two batches at once, each in a place of its own."""

    async def main() -> None:
        backends = [FakeBackend(1.0), FakeBackend(1.0)]
        async with Batcher[str, str](backends, BatchPolicy(max_batch_size=1)) as batcher:
            assert await asyncio.gather(*map(batcher.submit, "ab")) == ["a", "b"]
        assert sorted(batch for backend in backends for batch in backend.batches) == [["a"], ["b"]]
        assert all(len(backend.batches) == 1 and backend.closed for backend in backends)

    run(main())


def test_what_one_backend_loses_the_other_answers() -> None:
    """The caller notices nothing but the time."""

    async def main() -> None:
        backends = [FakeBackend(), FakeBackend()]
        for backend in backends:
            backend.outcomes = [Unreachable("gone")]
        backends[1].outcomes = []
        async with Batcher[str, str](backends, BatchPolicy(max_batch_size=1)) as batcher:
            assert await asyncio.gather(*map(batcher.submit, "abcd")) == list("abcd")

    run(main())


class Slow(FakeBackend):
    """A backend whose start takes a while, and may fail."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        super().__init__()
        self.start_seconds = seconds
        self.error = error
        self.events: list[str] = []

    async def start(self, on_change: Callable[[], None]) -> None:
        try:
            await asyncio.sleep(self.start_seconds)
        except asyncio.CancelledError:
            self.events.append("start cancelled")
            raise
        if self.error is not None:
            raise self.error
        await super().start(on_change)

    async def close(self) -> None:
        self.events.append("closed")
        await super().close()


def test_one_backend_that_is_ready_is_enough_to_start() -> None:
    """The others go on in the background, and serve as soon as they can; `close` ends those that still do."""
    now, later, never = backends = [Slow(0.0), Slow(5.0), Slow(10_000.0)]

    async def main() -> None:
        async with Batcher[str, str](backends, BatchPolicy(max_batch_size=1)) as batcher:
            assert asyncio.get_running_loop().time() == 0.0
            assert await batcher.map("ab") == ["a", "b"]
            assert now.batches == [["a"], ["b"]]
            assert [replica.is_up for replica in batcher.replicas()] == [True, False, False]
            await asyncio.sleep(5.0)
            assert [replica.is_up for replica in batcher.replicas()] == [True, True, False]
            await batcher.map("cd")
            assert len(later.batches) == 1

    run(main())
    assert never.events == ["start cancelled", "closed"]


def test_a_backend_that_cannot_be_started_is_logged_also_when_the_others_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it fails before one of them is ready or after."""
    backends = [Slow(1.0, OSError("early")), Slow(2.0), Slow(3.0, OSError("late"))]

    async def main() -> None:
        async with Batcher[str, str](backends) as batcher:
            assert asyncio.get_running_loop().time() == 2.0
            await asyncio.sleep(5.0)
            assert await batcher.submit("a") == "a"

    run(main())
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["early", "late"]


def test_a_batcher_none_of_whose_backends_can_be_started_says_why() -> None:
    """With the error of the first, whichever failed first; and they are released."""
    backends = [Slow(2.0, OSError("first")), Slow(1.0, OSError("second"))]

    async def main() -> None:
        batcher = Batcher[str, str](backends)
        for _ in range(2):  # it may be tried again
            with pytest.raises(OSError, match="first"):
                await batcher.start()
        assert all(backend.closed for backend in backends)
        backends[1].error = None
        await batcher.start()
        await batcher.close()

    run(main())


def test_a_start_that_is_given_up_leaves_nothing_behind() -> None:
    """The starts are cancelled with it."""
    backend = Slow(10_000.0)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Batcher[str, str](backend).start(), 1.0)
        assert backend.events == ["start cancelled"]

    run(main())


def test_a_backend_can_leave_while_it_is_starting() -> None:
    """Its start is over before it is released."""
    ready, hangs = Slow(0.0), Slow(10_000.0)

    async def main() -> None:
        async with Batcher[str, str]([ready, hangs]) as batcher:
            await batcher.remove(hangs)
            assert hangs.events == ["start cancelled", "closed"]

    run(main())


def test_a_backend_in_trouble_gets_nothing_until_it_is_well() -> None:
    """It says so itself, and what waits leaves as soon as it is back."""

    async def main() -> None:
        backend = FakeBackend()
        async with Batcher[str, str](backend) as batcher:
            backend.change(trouble="restarting")
            waiting = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(1.0)
            assert backend.batches == []
            backend.change()
            assert await waiting == "a"
            backend.change(trouble="gone")
            with pytest.raises(Unavailable):
                await batcher.submit("b")
            assert asyncio.get_running_loop().time() == pytest.approx(3.0)  # two seconds of patience

    run(main())


def test_what_a_backend_takes_may_change() -> None:
    """Smaller batches from the moment that it says so."""

    async def main() -> None:
        backend = FakeBackend(0.1)
        async with Batcher[str, str](backend) as batcher:
            backend.change(capacity=Capacity(in_flight=1, batch_size=2))
            await batcher.map("abcde")
        assert list(map(len, backend.batches)) == [2, 2, 1]

    run(main())


def test_backends_come_and_go() -> None:
    """One that joins is used at once; one that leaves finishes what it has and is closed."""

    async def main() -> None:
        first, second = FakeBackend(1.0), FakeBackend(1.0)
        async with Batcher[str, str](first, BatchPolicy(max_batch_size=1)) as batcher:
            waiting = [asyncio.create_task(batcher.submit(item)) for item in "ab"]
            await asyncio.sleep(0.5)
            await batcher.add(second)
            await asyncio.sleep(0.1)
            assert second.batches == [["b"]]
            await batcher.remove(first)
            assert first.closed
            assert asyncio.get_running_loop().time() == pytest.approx(1.0)
            assert await asyncio.gather(*waiting) == ["a", "b"]
            assert await batcher.submit("c") == "c"
            assert first.batches == [["a"]]

    run(main())


def test_a_backend_that_leaves_in_the_turn_of_its_batch_still_runs_it() -> None:
    """The batch has been sent, though its task has not begun."""

    async def main() -> None:
        first, second = FakeBackend(1.0), FakeBackend(1.0)
        async with Batcher[str, str]([first, second]) as batcher:
            answer = asyncio.create_task(batcher.submit("a"))
            while not batcher.statistics().in_flight:
                await asyncio.sleep(0)
            assert not first.batches
            await batcher.remove(first)
            assert await answer == "a"
            assert (first.batches, first.closed) == ([["a"]], True)

    run(main())


class Told(FakeBackend):
    """A backend that notes when it sends a batch, among other events."""

    def __init__(self, events: list[str], sends_at_once: bool) -> None:
        super().__init__(1.0)
        self.events = events
        self.sends_at_once = sends_at_once

    async def run(self, items: Sequence[Any], group: Hashable = None) -> Sequence[Any]:
        self.events.append(f"{items[0]} sent")
        return await super().run(items, group)


@pytest.mark.parametrize(
    ("sends_at_once", "expected"),
    [
        (True, ["a sent", "b sent", "a answered", "b answered"]),
        (False, ["a sent", "a answered", "b sent", "b answered"]),
    ],
)
def test_the_next_batch_is_sent_before_the_last_is_answered(sends_at_once: bool, expected: list[str]) -> None:
    """Only where that takes no time: a function that computes on the loop would keep the callers waiting."""
    events: list[str] = []

    def answered(request: Request) -> None:
        events.append(f"{request.items[0]} answered")

    async def main() -> None:
        async with Batcher[str, str](Told(events, sends_at_once), BatchPolicy(max_batch_size=1)) as batcher:
            for item in "ab":
                batcher.enqueue(Request([item], answered))

    run(main())
    assert events == expected


class Plain(FakeBackend):
    """A backend whose `run` is no coroutine function, and that does not like "bad"."""

    def run(self, items: Sequence[Any], group: Hashable = None) -> Coroutine[Any, Any, Sequence[Any]]:
        if "bad" in items:
            raise ValueError("bad")
        self.batches.append(list(items))
        return asyncio.sleep(1.0, items)


def test_a_backend_that_is_no_coroutine_is_called_in_the_turn_in_which_the_batch_leaves() -> None:
    """A batch that only has to be sent does not wait for its task to begin."""
    backend = Plain()

    async def main() -> None:
        async with Batcher[str, str](backend) as batcher:
            answer = asyncio.create_task(batcher.submit("a"))
            while not batcher.statistics().in_flight:
                assert not backend.batches
                await asyncio.sleep(0)
            assert backend.batches == [["a"]]
            assert await answer == "a"

    run(main())


def test_what_a_backend_raises_before_it_returns_anything_is_the_batchs_error() -> None:
    """The next batch is served."""

    async def main() -> None:
        async with Batcher[str, str](Plain()) as batcher:
            with pytest.raises(BatchFailed, match="ValueError"):
                await batcher.submit("bad")
            assert await batcher.submit("good") == "good"

    run(main())


def test_callers_are_answered_before_observers_are_told() -> None:
    """What is counted has happened: nobody waits for it to be counted."""
    events: list[str] = []

    class Told:
        def observe(self, fact: Fact) -> None:
            events.append(type(fact).__name__)

    async def main() -> None:
        async with Batcher(FakeBackend(1.0), observers=[Told()]) as batcher:
            batcher.enqueue(Request(["a"], lambda _: events.append("answered")))

    run(main())
    assert events == ["BatchLeft", "answered", "BatchEnded", "RequestsEnded"]


class Hangable(FakeBackend):
    """A backend that can give up a batch, and counts those."""

    name = "hangable"
    gives_up = True
    given_up = 0

    async def run(self, items: Sequence[Any], group: Hashable = None) -> Sequence[Any]:
        try:
            return await super().run(items, group)
        except asyncio.CancelledError:
            self.given_up += 1
            raise


async def cancel_at(seconds: float, *tasks: asyncio.Task[Any]) -> None:
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_a_batch_for_which_nobody_waits_is_given_up() -> None:
    """Its slot is free at once, and it counts against nobody."""
    recorder = Recorder()
    backend = Hangable(1000.0)

    async def main() -> None:
        async with Batcher[str, str](backend, observers=[recorder]) as batcher:
            for number in range(20):  # any of which would be a failure otherwise
                gone = [asyncio.create_task(batcher.submit(item)) for item in "ab"]
                await cancel_at(0.2, gone[0])
                assert backend.given_up == number
                await cancel_at(0.2, gone[1])
                await asyncio.sleep(0)
                assert backend.given_up == number + 1
                assert batcher.replicas() == [ReplicaStatus("hangable", 0, 1, True, None)]
            backend.seconds = 1.0
            assert await batcher.submit("c") == "c"

    run(main())
    ends = [fact for fact in recorder.facts if isinstance(fact, BatchEnded)]
    assert [type(end.error) for end in ends] == [Abandoned] * 20 + [type(None)]


def test_callers_that_hang_up_do_not_hide_a_backend_that_hangs() -> None:
    """What took very much longer than expected was lost."""
    backend = Hangable(1000.0)

    async def main() -> None:
        async with Batcher[str, str](backend) as batcher:
            for _ in range(5):
                await cancel_at(2.0, asyncio.create_task(batcher.submit("a")))
                await asyncio.sleep(0)
            assert not batcher.replicas()[0].is_up

    run(main())


def test_a_batch_is_not_given_up_while_somebody_shares_it() -> None:
    """An equal input that came later waits for it; once that one has gone too, nobody does."""
    backend = Hangable(1.0)

    async def main() -> None:
        async with Batcher[str, str](backend, key=str) as batcher:
            first, second = (asyncio.create_task(batcher.submit("a")) for _ in range(2))
            await cancel_at(0.5, first)
            assert await second == "a"
            both = [asyncio.create_task(batcher.submit("b")) for _ in range(2)]
            await cancel_at(0.5, *both)
            await asyncio.sleep(0)

    run(main())
    assert (backend.batches, backend.given_up) == ([["a"], ["b"]], 1)


def test_a_batch_and_its_hedge_are_given_up_together() -> None:
    """Both run for the same callers."""
    backends = [Hangable(1.0), Hangable(1.0)]

    async def main() -> None:
        async with Batcher[str, str](backends, BatchPolicy(hedge=True)) as batcher:
            for item in range(200):
                await batcher.submit(str(item))
            for backend in backends:
                backend.seconds = 1000.0
            slow = asyncio.create_task(batcher.submit("slow"))
            while batcher.statistics().in_flight < 2:
                await asyncio.sleep(0.1)
            await cancel_at(0.1, slow)
            await asyncio.sleep(0)
            assert batcher.statistics().in_flight == 0

    run(main())
    assert [backend.given_up for backend in backends] == [1, 1]


def test_what_cannot_be_given_up_runs_to_its_end() -> None:
    """A thread cannot be stopped, and a worker process would have to be replaced."""
    backend = FakeBackend(1.0)

    async def main() -> None:
        async with Batcher[str, str](backend) as batcher:
            await cancel_at(0.5, asyncio.create_task(batcher.submit("a")))
            await asyncio.sleep(0.1)
            assert batcher.statistics().in_flight == 1

    run(main())
