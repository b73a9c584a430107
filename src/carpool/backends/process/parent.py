"""The parent's end of a worker process: start it, send it batches, replace it when it dies.

It knows nothing of models or engines: what the worker loads is a name, "module:function", and arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from carpool.backends.process import environment, frames, shared
from carpool.backends.process.connection import Connection, Reply, Unreadable
from carpool.backends.process.placement import ANYWHERE, Place
from carpool.backends.process.shared import Intake, SharedMemory
from carpool.core.replica import Capacity
from carpool.errors import (
    BackendError,
    BadInput,
    BatchFailed,
    BatchTooLarge,
    Crashed,
    Hung,
    ModelError,
    Raised,
    Unavailable,
    Unsupported,
)
from carpool.wire.base import Item
from carpool.wire.call import Call, Vector

logger = logging.getLogger(__name__)

# Seconds before a dead worker is replaced; doubled each time until one has a batch to run. That may be what
# ends it; where many do, the scheduler suspends the replica.
_FIRST_BACK_OFF = 0.1
_LONGEST_BACK_OFF = 10.0  # well within the time for which requests wait for a worker
_EXIT_SECONDS = 1.0  # a worker that has hung up by itself has ended by then, and its exit status says why
_FINISH_SECONDS = 10.0  # a worker has answered everything by then and only has to exit
_LOOK_SECONDS = 0.25  # between two looks at a worker's memory
_PING_SECONDS = 5.0  # between two questions to a worker with nothing to do, so that `/health` knows soon after
_CAREFUL_SECONDS = 10.0  # after a replacement: what was run before it is run again by then
_PAGE = resource.getpagesize()
_OUT_OF_STEP = "answered something else"  # as one does whose model forks, and lets the fork go on
_ALIVE = ""  # the fate of a worker that has none yet

# A second batch gains the time to bring it, and loses what would have joined it in the queue: nothing, if it is
# full, and less than it gains if it is large. A model of 5 ms, from one batch to the next
# (benchmarks/worker_transport.py): 32 items of 600 kB 15.1 ms one at a time, 11.0 two; 4 of 3 MB 12.0 and 8.0.
_SMALL_BATCHES = Capacity(in_flight=1, ahead=1)
_LARGE_BATCHES = Capacity(in_flight=2)


class Worker:
    """One live worker process and the connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, connection: Connection) -> None:
        self.process = process
        self.info: dict[str, Any] = {}
        self.fate = _ALIVE
        self.has_hung = False
        self._is_loaded = False
        self._connection = connection
        self._life = asyncio.create_task(self._live())

    @classmethod
    async def spawn(cls, memories: Sequence[SharedMemory] = ()) -> Worker:
        """Start the process, which is to share these memories; nothing is loaded yet. Raises `Unavailable`."""
        try:
            return await cls._spawn(memories)
        except OSError as error:  # no process, no file descriptor or no memory is left
            raise Unavailable("no worker process can be started", str(error)) from error

    @classmethod
    async def _spawn(cls, memories: Sequence[SharedMemory]) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, sock=ours)
            passed = (theirs.fileno(), *(memory.fd for memory in memories))
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "carpool.backends.process.child", *map(str, passed)),
                    pass_fds=passed,
                    env=environment.of_worker(os.environ),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # so that it can be ended with what it has started
                )
            except BaseException:
                connection.abort()
                raise
        return cls(process, connection)

    async def load(self, what: frames.Load) -> None:
        """Load the model. Raises what the worker says is wrong with it."""
        match await self.ask(what):
            case frames.Ready(info):
                self.info = info
                self._is_loaded = True
            case frames.Refused(message, detail, traceback):
                refusal = ModelError(message, detail)
                if traceback:
                    logger.error("%s", refusal, extra={"exception": traceback})
                raise refusal
            case other:
                raise ModelError(f"the worker said {type(other).__name__} when asked to load")

    async def ask(self, message: frames.ToChild, payload: Sequence[Item] = ()) -> frames.FromChild:
        """Send a message and wait for the reply. Raises `Crashed` if the worker dies."""
        return await self.reply(self.tell(message, payload))

    def tell(self, message: frames.ToChild, payload: Sequence[Item] = ()) -> Reply:
        """Send a message; the replies come in the order of the messages."""
        return self._connection.ask(message, payload)

    @property
    def unanswered(self) -> int:
        """How many messages it has not replied to yet."""
        return self._connection.unanswered

    async def reply(self, reply: Reply) -> frames.FromChild:
        """Wait for it. Raises `Crashed` if the worker dies."""
        try:
            return await reply
        except ConnectionError as error:
            if isinstance(error, Unreadable):
                self.end("sent what is no answer")
            fate = self.fate or await self._lost()
            detail = "it is being replaced; try again" if self._is_loaded else ""
            raise (Hung if self.has_hung else Crashed)(f"the worker process {fate}", detail) from error

    def memory(self) -> int:
        """The bytes of memory that it has; 0 when it is gone."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_bytes().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * _PAGE

    def hang_up(self) -> None:
        """Tell the worker to finish: it exits when it has nothing left to read."""
        self._connection.hang_up()

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        return await asyncio.shield(self._life)

    async def _lost(self) -> str:
        """What has become of it, where it has hung up: it ends by itself, or is ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended(), _EXIT_SECONDS)
        self.end("hung up")
        return self.fate

    async def _live(self) -> int:
        """Once the process has ended, end what it has started, and the connection, which that may keep."""
        status = await self.process.wait()
        self._kill_group()  # its number is no other's: while one of the group lives the system gives it to none
        while_loading = "" if self._is_loaded else " while it loaded the model"
        self.fate = self.fate or f"died{while_loading} ({_in_words(status)})"
        self._connection.abort()
        return status

    async def finish(self) -> None:
        """Hang up and wait for its end; a model that does not let go is not waited for long."""
        self.hang_up()
        try:
            await asyncio.wait_for(self.ended(), _FINISH_SECONDS)
        except TimeoutError:
            self.kill()
            await self.ended()

    def end(self, fate: str) -> None:
        """End it now, and say why. The first reason counts."""
        self.fate = self.fate or fate
        self.kill()

    def kill(self) -> None:
        """End it now, with what it has started; harmless when it is dead.

        Not by `process.kill()`, which first looks whether it is dead, and takes the exit status away from the
        loop that waits for it: that would then report status 255.
        """
        if self.process.returncode is None:
            self._kill_group()
        self._connection.abort()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: there are only dead ones
            os.killpg(self.process.pid, signal.SIGKILL)


