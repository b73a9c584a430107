"""A Python function in this process as a backend: what `@carpool.batched` and `carpool.Batcher` run.

An async function runs on the event loop; a plain one runs in a thread, so that it blocks nobody.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, cast

from carpool.core.replica import Capacity
from carpool.errors import BackendError

In = TypeVar("In")
Out = TypeVar("Out")

BatchFunction = Callable[[list[In]], Iterable[Out] | Awaitable[Iterable[Out]]]


class CallableBackend(Generic[In, Out]):
    """Runs batches in `function`, which takes a list of inputs and returns one result for each, in order."""

    def __init__(self, function: BatchFunction[In, Out], concurrency: int = 1) -> None:
        self.capacity = Capacity(in_flight=concurrency)
        self._function = function
        self._threads: ThreadPoolExecutor | None = None
        if not _is_async(function):
            self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="carpool")
        self.sends_at_once = self._threads is not None  # an async function may compute before it waits

    async def start(self, on_change: Callable[[], None]) -> None:
        """Nothing to do: a function is always ready."""

    async def run(self, items: Sequence[In], group: Hashable = None) -> Sequence[Out]:
        """Call the function with a list of its own, which it may change."""
        if self._threads is None:
            results: Any = await cast("Awaitable[Any]", self._function(list(items)))
        else:
            results = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._function, list(items)
            )
        return _as_list(results)

    async def close(self) -> None:
        """Let the threads go; one that still runs finishes by itself."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def trouble(self) -> str | None:
        """A function is never out of order."""
        return None


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
