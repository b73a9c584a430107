"""Which command ran, when, and on what, as is said above every committed table; and how busy it is."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[1]
_CPU = Path("/proc/cpuinfo")
_QUIET = 0.5  # seconds


def cpu_of_everyone() -> float:
    """CPU seconds of the whole machine, with what its host took for others while this one would have run."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))


def cpu_of(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of processes."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def wait_until_quiet(cpu_seconds: Callable[[], float], cores: float, patience: float) -> None:
    """Wait until whoever uses these CPU seconds uses no more cores than that, but not for ever."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        used, started = cpu_seconds(), time.monotonic()
        time.sleep(_QUIET)
        if cpu_seconds() - used <= cores * (time.monotonic() - started):
            return


def describe_run() -> str:
    """The command, the day and the commit. An interpreter inside the repository is part of the command."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
    python = Path(sys.executable)
    name = python.relative_to(_ROOT) if python.is_relative_to(_ROOT) else "python"
    return f"`{name} {' '.join(sys.orig_argv[1:])}`, {datetime.date.today()}, commit {commit}"


def describe_machine() -> str:
    """The processor, its cores, how busy they were, the system and this Python."""
    named = re.search(r"model name\s*: (.*)", _CPU.read_text()) if _CPU.exists() else None
    return (
        f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f} before; {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
