"""The worker process: what it says, and what happens when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from carpool.backends.process import frames, shared
from carpool.backends.process.parent import ProcessBackend, Worker
from carpool.errors import BackendError, ConfigError, Crashed, Raised
from carpool.wire.call import Call


@pytest.fixture(autouse=True)
def _toy_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@asynccontextmanager
async def toy(loader: str = "toy_model:load") -> AsyncIterator[ProcessBackend]:
    """A started backend with a worker of its own."""
    backend = ProcessBackend(loader, {})
    await backend.start(lambda: None)
    try:
        yield backend
    finally:
        await backend.close()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def pid_in(results: Any) -> int:
    return int(json.loads(results[0])[1])


@contextmanager
def pidfd_watcher() -> Iterator[None]:
    """Ends of processes are noticed in the loop, not in a thread: never between two lines of a test.

    Later Pythons do so by themselves; this one's thread would be done in time nearly always.
    """
    if sys.version_info >= (3, 12):
        yield
        return
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    try:
        yield
    finally:
        asyncio.set_child_watcher(asyncio.ThreadedChildWatcher())


async def turns_until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_the_model_runs_in_a_process_of_its_own_that_ends_with_the_backend() -> None:
    """Not in this one; and nothing is left behind."""

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {})
        assert backend.trouble() == "the model is not loaded yet"
        await backend.start(lambda: None)
        pid = pid_in(await backend.run([b'"a"']))
        assert pid != os.getpid()
        assert backend.info["name"] == "toy"
        assert backend.trouble() is None
        await backend.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(main())


@pytest.mark.parametrize(
    ("loader", "arguments", "words"),
    [
        ("toy_model:load", {"refuse": True}, "this directory holds no model: expected one"),
        ("toy_model:fail", {}, "the model cannot be loaded: RuntimeError: broken weights"),
        ("no_such_module:load", {}, "the model cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_said_at_the_start(
    loader: str, arguments: dict[str, Any], words: str
) -> None:
    """What the worker found wrong is what the operator reads."""

    async def main() -> None:
        with pytest.raises(ConfigError, match=words):
            await ProcessBackend(loader, arguments).start(lambda: None)

    run(main())


def test_where_a_model_raised_as_it_was_loaded_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What its loader refused in words needs no line of code."""

    async def main(loader: str, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            await ProcessBackend(loader, arguments).start(lambda: None)

    run(main("toy_model:load", {"refuse": True}))
    assert not caplog.records
    run(main("toy_model:fail", {}))
    [record] = caplog.records
    assert record.message == "the model cannot be loaded: RuntimeError: broken weights"
    trace = vars(record)["exception"]
    assert 'toy_model.py", line' in trace
    assert "in fail\n    raise RuntimeError" in trace
    assert "child.py" not in trace


def test_a_worker_that_dies_while_loading_is_an_error_and_not_a_hang() -> None:
    """A crash in native code says nothing at all."""

    async def main() -> None:
        with pytest.raises(BackendError, match="the worker process died"):
            await ProcessBackend("toy_model:load", {"crash": True}).start(lambda: None)

    run(main())


def test_a_model_that_raises_fails_its_batch_and_lives_on() -> None:
    """The same process answers the next batch."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            with pytest.raises(BackendError, match="the model raised ValueError") as caught:
                await backend.run([b'"a"', b'"raise"'])
            cause = caught.value.__cause__
            assert isinstance(cause, Raised)
            assert repr(cause) == "ValueError: no"
            assert 'toy_model.py", line' in cause.traceback
            assert "toy_model" not in str(caught.value)
            assert pid_in(await backend.run([b'"print"'])) == pid

    run(main())


def test_the_worker_has_one_batch_beside_the_one_it_runs_and_no_more() -> None:
    """Small ones are sent when they are given, without a task that begins; the third waits for its turn."""

    async def main() -> None:
        async with toy() as backend:
            running = [backend.run([item]) for item in (b'"a"', b'"b"', b'"c"')]
            assert backend._latest is not None
            assert backend._latest.unanswered == 2
            answers = await asyncio.gather(*running)
            assert [texts_in(answer) for answer in answers] == [["a"], ["b"], ["c"]]

    run(main())


TUNABLES, SPINS, POLICY = "GLIBC_TUNABLES", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


@pytest.mark.parametrize(
    ("ours", "its"),
    [
        ({}, {TUNABLES: "glibc.malloc.hugetlb=1", SPINS: "50000"}),
        (
            {TUNABLES: "glibc.malloc.arena_max=2"},
            {TUNABLES: "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1", SPINS: "50000"},
        ),
        ({TUNABLES: "glibc.malloc.hugetlb=0"}, {TUNABLES: "glibc.malloc.hugetlb=0", SPINS: "50000"}),
        ({SPINS: "7"}, {TUNABLES: "glibc.malloc.hugetlb=1", SPINS: "7"}),
        ({POLICY: "active"}, {TUNABLES: "glibc.malloc.hugetlb=1", POLICY: "active"}),
    ],
)
def test_a_worker_gets_huge_pages_and_threads_that_soon_sleep_unless_somebody_says_otherwise(
    ours: dict[str, str], its: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else the C library is told stays as it is."""
    names = (TUNABLES, SPINS, POLICY)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)

    async def main() -> None:
        async with toy() as backend:
            answer, *_ = await backend.run([json.dumps(word).encode() for word in ("environment", *names)])
            assert json.loads(answer) == {name: its.get(name) for name in names}

    run(main())


