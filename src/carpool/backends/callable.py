"""A Python function in this process as a backend: what `@carpool.batched` and `carpool.Batcher` run.

An async function runs on the event loop; a plain one runs in a thread, so that it blocks nobody. The threads
are no executor's: one that hangs is left alone, another takes its place, and the program may end all the same.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence, Set
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from carpool.core.replica import Capacity
from carpool.errors import BackendError, BatchFailed, BatchTooLarge, CarpoolError

In = TypeVar("In")
Out = TypeVar("Out")

BatchFunction = Callable[[list[In]], Iterable[Out] | Awaitable[Iterable[Out]]]
Outcome = list[Any] | CarpoolError

_LAST_SECONDS = 2.0  # for what still runs when the program ends


class CallableBackend(Generic[In, Out]):
    """Runs batches in `function`, which takes a list of inputs and returns one result for each, in order."""

    def __init__(self, function: BatchFunction[In, Out], concurrency: int = 1) -> None:
        self.capacity = Capacity(in_flight=concurrency)
        self._function = function
        self._is_async = _is_async(function)
        self.sends_at_once = not self._is_async  # an async function may compute before it waits
        self._idle: list[_Thread] = []
        self._busy: set[threading.Thread] = set()
        weakref.finalize(self, _dismiss, self._idle)  # not every batcher is closed

    async def start(self, on_change: Callable[[], None]) -> None:
        """Nothing to do: a function is always ready."""

    async def run(self, items: Sequence[In], group: Hashable = None) -> Sequence[Out]:
        """Call the function with a list of its own, which it may change."""
        if self._is_async:
            return _as_list(await cast("Awaitable[Any]", self._function(list(items))))
        thread = self._free_thread()
        self._busy.add(thread)
        try:
            outcome = await thread.call(self._function, list(items))
        except BaseException:  # nobody waits for it any more; it may hang, so it is not used again
            thread.dismiss()
            raise
        finally:
            self._busy.discard(thread)
        self._idle.append(thread)
        if isinstance(outcome, CarpoolError):
            raise outcome
        return outcome

    def is_inside(self) -> bool:
        """Whether the function is what calls this, from the thread that a batch runs in."""
        return threading.current_thread() in self._busy

    async def close(self) -> None:
        """Let the threads go; one that still runs finishes by itself."""
        _dismiss(self._idle)

    def trouble(self) -> str | None:
        """A function is never out of order."""
        return None

    def _free_thread(self) -> _Thread:
        while self._idle:
            thread = self._idle.pop()
            if thread.is_alive():  # not those of a parent process
                return thread
        return _Thread()


class _Thread(threading.Thread):
    """Makes one call after the other."""

    def __init__(self) -> None:
        super().__init__(name="carpool", daemon=True)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.start()

    def call(self, function: Callable[[list[Any]], Any], items: list[Any]) -> asyncio.Future[Outcome]:
        """What the function returns, as a list, or the error that it raises. It never fails itself."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def call() -> None:
            outcome = _outcome(function, items)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, outcome)

        self._calls.put(call)
        return future

    def dismiss(self) -> None:
        """End, once it has done what it does."""
        self._calls.put(None)

    def run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # and with it the items, while there is nothing to do


def batch_error(error: BaseException) -> BackendError:
    """The error of a batch over which a function raised `error`, whatever that is."""
    kind = BatchTooLarge if isinstance(error, MemoryError) else BatchFailed
    try:
        detail = str(error)
    except BaseException:  # it is the function's own class, which may do anything
        detail = ""
    own = kind(f"the model raised {type(error).__name__}", detail)
    own.__cause__ = error
    return own


def _outcome(function: Callable[[list[Any]], Any], items: list[Any]) -> Outcome:
    """What comes of a call. Results are made a list here, in the thread: a generator works only then.

    Whatever is raised is an outcome, also what ends programs, and what a future refuses to carry.
    """
    try:
        return _as_list(function(items))
    except CarpoolError as error:
        return error
    except BaseException as error:
        return batch_error(error)


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable; an object counts by its `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (callability is not the question)
    )


def _as_list(results: Any) -> list[Any]:
    """The results in order. Arrays and tensors give their rows; what has no order of its own is refused."""
    if isinstance(results, Iterable) and not isinstance(results, (str, bytes, Mapping, Set)):
        return list(results)
    raise BackendError(
        f"the batch function returned {type(results).__name__}",
        "it must return a list with exactly one result per input, in their order",
    )


def _dismiss(threads: list[_Thread]) -> None:
    while threads:
        threads.pop().dismiss()


@atexit.register
def _end() -> None:
    """Give what still runs a moment to end: native code in a daemon may crash an interpreter that ends."""
    threads = [thread for thread in threading.enumerate() if isinstance(thread, _Thread)]
    for thread in threads:
        thread.dismiss()
    until = time.monotonic() + _LAST_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
