"""Memory that a process frees, kept for its own next use."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Parameters of glibc's `mallopt`, as malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4

# A piece of up to 32 MiB, the most that it takes there, is not mapped on its own; 64 MiB that are free stay.
_SOME = {_MMAP_THRESHOLD: 32 * 1024**2, _TRIM_THRESHOLD: 64 * 1024**2}
# No piece is, however large, and as much stays as a C int can say.
_ALL = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


def keep() -> None:
    """Have the C library, where it can be told to, keep some dozen MiB of what is freed for what comes next.

    Else a large piece is given back and mapped anew, page by page, each time.
    """
    _set(_SOME)


def keep_all() -> None:
    """The same with nearly all, up to 2 GiB, for a process that needs as much again and again."""
    _set(_ALL)


def _set(parameters: dict[int, int]) -> None:
    with suppress(AttributeError, TypeError, OSError):  # it is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in parameters.items():
            mallopt(parameter, value)
