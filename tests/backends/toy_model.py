"""A model for the worker process that does what its input says."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from carpool.errors import ModelError


class Toy:
    def __init__(self) -> None:
        self.info = {"name": "toy"}

    def run(self, items: Sequence[str]) -> list[bytes]:
        if "raise" in items:
            raise ValueError("no")
        if "die" in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in items:
            signal.pause()
        if "short" in items:
            return []
        if "print" in items:
            os.write(1, b"models print\n")
        return [json.dumps([item, os.getpid()]).encode() for item in items]


def load(refuse: bool = False, crash: bool = False) -> Any:
    if refuse:
        raise ModelError("this directory holds no model", "expected one")
    if crash:
        sys.exit(3)
    return Toy()


def fail() -> Any:
    raise RuntimeError("broken weights")