class ProcessBackend:
    """Runs batches in a worker process of its own, one at a time, and replaces the process when it dies.

    It takes a second batch if that is full, or while they are large: the worker has it when the first is done,
    and reads a large one before. If it dies, the first is blamed and the second waits for the next worker. As
    either may have been at fault, a new worker gets one at a time for a while.

    The worker calls `loader` ("module:function") with `arguments`, and `run` on what that returns. It is ended
    and replaced as well when it takes more than `load_timeout` seconds for the first and `batch_timeout` for
    the second, or to answer when it has nothing to do, and when it takes more than `max_memory` bytes. It reads
    items that are in the `intake` where they are.
    """

    sends_at_once = True

    def __init__(
        self,
        loader: str,
        arguments: dict[str, Any],
        place: Place = ANYWHERE,
        *,
        load_timeout: float = math.inf,
        batch_timeout: float | None = None,
        max_memory: int | None = None,
        intake: Intake | None = None,
    ) -> None:
        self.name = place.name
        self.capacity = _SMALL_BATCHES
        self.info: dict[str, Any] = {}
        self._load = frames.Load(loader, arguments, place.device, list(place.cores))
        self._load_timeout = load_timeout
        self._batch_timeout = batch_timeout
        self._max_memory = max_memory
        self._worker: asyncio.Future[Worker] | None = None  # pending while a worker starts
        self._latest: Worker | None = None  # which may have ended meanwhile
        self._supervisor: asyncio.Task[None] | None = None
        self._trouble: str | None = "the model is not loaded yet"
        self._on_change: Callable[[], None] = lambda: None
        self._back_off = _FIRST_BACK_OFF
        self._numbers = count(1)
        self._turn = asyncio.Lock()
        self._careful_until = -math.inf
        self._memories = (SharedMemory(), SharedMemory())  # of the batch that runs, and of the next
        self._intake = Intake() if intake is None else intake
        self._of_intake = len(self._memories)  # the number by which the worker knows its memory
        self._last_uses: dict[int, asyncio.Future[Any]] = {}  # of each memory: it is written, or then read
        self._free_memories: asyncio.Queue[int] = asyncio.Queue()
        for memory in range(len(self._memories)):
            self._free_memories.put_nowait(memory)

    def __repr__(self) -> str:
        return f"<ProcessBackend {self._load.loader}: {self._trouble or 'well'}>"

    async def start(self, on_change: Callable[[], None]) -> None:
        """Start the worker and load the model; raises what is wrong with it, and tries again until `close`."""
        self._on_change = on_change
        try:
            worker = await self._new_worker()
        except Exception as error:
            self._tell(str(error))
            self._supervisor = asyncio.create_task(self._supervise(None))
            raise
        self._coming().set_result(worker)
        self._supervisor = asyncio.create_task(self._supervise(worker))

    def run(self, items: Sequence[Item], group: Hashable = None) -> Coroutine[Any, Any, Sequence[Any]]:
        """Run one batch of JSON values; one more for each, or the error of an item that the model refuses.

        `group` is a `Call`, or `None` for what the model does usually. A small batch is sent before this
        returns; while a worker is being replaced, it waits for the next.
        """
        call = group if isinstance(group, Call) else None
        sizes = list(map(len, items))
        if (total := sum(sizes)) >= shared.LEAST:
            if (starts := self._intake.find(items)) is not None:
                self._take(_LARGE_BATCHES)
                batch = frames.Run(next(self._numbers), sizes, call, self._of_intake, starts)
                return self._run(batch, items, self._send_early(batch, items))
            if total <= shared.MOST:
                self._take(_LARGE_BATCHES)
                return self._run_large(items, sizes, call)
        self._take(_SMALL_BATCHES)
        batch = frames.Run(next(self._numbers), sizes, call)
        return self._run(batch, items, self._send_early(batch, items))

    async def close(self) -> None:
        """Let the worker finish and wait until it has."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._tell("closed")
        if self._latest is not None:
            await self._latest.finish()

    def trouble(self) -> str | None:
        """Why there is no worker to run a batch."""
        return self._trouble

    async def _run_large(self, items: Sequence[Item], sizes: list[int], call: Call | None) -> list[Any]:
        async with self._brought(items) as memory:
            starts = list(accumulate(sizes[:-1], initial=0))
            batch = frames.Run(next(self._numbers), sizes, call, memory, starts)
            return await self._run(batch, (), self._send_early(batch))

    async def _run(
        self, batch: frames.Run, items: Sequence[Item], sent: tuple[Worker, Reply] | None
    ) -> list[Any]:
        """Wait for the batch's turn, and for its results. `items` are those that are nowhere else yet."""
        await self._turn.acquire()
        try:
            worker = await self._ready_worker()
            self._back_off = _FIRST_BACK_OFF
            if sent is None or sent[0] is not worker:
                sent = worker, self._send(worker, batch, items)
            overdue = self._overdue(worker)
            try:
                reply = await worker.reply(sent[1])
                self._end_if_grown(worker)
                if isinstance(reply, frames.Answer) and reply.failed:
                    self._log_failed(reply)
                return _results(reply, batch.number)
            # Only a new one is sure to be idle. The next batch must wait for that one, and not fail on this one
            # before its end is noticed.
            except Crashed:
                self._end(worker, _OUT_OF_STEP)  # unless it has met its fate
                raise
            except asyncio.CancelledError:
                self._end(worker, "was ended with a batch that was given up")
                raise
            finally:
                if overdue is not None:
                    overdue.cancel()
        finally:
            self._turn.release()

    def _log_failed(self, answer: frames.Answer) -> None:
        """One line for a batch: what failed on one item is mostly what failed on the others."""
        extra: dict[str, object] = {"loaded": self._load.arguments, "replica": self.name}
        extra |= {"items": len(answer.results), "failed": len(answer.failed)}
        extra["error"] = next(iter(answer.failed.values()))
        if answer.traceback:
            extra["exception"] = answer.traceback
        logger.warning("inputs failed", extra=extra)

    def _send_early(self, batch: frames.Run, items: Sequence[Item] = ()) -> tuple[Worker, Reply] | None:
        """Let the worker have a batch before its turn, behind one other at most."""
        if (worker := self._current()) is None:
            return None
        is_careful = time.monotonic() < self._careful_until
        if worker.unanswered > (0 if is_careful else 1):
            return None
        return worker, self._send(worker, batch, items)

    def _send(self, worker: Worker, batch: frames.Run, items: Sequence[Item] = ()) -> Reply:
        reply = worker.tell(batch, items if batch.memory is None else ())
        if batch.memory == self._of_intake:
            reply.add_done_callback(partial(_forget, items))
        elif batch.memory is not None:
            self._last_uses[batch.memory] = reply
        return reply

    def _overdue(self, worker: Worker) -> asyncio.TimerHandle | None:
        """What ends the worker if its batch takes too long."""
        if self._batch_timeout is None:
            return None
        fate = f"took more than {self._batch_timeout:g} s for a batch"

        def end() -> None:
            worker.has_hung = True
            self._end(worker, fate)

        return asyncio.get_running_loop().call_later(self._batch_timeout, end)

    @asynccontextmanager
    async def _brought(self, items: Sequence[Item]) -> AsyncIterator[int]:
        """The memory in which the worker finds a batch."""
        memory = await self._free_memories.get()
        writing = asyncio.ensure_future(asyncio.to_thread(self._memories[memory].write, items))
        self._last_uses[memory] = writing
        try:
            await asyncio.shield(writing)
            yield memory
        finally:  # not at once where nobody waits any more: the thread writes on, or the worker reads
            self._last_uses[memory].add_done_callback(lambda _: self._free_memories.put_nowait(memory))

    def _take(self, capacity: Capacity) -> None:
        if self.capacity != capacity:
            self.capacity = capacity
            self._on_change()

    def _tell(self, trouble: str | None) -> None:
        self._trouble = trouble
        self._on_change()

    async def _ready_worker(self) -> Worker:
        """The worker that is there, or that will be there soon."""
        if self._worker is None:
            raise Unavailable("the model is not loaded yet", "call start() first")
        if self._worker.done():
            return self._worker.result()
        try:
            async with asyncio.timeout(self._batch_timeout):
                return await asyncio.shield(self._worker)
        except TimeoutError:
            raise Unavailable("no worker process", "it is being replaced; try again") from None

    async def _new_worker(self) -> Worker:
        spawning = asyncio.create_task(Worker.spawn((*self._memories, self._intake.memory)))
        try:
            worker = await asyncio.shield(spawning)
            await self._have_it_load(worker)
        except BaseException:
            worker = await spawning  # to end it, it must be known: also where this was cancelled before it was
            worker.end("was not ready")
            await worker.ended()
            raise
        self._latest = worker
        self.info = worker.info
        self._tell(None)
        return worker

    async def _have_it_load(self, worker: Worker) -> None:
        """Load the model, in the time and in the memory that it may take."""
        loading = asyncio.create_task(worker.load(self._load))
        overdue_at = time.monotonic() + self._load_timeout
        try:
            while not (await asyncio.wait([loading], timeout=_LOOK_SECONDS))[0]:
                if time.monotonic() > overdue_at:
                    raise ModelError("the model takes too long to load", f"allowed: {self._load_timeout:g} s")
                self._refuse_large(worker)
            await loading
        finally:
            loading.cancel()
        self._refuse_large(worker)

    def _refuse_large(self, worker: Worker) -> None:
        """At the start, and not over the first batch, whose input would be blamed for it."""
        memory = worker.memory()
        if self._max_memory is not None and memory > self._max_memory:
            allowed = f"allowed: {self._max_memory >> 20} MiB"
            raise ModelError(f"the model takes {memory >> 20} MiB of memory", allowed)

    async def _supervise(self, worker: Worker | None) -> None:
        """Wait for the worker's end and replace it, for as long as this backend lives."""
        while True:
            if worker is not None:
                status = await self._ended(worker)
                self._end(worker, worker.fate)
                logger.error(
                    "worker ended", extra={"fate": worker.fate, "status": status, "pid": worker.process.pid}
                )
            worker = await self._replace()

    async def _ended(self, worker: Worker) -> int:
        """Wait for the worker's end, and see meanwhile that it is of use."""
        watches = [asyncio.create_task(watch(worker)) for watch in (self._watch_memory, self._watch_idle)]
        try:
            return await worker.ended()
        finally:
            for watch in watches:
                watch.cancel()

    async def _watch_idle(self, worker: Worker) -> None:
        """See that it answers while no batch waits: one that was stopped, or has deadlocked, looks well."""
        while self._batch_timeout is not None:
            await asyncio.sleep(_PING_SECONDS)
            if worker.unanswered:
                continue
            reply = worker.tell(frames.Ping())  # before anything else is: a batch that runs is answered first
            try:
                await asyncio.wait_for(worker.reply(reply), self._batch_timeout)
            except TimeoutError:
                self._end(worker, f"was idle and did not answer for {self._batch_timeout:g} s")
            except Crashed:
                return  # its end is seen to

    async def _watch_memory(self, worker: Worker) -> None:
        """Between batches it is seen to after each; this is for the batch that needs too much by itself."""
        while self._max_memory is not None:
            self._end_if_grown(worker)
            await asyncio.sleep(_LOOK_SECONDS)

    def _end_if_grown(self, worker: Worker) -> None:
        if self._max_memory is not None and worker.memory() > self._max_memory:
            self._end(worker, f"took more than {self._max_memory >> 20} MiB of memory")

    def _end(self, worker: Worker, fate: str) -> None:
        """End a worker; from now on everybody waits for the next one, unless that has come by now."""
        worker.end(fate)
        if worker is self._current():
            self._coming()
            self._tell(f"the worker process {worker.fate} and is being replaced")

    async def _replace(self) -> Worker:
        """A new worker, tried for with growing pauses. Batches wait for an attempt and share its failure."""
        while True:
            await asyncio.sleep(self._back_off)
            self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF)
            coming = self._coming()
            try:
                worker = await self._new_worker()
            except Exception as error:  # also of the system, where it has no process left to give
                self._tell(f"the worker process cannot be replaced: {error}")
                logger.exception("worker not replaced")
                coming.set_exception(Unavailable("no worker process", str(error)))
                coming.exception()  # seen: a failed attempt that no batch waited for is not a leak
            else:
                self._careful_until = time.monotonic() + _CAREFUL_SECONDS
                logger.info("worker replaced", extra={"pid": worker.process.pid})
                coming.set_result(worker)
                return worker

    def _current(self) -> Worker | None:
        """The worker that batches are sent to, if there is one."""
        if self._worker is None or not self._worker.done() or self._worker.exception() is not None:
            return None
        return self._worker.result()

    def _coming(self) -> asyncio.Future[Worker]:
        """The worker that batches wait for from now on; pending, so not one that was there before."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_future()
        return self._worker


def _in_words(status: int) -> str:
    """A process's exit status; those below 0 are signals."""
    if status >= 0:
        return f"exit status {status}"
    known = {each.value: each.name for each in signal.Signals}
    return f"signal {known.get(-status, -status)}"


