"""Memory that a parent writes and its workers read: for batches that are too large for a socket.

A large item is best received in an `Intake`, where every worker of its model can read it. What came otherwise
is written into a memory of the worker's own, batch by batch.

Measured on two busy cores with 32 items of 600 kB (benchmarks/worker_transport.py): through the socket a batch
takes 18 ms, of which 6 are the event loop's (with asyncio's own loop 33 and 15); written here from a thread,
and read where it is, 9 and 0.4. At a quarter of a megabyte in all they are alike.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from carpool.wire.base import Item

LEAST = 512 * 1024  # bytes in a batch: less goes through the socket
MOST = 128 * 1024**2  # more does too: what was once written here is kept, and counts as the worker's own memory

# Of an intake, for two batches. With 64 users of 3 MB each, half of it does not hold all, and a batch of which
# some items came otherwise is written as a whole: p50 of ResNet-18 on OpenVINO 525 ms, and 455 with all of it.
_ROOM = 2 * MOST

_NOWHERE: tuple[Callable[[], None], int] = (lambda: None), 0  # of what nobody has lent

_AT_ONCE = 512  # buffers in one system call; POSIX guarantees no more than 16, Linux and macOS take 1024


class SharedMemory:
    """The parent's end: a file without a name, in memory where the system has such files."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("carpool") if hasattr(os, "memfd_create") else _unnamed_file()

    def __del__(self) -> None:
        # Not before the last reference is gone: a thread may still write a batch that was given up.
        os.close(self.fd)

    def write(self, items: Sequence[Item]) -> None:
        """The items, one after the other, from the beginning. It blocks, and lets other threads run."""
        position = 0
        for start in range(0, len(items), _AT_ONCE):
            left = [memoryview(item) for item in items[start : start + _AT_ONCE]]
            while left:
                written = os.pwritev(self.fd, left, position)
                position += written
                left = _after(left, written)


class Intake:
    """Memory in which items are received, as they come, for the workers of one model.

    What it lends is the item: a view that is given back by being forgotten, by all who have it. Slices of it do
    not count. It takes memory from the system as it is used, and keeps it.
    """

    def __init__(self) -> None:
        self.memory = SharedMemory()
        os.ftruncate(self.memory.fd, _ROOM)
        self._map = mmap.mmap(self.memory.fd, _ROOM)
        self._holes = [(0, _ROOM)]  # where they start and end, in that order
        self._lent: dict[int, tuple[weakref.ref[memoryview], int]] = {}  # and where it starts, by its identity
        self._forgotten: deque[tuple[int, int, int]] = deque()  # whose holes are still to be made

    def lend(self, length: int) -> memoryview | None:
        """Room for an item; `None` where there is none, or where it is small enough for a socket.

        The first that fits: the less of it is ever used, the fewer pages it takes, and the likelier they are
        in a cache.
        """
        while self._forgotten:
            number, start, end = self._forgotten.popleft()
            self._lent.pop(number, None)
            self._open(start, end)
        place = next((place for place, (start, end) in enumerate(self._holes) if end - start >= length), None)
        if place is None or length < LEAST:
            return None
        start, end = self._holes.pop(place)
        if start + length < end:
            self._holes.insert(place, (start + length, end))
        item = memoryview(self._map)[start : start + length]
        number = id(item)
        # It may be forgotten in any thread, and in the middle of any line here, by the garbage collector.
        forget = partial(self._forgotten.append, (number, start, start + length))
        self._lent[number] = weakref.ref(item, lambda _: forget()), start
        return item

    def find(self, items: Sequence[Item]) -> list[int] | None:
        """Where each of the items starts, if all of them are here."""
        starts = []
        for item in items:
            known, start = self._lent.get(id(item), _NOWHERE)
            if known() is not item:
                return None
            starts.append(start)
        return starts

    def _open(self, start: int, end: int) -> None:
        """A hole, joined with those beside it."""
        place = bisect(self._holes, (start, end))
        if place < len(self._holes) and self._holes[place][0] == end:
            end = self._holes.pop(place)[1]
        if place and self._holes[place - 1][1] == start:
            place -= 1
            start = self._holes.pop(place)[0]
        self._holes.insert(place, (start, end))


class Reader:
    """The worker's end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def read(self, starts: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
        """The items that are there, where they are; others will overwrite them once the batch is answered."""
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        if self._map is None or len(self._map) < max(ends):
            size = os.fstat(self._fd).st_size
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
        whole = memoryview(self._map)
        return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def _after(buffers: list[memoryview], written: int) -> list[memoryview]:
    """What is left of them to write."""
    while buffers and written >= len(buffers[0]):
        written -= len(buffers.pop(0))
    if written:
        buffers[0] = buffers[0][written:]
    return buffers


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
