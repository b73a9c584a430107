"""What a worker process may do wrong, and what its callers and its operator read of it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import platform
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from carpool.backends.process import parent, shared
from carpool.backends.process.parent import ProcessBackend
from carpool.errors import BatchFailed, Crashed, ModelError, Unavailable, Unsupported
from tests.backends.test_process import large, pid_in, run, texts_in, toy, turns_until
from tests.support.servers import is_running


@pytest.fixture(autouse=True)
def _toy_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_a_worker_that_died_is_done_with_also_where_its_own_child_keeps_the_socket() -> None:
    """With bytes on the way to it: its batch fails at once, and its replacement serves on."""

    async def main() -> None:
        async with toy() as backend:
            dead = backend._latest
            assert dead is not None
            await backend.run([b'"fork"'])
            batches = [backend.run([b'"die"']), backend.run(unsent())]
            answers = await asyncio.wait_for(asyncio.gather(*batches, return_exceptions=True), 2)
            assert isinstance(answers[0], Crashed)
            assert texts_in(answers[1]) == ["b"]
            pid = pid_in(answers[1])
            backend._end(dead, "took its time")  # as a timer that was set for it may find
            assert pid_in(await backend.run([b'"c"'])) == pid
            assert backend.trouble() is None

    run(main())


@pytest.mark.parametrize("junk", ["not msgpack", "no message", "bad text"])
def test_a_worker_that_sends_what_is_no_answer_is_ended_with_its_batch(junk: str) -> None:
    """The caller does not wait for another."""

    async def main() -> None:
        async with toy() as backend:
            with pytest.raises(Crashed, match="the worker process sent what is no answer"):
                await asyncio.wait_for(backend.run([b'"junk"', f'"{junk}"'.encode()]), 5)
            assert texts_in(await backend.run([b'"b"'])) == ["b"]

    run(main())


def test_a_worker_that_answers_something_else_is_ended_with_its_batch() -> None:
    """What it would say next is nobody's either; who asks is not to blame."""

    async def main() -> None:
        async with toy() as backend:
            with pytest.raises(Crashed, match="the worker process answered something else"):
                await backend.run([b'"out of step"'])
            assert "answered something else" in str(backend.trouble())
            assert texts_in(await backend.run([b'"b"'])) == ["b"]

    run(main())


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("lone surrogate", "ValueError", "bad ? name"),
        ("no text", "Mute", "its text cannot be had: RuntimeError"),
        ("exit", "SystemExit", "4"),
        ("interrupt", "KeyboardInterrupt", ""),
    ],
)
def test_whatever_a_model_raises_fails_its_batch_alone(text: str, kind: str, message: str) -> None:
    """Also where its text cannot be sent or had, and where it means to end the process: others need that."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            with pytest.raises(BatchFailed, match=f"the model raised {kind}") as caught:
                await backend.run([json.dumps(text).encode()])
            assert str(caught.value.__cause__) == message
            with pytest.raises(Unsupported, match="no: 3"):
                await backend.run([b'"odd detail"'])
            assert pid_in(await backend.run([b'"b"'])) == pid

    run(main())


def test_a_model_that_exits_fails_its_batch_also_while_the_next_is_prepared() -> None:
    """Which is answered, by the same process."""

    async def main() -> None:
        async with toy("toy_model:ahead") as backend:
            pid = pid_in(await backend.run(large("a")))
            batches = (backend.run(large(text)) for text in ("exit", "exit early", "b"))
            *failed, other = await asyncio.gather(*batches, return_exceptions=True)
            assert [str(error) for error in failed] == ["the model raised SystemExit"] * 2
            assert pid_in(other) == pid

    run(main())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("lone surrogate", r"ValueError: bad \? name"),
        ("no text", "Mute: its text cannot be had: RuntimeError"),
        ("exit", "SystemExit: 4"),
        ("describe itself", "TypeError: Encoding objects of type object is unsupported"),
    ],
)
def test_whatever_keeps_a_model_from_being_loaded_is_said_at_the_start(how: str, words: str) -> None:
    """Instead of that a process died."""

    async def main() -> None:
        backend = ProcessBackend("toy_model:fail_to", {"how": how})
        with pytest.raises(ModelError, match=f"the model cannot be loaded: {words}"):
            await backend.start(lambda: None)
        await backend.close()

    run(main())


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("die", r"died \(signal SIGKILL\)"),
        ("vanish", r"died \(exit status 7\)"),
        ("hang up", "hung up"),
    ],
)
def test_how_a_worker_died_is_said(
    text: str, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its caller, by the backend, and in the log; the parent does not end it before it has ended."""
    monkeypatch.setattr(parent, "_EXIT_SECONDS", 0.1 if text == "hang up" else 10)

    async def main() -> None:
        async with toy() as backend:
            with pytest.raises(Crashed, match=f"^the worker process {how}: it is being replaced; try again$"):
                await backend.run([json.dumps(text).encode()])
            assert re.match(f"the worker process {how} and is being replaced", str(backend.trouble()))
            await turns_until(lambda: any(record.message == "worker ended" for record in caplog.records))
            assert re.match(how, caplog.records[0].__dict__["fate"])

    run(main())


def test_a_worker_that_dies_while_it_loads_the_model_is_said_to() -> None:
    """Nobody is to try again: the server does, or ends."""

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {"crash": True})
        with pytest.raises(Crashed) as caught:
            await backend.start(lambda: None)
        assert str(caught.value) == "the worker process died while it loaded the model (exit status 3)"
        await backend.close()

    run(main())


