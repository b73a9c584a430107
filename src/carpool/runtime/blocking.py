"""The facade for threads: the same batching for code that does not use asyncio.

It runs an event loop of its own in a background thread, started at first use; callers in any number of
threads block until their own result is there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from carpool.backends.callable import BatchFunction
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import ShuttingDown
from carpool.runtime.batcher import Batcher

In = TypeVar("In")
Out = TypeVar("Out")
Value = TypeVar("Value")


class BlockingBatcher(Generic[In, Out]):
    """A `Batcher` to call from threads: `batcher(item)` blocks and returns the item's result."""

    def __init__(
        self,
        function: BatchFunction[In, Out],
        policy: BatchPolicy | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._batcher = Batcher(function, policy, limits)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

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
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._batcher.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _wait_for(self, coroutine: Coroutine[Any, Any, Value], timeout: float | None) -> Value:
        try:
            loop = self._running_loop()
        except ShuttingDown:
            coroutine.close()
            raise
        answer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return answer.result(timeout)
        except CancelledError:
            raise ShuttingDown("shutting down", "this batcher is closed") from None
        finally:
            answer.cancel()  # does nothing unless the wait was given up

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise ShuttingDown("shutting down", "this batcher is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="carpool", daemon=True)
                self._thread.start()
            return self._loop
