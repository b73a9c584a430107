"""`@batched`: write the function for many, call it for one."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

from carpool.backends.callable import BatchFunction
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy, PolicyName
from carpool.runtime.batcher import Batcher
from carpool.runtime.blocking import BlockingBatcher

In = TypeVar("In")
Out = TypeVar("Out")


class BatchedFunction(Generic[In, Out]):
    """A batch function that is called with one input and batches by itself.

    `await f(x)` is one in, one out; `await f.map(xs)` is many; `f.blocking(x)` is for threads. Every event
    loop has a queue of its own, and so have the threads.
    """

    __name__: str

    def __init__(self, function: BatchFunction[In, Out], policy: BatchPolicy, limits: Limits) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._policy = policy
        self._limits = limits
        self._batchers: WeakKeyDictionary[asyncio.AbstractEventLoop, Batcher[In, Out]] = WeakKeyDictionary()
        self.blocking = BlockingBatcher(function, policy, limits)

    def __repr__(self) -> str:
        return f"<batched {getattr(self._function, '__qualname__', self._function)}: {self._policy}>"

    def __call__(self, item: In) -> Coroutine[Any, Any, Out]:
        """One item in, its result out."""
        return self.batcher.submit(item)

    def map(self, items: Iterable[In]) -> Coroutine[Any, Any, list[Out]]:
        """Many items in, their results out, in the same order."""
        return self.batcher.map(items)

    @property
    def batcher(self) -> Batcher[In, Out]:
        """The batcher of the running event loop."""
        loop = asyncio.get_running_loop()
        if (batcher := self._batchers.get(loop)) is None:
            batcher = Batcher(self._function, self._policy, self._limits, name=self._name)
            self._batchers[loop] = batcher
        return batcher

    @property
    def _name(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)


@overload
def batched(function: Callable[[list[In]], Awaitable[Iterable[Out]]], /) -> BatchedFunction[In, Out]: ...
@overload
def batched(function: Callable[[list[In]], Iterable[Out]], /) -> BatchedFunction[In, Out]: ...
@overload
def batched(
    *,
    policy: PolicyName = ...,
    max_batch_size: int = ...,
    max_wait: float = ...,
    max_in_flight: int = ...,
    max_queue_size: int | None = ...,
    queue_timeout: float | None = ...,
    batch_timeout: float | None = ...,
) -> _Decorator: ...
def batched(
    function: BatchFunction[Any, Any] | None = None,
    /,
    *,
    policy: PolicyName = "adaptive",
    max_batch_size: int = 32,
    max_wait: float = 0.1,
    max_in_flight: int = 1,
    max_queue_size: int | None = None,
    queue_timeout: float | None = None,
    batch_timeout: float | None = None,
) -> Any:
    """Decorate a function, async or not, from a list of inputs to a list of as many results.

    The settings are those of `BatchPolicy` and `Limits`; times are in seconds. Raises `ConfigError` for one
    that is out of range.
    """
    batch_policy = BatchPolicy(policy, max_batch_size, max_wait)
    limits = Limits(max_in_flight, max_queue_size, queue_timeout, batch_timeout)
    if function is None:
        return _Decorator(batch_policy, limits)
    return BatchedFunction(function, batch_policy, limits)


class _Decorator:
    """What `@batched(...)` returns: it still waits for the function."""

    def __init__(self, policy: BatchPolicy, limits: Limits) -> None:
        self._policy = policy
        self._limits = limits

    @overload
    def __call__(
        self, function: Callable[[list[In]], Awaitable[Iterable[Out]]]
    ) -> BatchedFunction[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[list[In]], Iterable[Out]]) -> BatchedFunction[In, Out]: ...
    def __call__(self, function: Any) -> Any:
        return BatchedFunction(function, self._policy, self._limits)
