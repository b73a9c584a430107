"""What a worker process may do wrong, and what its callers and its operator read of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from carpool.backends.process import shared
from carpool.errors import Crashed
from tests.backends.test_process import pid_in, run, texts_in, toy


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


def unsent() -> list[bytes]:
    """A batch that is larger than what a socket takes, and that no shared memory does."""
    return [b'"b%s"' % (b" " * (shared.LEAST - 4))]
