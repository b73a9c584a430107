"""A model for the worker process that does what its input says."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from carpool.errors import ModelError
from carpool.wire.call import Call, Vector


class Toy:
    def __init__(self, device: str, most: int) -> None:
        self.info = {"name": "toy", "device": device, "cores": sorted(os.sched_getaffinity(0))}
        self.most = most
        self.kept = bytearray()

    def run(self, items: Sequence[str]) -> list[bytes]:
        if "raise" in items:
            raise ValueError("no")
        if "die" in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in items:
            select.select([], [], [], 0.3)
        if "fork" in items and os.fork() == 0:
            select.select([], [], [], 3)
            os._exit(0)
        if "hang" in items:
            signal.pause()
        if "grow" in items:
            self.kept += bytearray(b"x") * 2**26
        if "hog" in items:
            self.kept += bytearray(b"x") * 2**28
            signal.pause()
        if len(items) > self.most:
            raise Memory
        if "short" in items:
            return []
        if "print" in items:
            os.write(1, b"models print\n")
        return [_vector() if item == "vector" else json.dumps([item, os.getpid()]).encode() for item in items]


class Ahead(Toy):
    """One that prepares, and does there as well what its input says."""

    prepare_from = 8

    def __init__(self, device: str, most: int) -> None:
        super().__init__(device, most)
        self.is_next_prepared = threading.Event()

    def prepare(self, items: Sequence[str]) -> Callable[[], list[bytes]]:
        if "die early" in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raise early" in items:
            raise ValueError("early")
        if "second" in items:
            self.is_next_prepared.set()
        return partial(self.run, items)

    def run(self, items: Sequence[str]) -> list[bytes]:
        if "first" in items:
            return [json.dumps(["first", self.is_next_prepared.wait(20)]).encode()] * len(items)
        if "exit" in items:
            sys.exit(3)
        return super().run(items)


class InPlace:
    """One that is asked to `infer`, and reads a batch where it lies only once the batch after it is prepared.

    It tells the texts of all the batches that it has read. There are three; when it has the second, the
    process stops until it is told to go on.
    """

    def __init__(self) -> None:
        self.info = {"pid": os.getpid()}
        self.is_prepared = {text: threading.Event() for text in ("first", "second", "third")}
        self.read: list[str] = []

    def prepare(self, bodies: Sequence[memoryview], call: Call) -> Callable[[], list[bytes]]:
        text = _text(bodies[0])
        if text == "second":
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        self.is_prepared[text].set()
        following = {"first": "second", "second": "third"}.get(text, text)
        return partial(self.run, bodies, self.is_prepared[following])

    def run(self, bodies: Sequence[memoryview], is_next_prepared: threading.Event) -> list[bytes]:
        is_next_prepared.wait(20)
        self.read += map(_text, bodies)
        return [json.dumps(self.read).encode()] * len(bodies)


def _text(body: memoryview) -> str:
    return str(json.loads(bytes(body))).strip()


def _vector() -> Vector:
    vector = Vector(b"[1.0]")
    vector.tokens, vector.floats = 3, struct.pack("<f", 1)
    return vector


class Memory(MemoryError):
    """numpy's and torch's have names of their own as well."""


def load(refuse: bool = False, crash: bool = False, most: int = 1000, device: str = "", only: str = "") -> Any:
    if only and device != only:
        raise ModelError(f"there is no device {device}", f"there is {only}")
    if refuse:
        raise ModelError("this directory holds no model", "expected one")
    if crash:
        sys.exit(3)
    return Toy(device, most)


def ahead() -> Any:
    return Ahead("cpu", 1000)


def in_place() -> Any:
    return InPlace()


def on_cpu() -> Any:
    return Toy("cpu", 1000)


def fail() -> Any:
    raise RuntimeError("broken weights")
