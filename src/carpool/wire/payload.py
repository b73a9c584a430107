"""Bodies of `/predict` that nobody reads before the worker does: each travels, whole, as one item.

A body of numbers may have megabytes, and the event loop has no time to look into it. An item is the JSON body
as its caller wrote it, or a body of another content type behind a head that says how to read it. JSON never
begins with the head's first byte, so an item tells by itself which it is. Nothing here knows numpy or images.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import msgspec

from carpool.errors import BadInput
from carpool.wire.base import Ask
from carpool.wire.call import INFER

OCTETS = "application/octet-stream"
NPY = "application/x-npy"
MSGPACK = "application/msgpack"
IMAGES = ("image/jpeg", "image/png")
MEDIA_TYPES = (OCTETS, NPY, MSGPACK, *IMAGES)

# By the bytes that one number has: as numpy names them, in the byte order of the wire (little-endian).
DTYPES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}

_MARK = b"\0"
_LENGTH_BYTES = 2
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 2**63 - 1  # as numpy counts them; MessagePack, too, has no whole numbers beyond 64 bits


class Head(msgspec.Struct, frozen=True, array_like=True):
    """How to read a body. `shape` is there only where a header gave it."""

    media_type: str
    dtype: str = "float32"
    shape: tuple[int, ...] | None = None


_heads = msgspec.msgpack.Decoder(Head)


def head(media_type: str, headers: Mapping[str, str]) -> bytes:
    """The head for a body of one of `MEDIA_TYPES`, by its request's headers. Raises `BadInput`.

    `X-DType` and `X-Shape` (`3,224,224`) say what `application/octet-stream` holds.
    """
    described = Head(media_type)
    if media_type == OCTETS:
        described = Head(media_type, _dtype(headers.get("x-dtype", "float32")), _shape(headers.get("x-shape")))
    return _pack(described)


def head_of(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The head for the bytes of a tensor; `dtype` is one of `DTYPES`."""
    return _pack(Head(OCTETS, dtype, shape))


def _pack(described: Head) -> bytes:
    written = msgspec.msgpack.encode(described)
    return _MARK + len(written).to_bytes(_LENGTH_BYTES, "little") + written


def ask(head: bytes, body: bytes) -> Ask:
    """The one item that a body is; `head` is empty for JSON."""
    if not body:
        raise BadInput("the body is empty", "expected one input for the model")
    return Ask((head + body,), INFER)


def unpack(item: bytes | memoryview) -> tuple[Head | None, memoryview]:
    """How to read an item, and its body; no head means JSON."""
    if item[:1] != _MARK:
        return None, memoryview(item)
    start = len(_MARK) + _LENGTH_BYTES
    end = start + int.from_bytes(item[len(_MARK) : start], "little")
    return _heads.decode(item[start:end]), memoryview(item)[end:]


def expected_bytes(head: Head) -> int | None:
    """How long the body must be, where its shape is known."""
    return None if head.shape is None else prod(head.shape) * DTYPES[head.dtype]


def _dtype(text: str) -> str:
    name = text.strip().lower()
    if name not in DTYPES:
        raise BadInput(f"X-DType {text!r} is not known", f"allowed: {', '.join(DTYPES)}")
    return name


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple([int(size) for size in text.strip("()[] ").split(",") if size.strip()])
    except ValueError:
        sizes = ()
    if not 0 < len(sizes) <= _MOST_DIMENSIONS or min(sizes) < 1 or prod(sizes) > _MOST_NUMBERS:
        raise BadInput(
            f"X-Shape {text!r} is not a shape",
            f"allowed: 1 to {_MOST_DIMENSIONS} sizes from 1 on, with commas between, as 3,224,224, "
            f"and {_MOST_NUMBERS} numbers at most",
        )
    return sizes
