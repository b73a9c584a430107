"""An alarm that rings on time, to about a tenth of a millisecond, on an event loop whose own timers do not.

uvloop and epoll count in whole milliseconds, which would send each request up to one late. Linux has timers
that are file descriptors, and a loop can wait for those. Elsewhere the loop's own timer must do.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from time import perf_counter

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class _Spec(ctypes.Structure):
    """`struct itimerspec`: no interval, then seconds and nanoseconds until it rings."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


class Alarm:
    """Calls back at the moment it was last set to. Times are `perf_counter`'s."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        if self._file >= 0:
            self._loop.add_reader(self._file, self._wake)

    def set(self, at: float) -> None:
        """Ring at a moment; one that has passed is now."""
        after = max(1e-6, at - perf_counter())
        if self._file >= 0:
            spec = _Spec(0, 0, int(after), int(after % 1 * 1e9))
            self._libc.timerfd_settime(self._file, 0, ctypes.byref(spec), None)
        else:
            self.cancel()
            self._timer = self._loop.call_later(after, self._ring)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """Never ring again."""
        self.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _wake(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:  # it was set anew between ringing and being heard
            return
        self._ring()
