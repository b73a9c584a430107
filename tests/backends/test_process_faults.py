"""What a worker process may do wrong, and what its callers and its operator read of it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from carpool.backends.process import shared
from carpool.backends.process.parent import ProcessBackend
from carpool.errors import BatchFailed, Crashed, ModelError, Unsupported
from tests.backends.test_process import large, pid_in, run, texts_in, toy


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


def unsent() -> list[bytes]:
    """A batch that is larger than what a socket takes, and that no shared memory does."""
    return [b'"b%s"' % (b" " * (shared.LEAST - 4))]
