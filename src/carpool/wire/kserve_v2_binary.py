"""The binary extension of KServe V2: tensors behind the JSON of a body, in the bytes that machines have.

A tensor of texts (BYTES) is their UTF-8, each after its length (4 bytes, little-endian); FP32 is little-endian
float32, row by row. It knows tensors, and not what is in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from carpool.errors import BackendError, BadInput
from carpool.wire.base import EncodedJson
from carpool.wire.floats import float32

HEADER = "inference-header-content-length"  # how many bytes of a body are JSON, where that is not all of it
MEDIA_TYPE = "application/octet-stream"

FLOAT_BYTES = 4

_LENGTH_BYTES = 4
_LONGEST_NUMBER = 18  # digits: more than that is no length of anything


def read_length(header: str) -> int:
    """What the header says. Raises `BadInput`."""
    if not header.isdecimal() or len(header) > _LONGEST_NUMBER:
        raise BadInput(
            f"Inference-Header-Content-Length {header[:64]!r} is no length", "allowed: a number of bytes"
        )
    return int(header)


def split(body: bytes, length: int) -> tuple[bytes, bytes]:
    """The JSON, of so many bytes, and the tensors behind it. Raises `BadInput`."""
    if length > len(body):
        raise BadInput(
            f"Inference-Header-Content-Length says {length}", f"the whole body has {len(body)} bytes"
        )
    return body[:length], body[length:]


def unpack_texts(tensor: bytes) -> list[str]:
    """The texts of a tensor of BYTES. Raises `BadInput`."""
    texts, at = [], 0
    while at < len(tensor):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(tensor[at:start], "little")
        if at > len(tensor):
            raise BadInput("a binary tensor ends within a text", "expected: a length of 4 bytes, then the text")
        texts.append(read_text(tensor[start:at]))
    return texts


def read_text(element: bytes) -> str:
    """One text. Raises `BadInput`."""
    try:
        text = element.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"a text is not UTF-8: {error}") from None
    if not text:
        raise BadInput("a text is empty", "expected at least one character")
    return text


def pack_rows(rows: Sequence[EncodedJson]) -> list[bytes]:
    """JSON arrays of numbers, as FP32. Raises `BackendError` if they are not of one length."""
    packed = [float32(row) for row in rows]
    if len(packed) != 1 and len(set(map(len, packed))) != 1:
        raise BackendError("the model's vectors are not of one length", "they are no tensor")
    return packed
