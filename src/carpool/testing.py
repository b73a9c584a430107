"""For testing programs that use carpool, and carpool itself: time that does not pass, a backend to steer.

`run` runs a coroutine on a loop whose clock jumps to the next timer instead of waiting, so a test of a
100 ms wait takes no time and is exact. `FakeBackend` records its batches and answers when it is told to.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeVar

from carpool.core.replica import Capacity

Value = TypeVar("Value")


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that never waits: where the loop would sleep, it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits and no timer is set: the test would hang")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: timers fire in order and at once. Threads and sockets do not fit in."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since the loop was made, in virtual time."""
        return self._virtual.now


def run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Run a coroutine to its end on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


class FakeBackend:
    """A backend for tests: a batch takes `seconds`, and each item's result is the item itself.

    Put an exception in `outcomes` to fail the next batch, or a list to answer it; `batches` records what
    came, `left_at` when.
    """

    def __init__(self, seconds: float = 0.0, concurrency: int | None = 1) -> None:
        self.capacity = Capacity(in_flight=concurrency)
        self.seconds = seconds
        self.outcomes: list[Sequence[Any] | BaseException] = []
        self.batches: list[list[Any]] = []
        self.left_at: list[float] = []
        self.started = False
        self.closed = False
        self._trouble: str | None = None
        self._on_change: Callable[[], None] = lambda: None

    async def start(self, on_change: Callable[[], None]) -> None:
        """Remember that it was started."""
        self.started = True
        self._on_change = on_change

    def change(self, *, trouble: str | None = None, capacity: Capacity | None = None) -> None:
        """Get into trouble, or out of it; take more or less from now on."""
        self._trouble = trouble
        self.capacity = capacity or self.capacity
        self._on_change()

    async def run(self, items: Sequence[Any], group: Hashable = None) -> Sequence[Any]:
        """Take the time, then give the next of `outcomes`, or the items back."""
        self.batches.append(list(items))
        self.left_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        outcome = self.outcomes.pop(0) if self.outcomes else items
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def trouble(self) -> str | None:
        """Why it cannot serve: it has not been started, or it has been closed."""
        if self.started and not self.closed:
            return self._trouble
        return "closed" if self.closed else "not started"
