"""The parent's end of a worker process: start it, send it batches, replace it when it dies.

It knows nothing of models or engines: what the worker loads is a name, "module:function", and arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from carpool.backends.process import frames
from carpool.core.replica import Capacity
from carpool.errors import (
    BackendError,
    BadInput,
    BatchFailed,
    BatchTooLarge,
    CarpoolError,
    ModelError,
    Unavailable,
    Unsupported,
)
from carpool.wire.call import Call, CountedJson

logger = logging.getLogger(__name__)

_FIRST_BACK_OFF = 0.1  # seconds before a dead worker is replaced; doubled each time until one answers a batch
_LONGEST_BACK_OFF = 30.0
_OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}  # Python's own, and torch's


class Worker:
    """One live worker process and the connection to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.info: dict[str, Any] = {}
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls) -> Worker:
        """Start the process; it has loaded nothing yet."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "carpool.backends.process.child", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def load(self, loader: str, arguments: dict[str, Any]) -> None:
        """Load the model. Raises what the worker says is wrong with it."""
        match await self.ask(frames.Load(loader, arguments)):
            case frames.Ready(info):
                self.info = info
            case frames.Refused(message, detail):
                raise ModelError(message, detail)
            case other:
                raise ModelError(f"the worker said {type(other).__name__} when asked to load")

    async def ask(self, message: frames.ToChild) -> frames.FromChild:
        """Send a message and wait for the reply. Raises `BackendError` if the worker dies."""
        try:
            self._writer.write(frames.encode(message))
            await self._writer.drain()
            prefix = await self._reader.readexactly(frames.LENGTH_BYTES)
            return frames.decode_from_child(await self._reader.readexactly(frames.body_length(prefix)))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BackendError("the worker process died", "it is being replaced; try again") from error

    def hang_up(self) -> None:
        """Tell the worker to finish: it exits when it has nothing left to read."""
        self._writer.close()

    def kill(self) -> None:
        """End it now; harmless when it is dead.

        Not by `process.kill()`, which first looks whether it is dead, and takes the exit status away from the
        loop that waits for it: that would then report status 255.
        """
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)


class ProcessBackend:
    """Runs batches in a worker process of its own, one at a time, and replaces the process when it dies.

    The worker calls `loader` ("module:function") with `arguments`, and `run` on what that returns.
    """

    def __init__(self, loader: str, arguments: dict[str, Any]) -> None:
        self.name = "worker"
        self.capacity = Capacity(in_flight=1)
        self.info: dict[str, Any] = {}
        self._loader = loader
        self._arguments = arguments
        self._worker: asyncio.Future[Worker] | None = None  # pending while a worker starts
        self._supervisor: asyncio.Task[None] | None = None
        self._trouble: str | None = "the model is not loaded yet"
        self._on_change: Callable[[], None] = lambda: None
        self._back_off = _FIRST_BACK_OFF
        self._batches = 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ProcessBackend {self._loader}: {self._trouble or 'well'}>"

    async def start(self, on_change: Callable[[], None]) -> None:
        """Start the worker and load the model; raises what is wrong with it."""
        self._on_change = on_change
        worker = await self._new_worker()
        self._coming().set_result(worker)
        self._supervisor = asyncio.create_task(self._supervise(worker))

    async def run(self, items: Sequence[bytes], group: Hashable = None) -> Sequence[Any]:
        """Run one batch of JSON values; one more for each, or the error of an item that the model refuses.

        `group` is a `Call`, or `None` for what the model does usually. While a worker is being replaced, this
        waits.
        """
        call = group if isinstance(group, Call) else None
        async with self._turn:
            if self._worker is None:
                raise Unavailable("the model is not loaded yet", "call start() first")
            worker = await asyncio.shield(self._worker)
            self._batches += 1
            number = self._batches
            try:
                reply = await worker.ask(frames.run(number, items, call))
            except (asyncio.CancelledError, BackendError):
                # It is dead, or it hangs, or nobody wants its answer: only a new one is sure to be idle. The
                # next batch must wait for that one, and not fail on this one before its end is noticed.
                worker.kill()
                self._coming()
                raise
            self._back_off = _FIRST_BACK_OFF
            return _results(reply, number)

    async def close(self) -> None:
        """Let the worker finish and wait until it has."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._tell("closed")
        if self._worker is not None and self._worker.done() and not self._worker.exception():
            worker = self._worker.result()
            worker.hang_up()
            await worker.process.wait()

    def trouble(self) -> str | None:
        """Why there is no worker to run a batch."""
        return self._trouble

    def _tell(self, trouble: str | None) -> None:
        self._trouble = trouble
        self._on_change()

    async def _new_worker(self) -> Worker:
        worker = await Worker.spawn()
        try:
            await worker.load(self._loader, self._arguments)
        except BaseException:
            worker.kill()
            worker.hang_up()
            await worker.process.wait()
            raise
        self.info = worker.info
        self._tell(None)
        return worker

    async def _supervise(self, worker: Worker) -> None:
        """Wait for the worker's end and replace it, for as long as this backend lives."""
        while True:
            status = await worker.process.wait()
            worker.hang_up()
            self._coming()
            self._tell(f"the worker process ended with status {status} and is being replaced")
            logger.error("worker died", extra={"status": status, "pid": worker.process.pid})
            worker = await self._replace()

    async def _replace(self) -> Worker:
        """A new worker, tried for with growing pauses. Batches wait for an attempt and share its failure."""
        while True:
            await asyncio.sleep(self._back_off)
            self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF)
            coming = self._coming()
            try:
                worker = await self._new_worker()
            except CarpoolError as error:
                self._tell(f"the worker process cannot be replaced: {error}")
                logger.exception("worker not replaced")
                coming.set_exception(Unavailable("no worker process", str(error)))
                coming.exception()  # seen: a failed attempt that no batch waited for is not a leak
            else:
                logger.info("worker replaced", extra={"pid": worker.process.pid})
                coming.set_result(worker)
                return worker

    def _coming(self) -> asyncio.Future[Worker]:
        """The worker that batches wait for from now on; pending, so not one that was there before."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_future()
        return self._worker


def _results(reply: frames.FromChild, number: int) -> list[Any]:
    match reply:
        case frames.Answer() if reply.number == number:
            return _paired(reply)
        case frames.Rejected(answered, message, detail) if answered == number:
            raise Unsupported(message, detail)
        case frames.Failed(answered, kind, message) if answered == number:
            failure = (BatchTooLarge if kind in _OUT_OF_MEMORY else BatchFailed)(f"the model raised {kind}")
            failure.__cause__ = RuntimeError(message)
            raise failure
        case _:
            raise BackendError("the worker process answered something else", "nothing of it was used")


def _paired(answer: frames.Answer) -> list[Any]:
    """The results, each with its number of tokens, where the model counted, or its item's error."""
    results: list[Any] = list(answer.results)
    for place, tokens in enumerate(answer.tokens):
        results[place] = CountedJson(results[place])
        results[place].tokens = tokens
    for place, message in answer.refused.items():
        results[place] = BadInput(message)
    for place, message in answer.failed.items():
        results[place] = BackendError("the model failed on this input", message)
    return results
