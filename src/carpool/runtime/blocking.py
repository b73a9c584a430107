"""The facade for threads: the same batching for code that does not use asyncio.

It runs an event loop of its own in a background thread, started at first use; callers in any number of
threads block until their own result is there.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from carpool.backends.callable import BatchFunction, CallableBackend
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import ShuttingDown
from carpool.runtime.batcher import Batcher, waits_for_itself

In = TypeVar("In")
Out = TypeVar("Out")
Value = TypeVar("Value")


class BlockingBatcher(Generic[In, Out]):
    """A `Batcher` to call from threads: `batcher(item)` blocks and returns the item's result.

    A process that is forked has one of its own, which knows nothing of what was waiting in the other.
    """

    def __init__(
        self,
        function: BatchFunction[In, Out],
        policy: BatchPolicy | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._function = function
        self._policy = policy
        self._limits = limits or Limits()
        self._closed = False
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Nothing runs yet."""
        self._backend = CallableBackend(self._function, self._limits.max_in_flight)
        self._batcher: Batcher[In, Out] = Batcher(self._backend, self._policy, self._limits)
        self._lock = threading.Lock()  # around what may be done only while the loop runs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = asyncio.Event()

    def __repr__(self) -> str:
        return f"<BlockingBatcher of {self._batcher!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, item: In, timeout: float | None = None) -> Out:
        """One item in, its result out. Raises `TimeoutError` after `timeout` seconds, and gives up on it."""
        return self._wait_for(self._batcher.submit(item), timeout)

    def map(self, items: Iterable[In], timeout: float | None = None) -> list[Out]:
        """Many items in, their results out, in the same order."""
        return self._wait_for(self._batcher.map(items), timeout)

    def close(self) -> None:
        """Answer everything admitted, then stop the thread; harmless when repeated."""
        with self._lock:
            self._closed = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._closing.set)
        if self._thread is not None:
            self._thread.join()

    def _wait_for(self, coroutine: Coroutine[Any, Any, Value], timeout: float | None) -> Value:
        if self._backend.is_inside() or threading.current_thread() is self._thread:
            coroutine.close()
            raise waits_for_itself(self)
        with self._lock:
            if self._closed:
                coroutine.close()
                raise _closed()
            loop = self._loop or self._start()
            answer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return answer.result(timeout)
        except CancelledError:
            raise _closed() from None
        finally:
            answer.cancel()  # does nothing unless the wait was given up

    def _start(self) -> asyncio.AbstractEventLoop:
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=self._run, args=[runner], name="carpool", daemon=True)
        self._thread.start()
        return self._loop

    def _run(self, runner: asyncio.Runner) -> None:
        """The thread. Whatever ends the loop, nobody is left waiting: the runner cancels who still does."""
        with runner:
            try:
                runner.run(self._serve())
            finally:
                with self._lock:
                    self._closed = True
                    self._loop = None

    async def _serve(self) -> None:
        await self._closing.wait()
        await self._batcher.close()


def _closed() -> ShuttingDown:
    return ShuttingDown("shutting down", "this batcher is closed")


_all: WeakSet[BlockingBatcher[Any, Any]] = WeakSet()


def _begin_anew() -> None:
    """In a process just forked: it has a copy of everything but the threads, and locks in any state."""
    for batcher in _all:
        batcher._begin()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew)
