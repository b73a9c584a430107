"""What parent and child say to each other, as bytes. No I/O.

A frame is a length (4 bytes, little-endian) and a MessagePack message of that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from carpool.wire.call import Call

LENGTH_BYTES = 4


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
    """From the child: the model cannot be loaded, and why."""

    message: str
    detail: str


class Run(msgspec.Struct, tag=True, frozen=True):
    """To the child: run these items as one batch. They are one JSON array, each as its caller wrote it.

    `call` says what is asked, where it is not the usual. Where it asks to `infer`, `items` is empty and the
    items are `bodies`, each as `wire/payload.py` has it.
    """

    number: int
    items: bytes
    call: Call | None = None
    bodies: list[bytes] = []


class Answer(msgspec.Struct, tag=True, frozen=True):
    """From the child: one result per item of the batch `number`, JSON already.

    `tokens` counts those of each item, where the model counts; `refused` says by their places which items the
    model would not take, and why; `failed` on which items alone it failed, and how.
    """

    number: int
    results: list[bytes]
    tokens: list[int] = []
    refused: dict[int, str] = {}
    failed: dict[int, str] = {}


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


ToChild = Load | Run
FromChild = Ready | Refused | Answer | Failed | Rejected

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def run(number: int, items: Sequence[bytes], call: Call | None) -> Run:
    """The message that has a worker run these items."""
    if call is not None and call.operation == "infer":
        return Run(number, b"", call, list(items))
    return Run(number, b"[" + b",".join(items) + b"]", call)


def encode(message: ToChild | FromChild) -> bytes:
    """The frame that carries a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def body_length(prefix: bytes) -> int:
    """How many bytes follow a frame's first `LENGTH_BYTES`."""
    return int.from_bytes(prefix, "little")


def decode_to_child(body: bytes) -> ToChild:
    """The message in a frame's body, at the child's end."""
    return _to_child.decode(body)


def decode_from_child(body: bytes) -> FromChild:
    """The message in a frame's body, at the parent's end."""
    return _from_child.decode(body)