def test_a_worker_that_dies_fails_its_batch_and_is_replaced() -> None:
    """Its callers get an error at once, the next batch waits for the new worker."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            with pytest.raises(BackendError, match="the worker process died"):
                await backend.run([b'"a"', b'"die"'])
            assert "the worker process died" in str(backend.trouble())
            assert "(signal SIGKILL)" in str(backend.trouble())
            assert pid_in(await backend.run([b'"b"'])) != pid
            assert backend.trouble() is None

    run(main())


def test_a_new_worker_has_one_batch_at_a_time() -> None:
    """Of two that were with the one that died either may have been at fault: the next is to tell which."""

    async def main() -> None:
        async with toy() as backend:
            with pytest.raises(Crashed):
                await backend.run([b'"die"'])
            await turns_until(lambda: backend.trouble() is None)
            running = [backend.run([item]) for item in (b'"a"', b'"b"')]
            assert backend._latest is not None
            assert backend._latest.unanswered == 1
            answers = await asyncio.gather(*running)
            assert [texts_in(answer) for answer in answers] == [["a"], ["b"]]

    run(main())


def test_to_end_a_worker_that_has_died_does_not_hide_how_it_died() -> None:
    """Its exit status belongs to whoever waits for it, however late the loop comes to look."""

    async def main() -> None:
        worker = await Worker.spawn()
        os.kill(worker.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 (the loop is to see nothing)
        worker.kill()
        assert await worker.process.wait() == -signal.SIGKILL
        worker.hang_up()

    with pidfd_watcher():
        run(main())


@pytest.mark.parametrize("run_in_a_loop", [asyncio.run, uvloop.run])
def test_a_batch_that_meets_a_dead_worker_is_told_so(run_in_a_loop: Callable[..., None]) -> None:
    """However much of that end the loop has seen by then: the batch was not at fault, and may be run again."""

    async def main() -> None:
        async with toy() as backend:
            for turns in range(4):
                pid = pid_in(await backend.run([b'"a"']))
                os.kill(pid, signal.SIGKILL)
                for _ in range(turns):
                    await asyncio.sleep(0)
                try:
                    assert pid_in(await backend.run([b'"b"'])) != pid
                except Crashed:
                    continue

    run_in_a_loop(asyncio.wait_for(main(), 60))


def test_a_worker_killed_while_idle_is_replaced_before_a_batch_finds_out() -> None:
    """Health says so meanwhile."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            os.kill(pid, signal.SIGKILL)
            await turns_until(lambda: backend.trouble() is not None)
            await turns_until(lambda: backend.trouble() is None)
            assert pid_in(await backend.run([b'"b"'])) != pid

    run(main())


