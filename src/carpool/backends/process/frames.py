"""What parent and child say to each other, as bytes. No I/O.

A frame is two lengths, a MessagePack message of the first, and a payload of the second: the items of a batch as
they are, which are not copied into a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any

import msgspec

from carpool.wire.call import Call

_PREFIX = Struct("<IQ")
PREFIX_BYTES = _PREFIX.size


class Load(msgspec.Struct, tag=True, frozen=True):
    """To the child, first and once: import `loader` ("module:function") and call it with `arguments`.

    The model is to run on `device`, where one is named, and the process on these cores alone, where some are.
    """

    loader: str
    arguments: dict[str, Any]
    device: str = ""
    cores: list[int] = []


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From the child: the model is loaded and warm. `info` describes it."""

    info: dict[str, Any]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """From the child: the model cannot be loaded, and why; where it came from, if it was an exception."""

    message: str
    detail: str
    traceback: str = ""


class Run(msgspec.Struct, tag=True, frozen=True):
    """To the child: run items of these sizes as one batch. They follow the message, or are in a shared memory.

    `memory` says in which of those that it was started with, and `starts` where each item begins there.
    `call` says what is asked, where it is not the usual. Items are JSON, each as its caller wrote it, or, where
    it asks to `infer`, bodies as `wire/payload.py` has them.
    """

    number: int
    sizes: list[int]
    call: Call | None = None
    memory: int | None = None
    starts: list[int] = []


class Ping(msgspec.Struct, tag=True, frozen=True):
    """From the parent, while it has no batch to run: whether the child would."""


class Pong(msgspec.Struct, tag=True, frozen=True):
    """From the child: it would."""


class Answer(msgspec.Struct, tag=True, frozen=True):
    """From the child: one result per item of the batch `number`, JSON already.

    Where some are a `Vector`, `tokens` and `floats` are what each item's says; `refused` says by their places
    which items the model would not take, and why; `failed` on which items alone it failed, and how; the
    `traceback` is of the first of those that have one.
    """

    number: int
    results: list[bytes]
    tokens: list[int] = []
    floats: list[bytes] = []
    refused: dict[int, str] = {}
    failed: dict[int, str] = {}
    traceback: str = ""


class Rejected(msgspec.Struct, tag=True, frozen=True):
    """From the child: the model cannot do what was asked of it with the batch `number`."""

    number: int
    message: str
    detail: str


class Failed(msgspec.Struct, tag=True, frozen=True):
    """From the child: the batch `number` failed whole with an exception of this kind, perhaps for its size."""

    number: int
    kind: str
    message: str
    is_too_large: bool = False
    traceback: str = ""


ToChild = Load | Run | Ping
FromChild = Ready | Refused | Answer | Failed | Rejected | Pong

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode(message: ToChild | FromChild, payload: int = 0) -> bytes:
    """The frame that carries a message, but for its payload, which is to follow: so many bytes."""
    body = _encoder.encode(message)
    return _PREFIX.pack(len(body), payload) + body


def lengths(prefix: bytes | memoryview) -> tuple[int, int]:
    """How many bytes of message follow a frame's first `PREFIX_BYTES`, and how many of payload follow those."""
    message, payload = _PREFIX.unpack(prefix)
    return message, payload


def end_of_first(received: bytes | bytearray) -> int | None:
    """Where the first frame ends; `None` if it has not come whole."""
    if len(received) < PREFIX_BYTES:
        return None
    end = PREFIX_BYTES + sum(_PREFIX.unpack_from(received))
    return end if end <= len(received) else None


def cut(payload: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The items that lie in a payload, one after the other."""
    ends = list(accumulate(sizes, initial=0))
    return [payload[start:end] for start, end in pairwise(ends)]


def decode_to_child(body: bytes | memoryview) -> ToChild:
    """The message in a frame's body, at the child's end."""
    return _to_child.decode(body)


def decode_from_child(body: bytes | memoryview) -> FromChild:
    """The message in a frame's body, at the parent's end."""
    return _from_child.decode(body)
