"""A model for the worker process that does what its input says."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from carpool.backends.process import frames
from carpool.errors import ModelError, Unsupported
from carpool.wire.call import Call, Vector


class Toy:
    def __init__(self, device: str, most: int) -> None:
        self.info: dict[str, Any] = {"name": "toy", "device": device, "cores": sorted(os.sched_getaffinity(0))}
        self.most = most
        self.kept = bytearray()

    def run(self, items: Sequence[str]) -> list[bytes]:
        if "raise" in items:
            raise ValueError("no")
        if errors := [error for text, error in ERRORS.items() if text in items]:
            raise errors[0]
        if "vanish" in items:
            os._exit(7)
        if "hang up" in items:
            os.close(int(sys.argv[1]))
            signal.pause()
        if "die" in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in items:
            select.select([], [], [], 0.3)
        if "fork" in items and os.fork() == 0:
            os.setsid()  # or it would end with its parent
            select.select([], [], [], 3)
            os._exit(0)
        if "hang" in items:
            threading.Event().wait()
        if "thread" in items:
            threading.Thread(target=threading.Event().wait).start()
        if "at exit" in items:
            atexit.register(Path(items[1]).touch)
        if "start" in items:
            self.started = subprocess.Popen(["sleep", "1000"])
            return [str(self.started.pid).encode()]
        if "end" in items:
            return [json.dumps(_ended()).encode()]
        if "environment" in items:
            return [json.dumps({name: os.environ.get(name) for name in items[1:]}).encode()] * len(items)
        if "faults" in items:
            return [json.dumps([_faults() for _ in range(3)]).encode()]
        if "grow" in items:
            self.kept += bytearray(b"x") * 2**26
        if "hog" in items:
            self.kept += bytearray(b"x") * 2**28
            signal.pause()
        if len(items) > self.most:
            raise Memory
        if "short" in items:
            return []
        if "junk" in items:
            _send(JUNK[items[1]])
        if "out of step" in items:
            _send(frames.encode(frames.Answer(99, [b"1"] * len(items)))[frames.PREFIX_BYTES :])
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
        if "exit early" in items:
            sys.exit(4)
        if "raise early" in items:
            raise ValueError("early")
        if "second" in items:
            self.is_next_prepared.set()
        return partial(self.run, items)

    def run(self, items: Sequence[str]) -> list[bytes]:
        if "first" in items:
            return [json.dumps(["first", self.is_next_prepared.wait(20)]).encode()] * len(items)
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


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


# Which are no plain exceptions.
ERRORS: dict[str, BaseException] = {
    "lone surrogate": ValueError("bad \udc80 name"),
    "no text": Mute(),
    "odd detail": Unsupported("no", 3),  # type: ignore[arg-type]
    "exit": SystemExit(4),
    "interrupt": KeyboardInterrupt(),
}


# What is no frame of ours: not MessagePack, a map of another kind, a text that is not UTF-8 where one is due.
JUNK = {
    "not msgpack": b"\xc1",
    "no message": b"\x81\xa1a\x01",
    "bad text": b"\x84\xa4type\xa6Failed\xa6number\x01\xa4kind\xa1\xff\xa7message\xa1a",
}


def _send(body: bytes) -> None:
    """Past what the worker sends itself."""
    os.write(int(sys.argv[1]), struct.pack("<IQ", len(body), 0) + body)


def _ended() -> list[int | None]:
    """The statuses of what it starts, in both ways, and asks to end at once."""
    program = subprocess.Popen(["sleep", "1000"])
    fork = multiprocessing.get_context("fork").Process(target=threading.Event().wait)
    fork.start()
    program.terminate()
    fork.terminate()
    fork.join(5)
    return [program.wait(5), fork.exitcode]


def _faults() -> int:
    """How often memory is mapped for what a network would compute between its layers."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [bytearray(48 * 2**20) for _ in range(2)]  # with 32 pictures one of ResNet-18 takes 98 MiB
    for layer in layers:
        layer[::4096] = bytes(len(layer) // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


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
        os._exit(3)  # as native code does, which says nothing
    return Toy(device, most)


def ahead() -> Any:
    return Ahead("cpu", 1000)


def in_place() -> Any:
    return InPlace()


def on_cpu() -> Any:
    return Toy("cpu", 1000)


def fail() -> Any:
    raise RuntimeError("broken weights")


def hang(marker: str) -> Any:
    """Only once there is the marker, which it leaves."""
    if Path(marker).exists():
        threading.Event().wait()
    Path(marker).touch()
    return Toy("cpu", 1000)


def large(seconds: float) -> Any:
    toy = Toy("cpu", 1000)
    toy.kept = bytearray(b"x") * 2**28
    threading.Event().wait(seconds)
    return toy


def fail_to(how: str) -> Any:
    if how == "describe itself":
        toy = Toy("cpu", 1000)
        toy.info["engine"] = object()
        return toy
    raise ERRORS[how]
