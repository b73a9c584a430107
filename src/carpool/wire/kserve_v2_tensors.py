"""Tensors of numbers, as KServe V2 has them in JSON or in bytes, and results of a model as such a tensor.

It knows numbers and shapes, and nothing of the body around them. Those of an answer are not parsed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import msgspec

from carpool.errors import BadInput, Unsupported
from carpool.wire import payload
from carpool.wire.base import EncodedJson, decode_json

# A request's rows are items, of which each has a head: a body of single bytes is not to become a hundred times
# as large.
_MOST_ROWS = 65_536


class _Type(NamedTuple):
    """What payloads call it, and its letter for `struct`; no letter where JSON cannot have it."""

    dtype: str
    letter: str


TYPES = {
    "BOOL": _Type("bool", "B"),
    "INT8": _Type("int8", "b"),
    "INT16": _Type("int16", "h"),
    "INT32": _Type("int32", "i"),
    "INT64": _Type("int64", "q"),
    "UINT8": _Type("uint8", "B"),
    "UINT16": _Type("uint16", "H"),
    "UINT32": _Type("uint32", "I"),
    "UINT64": _Type("uint64", "Q"),
    "FP16": _Type("float16", ""),
    "FP32": _Type("float32", "f"),
    "FP64": _Type("float64", "d"),
}
_NAMES = {kind.dtype: name for name, kind in TYPES.items()}

_NESTED = re.compile(rb"\s*\[\s*\[")
_NUMBERS = b"0123456789+-.eE \t\r\n"


def datatype_of(dtype: str) -> str:
    """What the protocol calls a type of numbers."""
    return _NAMES.get(dtype, "FP32")


def rows(data: bytes, is_binary: bool, datatype: str, shape: Sequence[int]) -> tuple[bytes, ...]:
    """The items for a model in a tensor of this shape: as many as the first size says. Raises `BadInput`."""
    if datatype not in TYPES:
        raise BadInput(f"the datatype {datatype[:64]!r} is not known", f"allowed: {', '.join(TYPES)}, BYTES")
    if not shape or min(shape) < 1 or shape[0] > _MOST_ROWS:
        raise BadInput(
            f"the shape {list(shape)} is not taken", f"allowed: [n, ...] of n inputs, 1 to {_MOST_ROWS}"
        )
    dtype = TYPES[datatype].dtype
    size = prod(shape) * payload.DTYPES[dtype]
    if not is_binary:
        data = pack(data, datatype, shape)
    elif len(data) != size:
        raise BadInput(
            f"the input has {len(data)} bytes", f"expected {size}: {datatype} of the shape {list(shape)}"
        )
    head, width = payload.head_of(dtype, tuple(shape[1:])), size // shape[0]
    return tuple([head + data[start : start + width] for start in range(0, size, width)])


def pack(data: bytes, datatype: str, shape: Sequence[int]) -> bytes:
    """The bytes, little-endian, of numbers in JSON: flat, or nested as the shape. Raises `BadInput`."""
    letter = TYPES[datatype].letter
    if not letter:
        raise BadInput(f"{datatype} cannot be JSON", "send it in binary, with binary_data_size")
    sizes = tuple(shape) if _NESTED.match(data) else (prod(shape),)
    expected = f"{datatype} of the shape {list(shape)}, flat or nested"
    numbers = _flatten(decode_json(_decoder(datatype, len(sizes)), data, expected), sizes, expected)
    try:
        return struct.pack(f"<{len(numbers)}{letter}", *numbers)
    except (OverflowError, struct.error) as error:
        raise BadInput(f"a number is no {datatype}: {error}", f"expected {expected}") from None


@lru_cache(maxsize=128)
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Of nested lists, so deep."""
    kind: Any = bool if datatype == "BOOL" else float if datatype.startswith("FP") else int
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _flatten(data: list[Any], sizes: Sequence[int], expected: str) -> list[Any]:
    level = [data]
    for size in sizes:
        wrong = next((row for row in level if len(row) != size), None)
        if wrong is not None:
            raise BadInput(
                f"the input has {len(wrong)} elements in the place of {size}", f"expected {expected}"
            )
        level = list(chain.from_iterable(level))
    return level


def cut(results: Sequence[EncodedJson]) -> tuple[list[bytes], tuple[int, ...]]:
    """The numbers of each result, with commas between, and the shape that all of them have.

    No number is parsed: what is left without their digits is the shape. Raises `Unsupported`.
    """
    written = [bytes(result) for result in results]
    outlines = {one.translate(None, _NUMBERS) for one in written}
    shape = _shape(outlines.pop()) if len(outlines) == 1 else None
    if shape is None or any(b"[]" in one for one in written):
        raise Unsupported(
            "the model's results are no tensor: not all numbers, or not all of one shape",
            "the routes that end in /predict give them as they are",
        )
    return [one.translate(None, b"[] \t\r\n") for one in written], shape


def _shape(outline: bytes) -> tuple[int, ...] | None:
    """Of a number the outline is empty, of a list brackets and commas; `None` where rows are not all alike."""
    if not outline:
        return ()
    depth = len(outline) - len(outline.lstrip(b"["))
    inner = outline[1:-1]
    if depth <= 1:
        return (len(inner) + 1,) if outline == b"[" + b"," * len(inner) + b"]" else None
    row = inner[: inner.find(b"]" * (depth - 1)) + depth - 1]
    count = (len(inner) + 1) // (len(row) + 1)
    below = _shape(row)
    return None if below is None or inner != b",".join([row] * count) else (count, *below)
