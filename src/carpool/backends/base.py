"""What a batcher knows of the place where its batches run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Backend(Protocol[In_contra, Out_co]):
    """Runs batches: the calling convention is `run`, the rest is its life.

    `concurrency` is how many batches it can usefully run at once, `None` where it cannot tell.
    """

    concurrency: int | None

    async def start(self) -> None:
        """Get ready to run batches; raises where that can never succeed."""
        ...

    async def run(self, items: Sequence[In_contra]) -> Sequence[Out_co]:
        """One result per item, in their order; an exception in a result's place is that item's error.

        Raises when the batch as a whole failed. Cancelled when the batch has taken too long.
        """
        ...

    async def close(self) -> None:
        """Release everything; harmless when repeated."""
        ...

    def trouble(self) -> str | None:
        """Why nothing can be served right now, in words; `None` when all is well."""
        ...