def test_a_worker_that_hangs_is_ended_when_its_batch_is_cancelled() -> None:
    """Only a new process is sure to be idle."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(backend.run([b'"hang"']), 0.2)
            await turns_until(lambda: backend.trouble() is not None)
            assert pid_in(await backend.run([b'"b"'])) != pid

    run(main())


def test_a_worker_that_hangs_is_ended_in_time_also_where_its_own_child_lives_on() -> None:
    """Which keeps the worker's end of the socket, so that the parent never reads its end."""

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {}, batch_timeout=0.3)
        await backend.start(lambda: None)
        with pytest.raises(Crashed, match=r"took more than 0\.3 s for a batch"):
            await asyncio.wait_for(backend.run([b'"fork"', b'"hang"']), 2)
        await backend.close()

    run(main())


def test_the_signals_of_a_shutdown_do_not_end_a_worker() -> None:
    """Ctrl-C reaches the whole process group; the worker must finish what was admitted."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            assert pid_in(await backend.run([b'"b"'])) == pid

    run(main())


def test_frames_carry_messages_both_ways() -> None:
    """A frame is two lengths, a message, and what follows it: the items, one after the other."""
    cases: list[tuple[frames.ToChild | frames.FromChild, Callable[[bytes], Any]]] = [
        (frames.Run(7, [3, 8], Call("tokenize")), frames.decode_to_child),
        (frames.Answer(7, [b"[1]", b"[2]"]), frames.decode_from_child),
        (frames.Failed(7, "ValueError", "no"), frames.decode_from_child),
    ]
    for message, decode in cases:
        frame = frames.encode(message)
        prefix, body = frame[: frames.PREFIX_BYTES], frame[frames.PREFIX_BYTES :]
        assert frames.lengths(prefix) == (len(body), 0)
        assert decode(body) == message
    items = [b'"a"', '"日本"'.encode(), b""]
    assert frames.lengths(frames.encode(message, 11)[: frames.PREFIX_BYTES])[1] == 11
    assert frames.cut(memoryview(b"".join(items)), list(map(len, items))) == items


def test_batches_of_any_size_reach_the_model_as_they_are() -> None:
    """Whether they go through the socket or through shared memory, in whatever order the two are used."""

    async def main() -> None:
        async with toy() as backend:
            for size, count in [
                (10, 3),
                (shared.LEAST, 1),
                (200_000, 7),
                (20_000, 20),
                (shared.LEAST, 9),
                (10, 3),
            ]:
                items = [f'"{number:{size}}"'.encode() for number in range(count)]
                results = await backend.run(items)
                assert [json.loads(result)[0] for result in results] == [json.loads(item) for item in items]

    run(main())


def test_a_vector_comes_with_what_the_model_knows_of_it() -> None:
    """Also beside a result that is none."""

    async def main() -> None:
        async with toy() as backend:
            other, vector = await backend.run([b'"a"', b'"vector"'])
            assert (vector, vector.tokens, vector.floats) == (b"[1.0]", 3, struct.pack("<f", 1))
            assert (json.loads(other)[0], other.tokens, other.floats) == ("a", 0, b"")

    run(main())


def large(text: str) -> list[bytes]:
    """A batch that goes through shared memory: a text, and one that is long."""
    return [f'"{text}"'.encode(), f'"{text:{shared.LEAST}}"'.encode()]


def texts_in(results: Any) -> list[str]:
    return [json.loads(result)[0].strip() for result in results]


def test_a_second_batch_is_taken_while_batches_are_large() -> None:
    """It is brought to the worker's memory meanwhile; a small one had better grow in the queue."""

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {})
        told: list[int | None] = []
        await backend.start(lambda: told.append(backend.capacity.in_flight))
        told.clear()
        for items in ([b'"a"'], large("b"), large("c"), [b'"d"']):
            await backend.run(items)
        assert told == [2, 1]
        texts = [f"text {number}" for number in range(20)]
        answers = await asyncio.gather(*(backend.run(large(text)) for text in texts))
        assert [texts_in(answer) for answer in answers] == [[text, text] for text in texts]
        await backend.close()

    run(main())


def test_the_batch_that_waits_for_a_worker_that_dies_is_run_by_the_next() -> None:
    """It has not run, so it is not to blame."""

    async def main() -> None:
        async with toy() as backend:
            for _ in range(2):
                batches = (backend.run(large(text)) for text in ("die", "b"))
                answers = await asyncio.gather(*batches, return_exceptions=True)
                assert isinstance(answers[0], Crashed)
                assert texts_in(answers[1]) == ["b", "b"]

    run(main())