def test_a_model_that_hangs_while_it_is_loaded_is_ended_and_tried_again(tmp_path: Path) -> None:
    """At the start, which fails, and when a worker is replaced; what waits for that one is told."""

    async def main() -> None:
        marker = tmp_path / "loaded"
        backend = ProcessBackend("toy_model:hang", {"marker": str(marker)})
        await backend.start(lambda: None)
        backend._load_timeout = 0.3  # in which a busy machine may not have loaded the first
        await asyncio.gather(backend.run([b'"die"']), return_exceptions=True)
        words = "the model takes too long to load: allowed: 0.3 s"
        with pytest.raises(Unavailable, match=words):
            await backend.run([b'"a"'])
        assert words in str(backend.trouble())
        backend._load_timeout = 60
        marker.unlink()
        await turns_until(lambda: backend.trouble() is None)
        await backend.close()
        backend._load_timeout = 0.3
        with pytest.raises(ModelError, match=words):
            await backend.start(lambda: None)
        await backend.close()

    run(main())


@pytest.mark.parametrize("seconds", [0, 1000], ids=["loaded", "loading"])
def test_a_model_that_is_too_large_is_refused_at_the_start(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it takes; else its first input would be blamed, or nothing end it."""
    if not seconds:  # it is not looked at before
        monkeypatch.setattr(parent, "_LOOK_SECONDS", 60)

    async def main() -> None:
        backend = ProcessBackend("toy_model:large", {"seconds": seconds}, max_memory=150 * 2**20)
        with pytest.raises(ModelError, match=r"^the model takes \d+ MiB of memory: allowed: 150 MiB$"):
            await backend.start(lambda: None)
        await backend.close()

    run(main())


def test_a_worker_that_the_system_has_no_room_for_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first."""
    spawn = asyncio.create_subprocess_exec
    refusals = [OSError(errno.EAGAIN, "no more processes"), OSError(errno.EMFILE, "no more files")]

    async def refuse(*arguments: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await spawn(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {})
        with pytest.raises(Unavailable, match=r"no worker process can be started: .*no more files"):
            await backend.start(lambda: None)
        await turns_until(lambda: "no more processes" in str(backend.trouble()))
        await turns_until(lambda: backend.trouble() is None)
        assert texts_in(await backend.run([b'"a"'])) == ["a"]
        await backend.close()

    run(main())


def test_the_pause_before_a_replacement_grows_with_loads_that_fail_and_not_with_inputs_that_kill(
    tmp_path: Path,
) -> None:
    """An innocent caller would wait for those."""

    async def main() -> None:
        marker = tmp_path / "loaded"
        backend = ProcessBackend("toy_model:hang", {"marker": str(marker)})
        await backend.start(lambda: None)
        for _ in range(4):
            marker.unlink(missing_ok=True)
            await asyncio.gather(backend.run([b'"die"']), return_exceptions=True)
        assert backend._back_off <= 2 * parent._FIRST_BACK_OFF
        marker.touch()
        backend._load_timeout = 0.01
        await turns_until(lambda: backend._back_off > 4 * parent._FIRST_BACK_OFF)
        await backend.close()

    run(main())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
def test_what_a_batch_has_freed_is_there_for_the_next() -> None:
    """Mapped anew, page by page, it was a third of the time that torch takes for pictures."""

    async def main() -> None:
        async with toy() as backend:
            first, *later = json.loads((await backend.run([b'"faults"']))[0])
            assert max(later) < first / 10

    run(main())


def test_what_a_model_starts_can_be_ended_by_it() -> None:
    """The worker lets signals pass; a program or a fork of it does not."""

    async def main() -> None:
        async with toy() as backend:
            (statuses,) = await backend.run([b'"end"'])
            assert json.loads(statuses) == [-signal.SIGTERM, -signal.SIGTERM]

    run(main())


def test_no_signal_to_the_servers_group_reaches_a_worker_and_none_that_stops_ends_it() -> None:
    """A terminal signals the group, a service manager every process."""

    async def main() -> None:
        async with toy() as backend:
            pid = pid_in(await backend.run([b'"a"']))
            assert os.getpgid(pid) == pid
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
            assert pid_in(await backend.run([b'"b"'])) == pid

    run(main())


@pytest.mark.parametrize("ends", ["die", "vanish", "close"])
def test_what_a_model_has_started_ends_with_its_worker(ends: str) -> None:
    """However that ends."""

    async def main() -> None:
        async with toy() as backend:
            (started,) = await backend.run([b'"start"'])
            if ends == "close":
                await backend.close()
            else:
                await asyncio.gather(backend.run([json.dumps(ends).encode()]), return_exceptions=True)
            await turns_until(lambda: not is_running(int(started)))

    run(main())


def test_a_thread_of_the_models_own_does_not_hold_its_worker(tmp_path: Path) -> None:
    """What it wanted done at the exit is."""

    async def main() -> None:
        async with toy() as backend:
            await backend.run([b'"thread"'])
            await backend.run([b'"at exit"', json.dumps(f"{tmp_path}/done").encode()])
            await asyncio.wait_for(backend.close(), 4)
            assert (tmp_path / "done").exists()

    run(main())


def unsent() -> list[bytes]:
    """A batch that is larger than what a socket takes, and that no shared memory does."""
    return [b'"b%s"' % (b" " * (shared.LEAST - 4))]
