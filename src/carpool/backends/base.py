"""What a batcher knows of the place where its batches run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from carpool.core.replica import Capacity

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Backend(Protocol[In_contra, Out_co]):
    """Runs batches: the calling convention is `run`, the rest is its life.

    It may have a `name`, by which observers know it. With `gives_up = True`, where to cancel `run` ends the
    work and is cheap, a batch is cancelled once nobody waits for it any more. With `sends_at_once = True`,
    where `run` sends the batch off before it waits for anything, it runs before the last one is answered.
    Where `run` is no coroutine function but returns an awaitable, what it does before it returns is done as
    soon as the batch leaves.

    `capacity` is the most that it takes, as far as it knows; it may learn more while it runs.
    """

    capacity: Capacity

    async def start(self, on_change: Callable[[], None]) -> None:
        """Get ready to run batches; raises where that can never succeed.

        `on_change` is to be called whenever `capacity` or `trouble()` has changed.
        """
        ...

    def run(self, items: Sequence[In_contra], group: Hashable = None) -> Awaitable[Sequence[Out_co]]:
        """One result per item, in their order; an exception in a result's place is that item's error.

        `group` is what all of them have in common beside the batch: items of different groups never meet.
        Raises when the batch as a whole failed. Cancelled when the batch has taken too long.
        """
        ...

    async def close(self) -> None:
        """Release everything; harmless when repeated."""
        ...

    def trouble(self) -> str | None:
        """Why nothing can be served right now, in words; `None` when all is well."""
        ...
