"""What is said above every table, and when it is quiet enough to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.machine import describe_run, wait_until_quiet

ROOT = Path(__file__).parents[2]


def test_an_interpreter_of_the_repository_is_part_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table says is what was run."""
    monkeypatch.setattr("sys.executable", str(ROOT / "build" / "compiled" / "bin" / "python"))
    assert describe_run().startswith("`build/compiled/bin/python ")
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    assert describe_run().startswith("`python ")


def test_nobody_is_measured_before_others_are_done() -> None:
    """A second of CPU in half a second is busy, none is quiet."""
    used = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    wait_until_quiet(lambda: next(used), cores=0.1, patience=60.0)
    assert list(used) == [2.0]