def test_a_batch_that_is_given_up_leaves_the_worker_and_its_memory_to_the_next() -> None:
    """Whether it is being written, waits for its turn, or runs."""

    async def main() -> None:
        async with toy() as backend:
            for seconds in (0, 0.001, 0.1):
                batches = [asyncio.create_task(backend.run(large("sleep"))) for _ in range(3)]
                await asyncio.sleep(seconds)
                for batch in batches:
                    batch.cancel()
                await asyncio.wait(batches)
                assert texts_in(await backend.run(large("b"))) == ["b", "b"]

    run(main())


def test_a_large_batch_is_prepared_while_the_one_before_it_runs() -> None:
    """The first ends only when the second has been prepared."""

    async def main() -> None:
        async with toy("toy_model:ahead") as backend:
            first, second = await asyncio.gather(*(backend.run(large(text)) for text in ("first", "second")))
            assert json.loads(first[0]) == ["first", True]
            assert texts_in(second) == ["second", "second"]

    run(main())


def test_a_batch_is_prepared_while_one_of_many_items_runs() -> None:
    """As small as they are, the model has said that so many take long enough for it."""

    async def main() -> None:
        async with toy("toy_model:ahead") as backend:
            batches = (backend.run([b'"first"'] * 8), backend.run([b'"second"']))
            first, second = await asyncio.gather(*batches)
            assert json.loads(first[0]) == ["first", True]
            assert texts_in(second) == ["second"]

    run(main())


def test_what_goes_wrong_in_preparing_is_the_fault_of_that_batch_alone() -> None:
    """The one that runs meanwhile and the one after it are answered, by the same process."""

    async def main() -> None:
        async with toy("toy_model:ahead") as backend:
            batches = (backend.run(large(text)) for text in ("sleep", "raise early", "b"))
            one, failed, other = await asyncio.gather(*batches, return_exceptions=True)
            assert (texts_in(one), texts_in(other)) == (["sleep", "sleep"], ["b", "b"])
            assert isinstance(failed, BackendError)
            assert str(failed.__cause__) == "early"
            assert pid_in(other) == pid_in(one)

    run(main())


def test_a_batch_that_is_given_up_after_the_worker_has_read_it_disturbs_nobody() -> None:
    """Its answer is dropped, and its memory is not written before the worker is done with it."""

    async def main() -> None:
        async with toy("toy_model:in_place") as backend:
            pid, worker = backend.info["pid"], backend._latest
            assert worker is not None
            first = asyncio.create_task(backend.run(large("first"), Call("infer")))
            await turns_until(lambda: worker.unanswered)  # the thread that writes the second might be faster
            given_up, third = (
                asyncio.create_task(backend.run(large(text), Call("infer"))) for text in ("second", "third")
            )
            await turns_until(lambda: os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG))
            given_up.cancel()
            await asyncio.wait([given_up])
            os.kill(pid, signal.SIGCONT)
            assert json.loads((await first)[0]) == ["first"] * 2
            assert json.loads((await third)[0]) == ["first"] * 2 + ["second"] * 2 + ["third"] * 2

    run(main())


def test_an_item_that_was_received_for_a_worker_is_not_had_back_while_the_worker_may_read_it() -> None:
    """Though its caller has gone: it is read where it is, like those before and behind it."""

    async def main() -> None:
        async with toy("toy_model:in_place") as backend:
            pid, intake = backend.info["pid"], backend._intake

            def received(text: str) -> asyncio.Task[Any]:
                item = intake.lend(shared.LEAST)
                assert item is not None
                item[:] = f'"{text}'.ljust(shared.LEAST - 1).encode() + b'"'
                return asyncio.create_task(backend.run([item], Call("infer")))

            first, given_up, third = map(received, ("first", "second", "third"))
            await turns_until(lambda: os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG))
            given_up.cancel()
            await asyncio.wait([given_up])
            del given_up
            rest = []
            while (item := intake.lend(shared.LEAST)) is not None:
                item[:] = b"!" * shared.LEAST
                rest.append(item)
            assert len(rest) == 509
            os.kill(pid, signal.SIGCONT)
            assert json.loads((await first)[0]) == ["first"]
            assert json.loads((await third)[0]) == ["first", "second", "third"]
            del first, third
            assert [intake.lend(shared.LEAST) is None for _ in range(4)] == [False] * 4

    run(main())
