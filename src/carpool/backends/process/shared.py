"""Memory that a parent writes and its workers read: for batches that are too large for a socket.

Measured on two busy cores with 32 items of 600 kB (benchmarks/worker_transport.py): through the socket a batch
takes 18 ms, of which 6 are the event loop's (with asyncio's own loop 33 and 15); written here from a thread,
and read where it is, 9 and 0.4. At a quarter of a megabyte in all they are alike.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence

LEAST = 512 * 1024  # bytes in a batch: less goes through the socket
MOST = 128 * 1024**2  # more does too: what was once written here is kept, and counts as the worker's own memory

_AT_ONCE = 512  # buffers in one system call; POSIX guarantees no more than 16, Linux and macOS take 1024


class SharedMemory:
    """The parent's end: a file without a name, in memory where the system has such files."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("carpool") if hasattr(os, "memfd_create") else _unnamed_file()

    def __del__(self) -> None:
        # Not before the last reference is gone: a thread may still write a batch that was given up.
        os.close(self.fd)

    def write(self, items: Sequence[bytes]) -> None:
        """The items, one after the other, from the beginning. It blocks, and lets other threads run."""
        position = 0
        for start in range(0, len(items), _AT_ONCE):
            left = [memoryview(item) for item in items[start : start + _AT_ONCE]]
            while left:
                written = os.pwritev(self.fd, left, position)
                position += written
                left = _after(left, written)


class Reader:
    """The worker's end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def read(self, length: int) -> memoryview:
        """The first so many bytes, where they are; the next batch will overwrite them."""
        if self._map is None or len(self._map) < length:
            size = os.fstat(self._fd).st_size
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
        return memoryview(self._map)[:length]


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