def _forget(items: Sequence[Item], _: Reply) -> None:
    """The worker has read them. Until then this is who has them, where the callers have gone."""


def _results(reply: frames.FromChild, number: int) -> list[Any]:
    match reply:
        case frames.Answer() if reply.number == number:
            return _paired(reply)
        case frames.Rejected(answered, message, detail) if answered == number:
            raise Unsupported(message, detail)
        case frames.Failed(answered, kind, message, is_too_large, traceback) if answered == number:
            failure = (BatchTooLarge if is_too_large else BatchFailed)(f"the model raised {kind}")
            failure.__cause__ = Raised(kind, message, traceback)
            raise failure
        case _:
            raise Crashed(f"the worker process {_OUT_OF_STEP}", "nothing of it was used; try again")


def _paired(answer: frames.Answer) -> list[Any]:
    """The results, those that are vectors with what the model said of them, or their items' errors."""
    results: list[Any] = list(answer.results)
    for place, (tokens, floats) in enumerate(zip(answer.tokens, answer.floats, strict=True)):
        results[place] = vector = Vector(results[place])
        vector.tokens, vector.floats = tokens, floats
    for place, message in answer.refused.items():
        results[place] = BadInput(message)
    for place, message in answer.failed.items():
        results[place] = BackendError("the model failed on this input", message)
    return results
