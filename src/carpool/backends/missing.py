"""The backend of a model that is not there: it says why when it is started, and leaves the others be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Never

from carpool.core.replica import Capacity
from carpool.errors import CarpoolError


class Missing:
    """In the place of what could not be made, for the reason `error`."""

    name = "missing"
    capacity = Capacity()

    def __init__(self, error: CarpoolError) -> None:
        self._error = error

    async def start(self, on_change: Callable[[], None]) -> Never:
        """Raise what is wrong."""
        raise self._error

    async def run(self, items: Sequence[bytes], group: Hashable = None) -> Never:
        """Nobody comes here, as it never starts."""
        raise self._error

    async def close(self) -> None:
        """Nothing to release."""

    def trouble(self) -> str:
        """What is wrong."""
        return str(self._error)
