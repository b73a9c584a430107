"""Small programs of a user, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def printed_by(program: str) -> str:
    """What a program prints; it must end by itself, and complain of nothing."""
    arguments = [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    return done.stdout
