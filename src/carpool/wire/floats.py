"""Vectors as little-endian float32, for the dialects that send bytes: the only place where a float is parsed.

A local model's vector brings its own (`Vector`), so it is an upstream's JSON that is read here. Where simdjson
and numpy are installed (the extra `floats`) they read all of a vector's numbers at once, in a third of the
time. Most of that is simdjson's own: to read a whole reply at once was measured, and gains less than it costs
to find each caller's part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import pack
from typing import Any

import msgspec

from carpool.errors import BackendError
from carpool.wire.base import EncodedJson
from carpool.wire.call import Vector

_NUMBERS = msgspec.json.Decoder(list[float])
_SQUARE = 1e76  # a vector whose square is less has no number that is too large for float32


def float32(vector: EncodedJson) -> bytes:
    """The numbers of a JSON array. Raises `BackendError` if it is anything else."""
    if isinstance(vector, Vector) and vector.floats:
        return vector.floats
    try:
        return reader()(bytes(vector))
    except Exception:
        return _read_each(vector)  # which knows what is wrong


def base64(vector: EncodedJson) -> bytes:
    """The same in base64, as a JSON string."""
    return _quoted()(float32(vector))


def _read_each(vector: EncodedJson) -> bytes:
    try:
        numbers = _NUMBERS.decode(vector)
        return pack(f"<{len(numbers)}f", *numbers)  # half the time of an `array`
    except (msgspec.DecodeError, OverflowError) as error:
        raise BackendError("the model's vector is not an array of numbers", str(error)) from None


@cache
def reader() -> Callable[[bytes], bytes]:
    """The fastest that is installed. To import it takes a tenth of a second: call this when nobody waits."""
    try:
        import numpy as np
        import simdjson
    except ImportError:
        return _read_each
    parser, little_endian = simdjson.Parser(), np.dtype("<f4")

    def read_at_once(vector: bytes) -> bytes:
        if vector.rfind(b"[") > 0:
            raise ValueError("arrays in the array: simdjson gives their numbers as if they were its own")
        array: Any = parser.parse(vector)  # a RuntimeError where another thread is at it
        numbers = np.frombuffer(array.as_buffer(of_type="d"))
        if not numbers.dot(numbers) < _SQUARE:  # in half the time of numpy's own check
            raise OverflowError("one of the numbers may be too large")
        return numbers.astype(little_endian).tobytes()

    return read_at_once


@cache
def _quoted() -> Callable[[bytes], bytes]:
    """The fastest that is installed: pybase64 takes a tenth of the time."""
    try:
        from pybase64 import b64encode
    except ImportError:
        return msgspec.json.encode
    return lambda numbers: b'"%b"' % b64encode(numbers)
