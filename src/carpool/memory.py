"""Memory that a process frees, kept for its own next use."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# What glibc's `mallopt` calls its parameters, and the bytes they are set to. 32 MiB are the most that it takes.
_MMAP_THRESHOLD = (-3, 32 * 1024**2)
_TRIM_THRESHOLD = (-1, 64 * 1024**2)


def keep() -> None:
    """Have the C library, where it can be told to, keep what is freed of large pieces for the next ones.

    Else it is given back and mapped anew, page by page, each time.
    """
    with suppress(AttributeError, TypeError, OSError):  # it is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(parameter, size)
