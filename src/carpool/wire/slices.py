"""An upstream's JSON array cut into its elements, each still the upstream's own bytes: no float is parsed.

What is guaranteed: as many results as there were items, in the order of the array, each beginning with `[` and
ending with `]`, and no byte of the reply in two of them. On the fast way there is no string in the reply, so
brackets are brackets; each array holds no other array, and begins and ends with a digit. What is between
an array's first and last number is the upstream's own word: it is not looked at. A reply that is anything else
is decoded in full: then it is valid JSON or it is refused, and `null`, which is how some upstreams write NaN,
passes as it is. Slices are views: whoever keeps one keeps the whole reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from carpool.errors import BackendError
from carpool.wire.base import EncodedJson

Value = TypeVar("Value")
Body = bytes | bytearray

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_OPEN, _CLOSE, _COMMA, _SPACE = b"[], "
_FIRST = frozenset(b"-0123456789")
_LAST = frozenset(b"0123456789")


def cut_vectors(body: Body, count: int) -> list[EncodedJson]:
    """The `count` vectors of `[[0.1, ...], ...]`. Raises `BackendError` for anything else."""
    return cut_flat(body, count) or cut_strictly(body, count, b"[")


def cut_flat(body: Body, count: int) -> list[EncodedJson] | None:
    """The `count` arrays of numbers, if the reply is exactly that and nothing about it is unusual."""
    if body[:2] != b"[[" or body[-2:] != b"]]" or b'"' in body:
        return None
    find, view = body.find, memoryview(body)
    vectors: list[EncodedJson] = []
    start, after = 1, find(b"[", 2)
    gap = 3 if body[after - 1] == _SPACE else 2  # `], [` or `],[`
    while after > 0:
        last = after - gap
        if (
            body[last] != _CLOSE
            or body[last + 1] != _COMMA
            or body[last - 1] not in _LAST
            or body[start + 1] not in _FIRST
        ):
            return None
        vectors.append(view[start : last + 1])
        start, after = after, find(b"[", after + 1)
    vectors.append(view[start:-1])
    usual = len(vectors) == count and body[start + 1] in _FIRST and body[-3] in _LAST
    return vectors if usual else None


def is_flat(body: Body, start: int, end: int) -> bool:
    """Whether `body[start:end]`, from a `[` to the next `]`, is an array that begins and ends with a digit."""
    inside = body.find(b"[", start + 1, end) < 0 and body.find(b'"', start, end) < 0
    return end > start + 2 and inside and body[start + 1] in _FIRST and body[end - 2] in _LAST


def cut_strictly(body: Body, count: int, first: bytes = b"") -> list[EncodedJson]:
    """The `count` elements of a JSON array, all of it checked; each begins with one of the bytes `first`."""
    elements = [memoryview(element) for element in decode_reply(_ELEMENTS, body, "a JSON array")]
    check_count(len(elements), count)
    if first and not all(bytes(element[:1]) in first for element in elements):
        raise BackendError("the upstream's reply is not an array of vectors", "expected [[0.1, ...], ...]")
    return [*elements]


def check_count(results: int, items: int) -> None:
    """Refuse a reply that pairs with nobody."""
    if results != items:
        raise BackendError(
            f"the upstream gave {results} results for {items} inputs", "it must give one for each, in order"
        )


def in_order(results: Sequence[EncodedJson], indices: Sequence[int], what: str) -> list[EncodedJson]:
    """The results of a reply that numbers them, each in its place. `what` is what they are called."""
    count = len(results)
    if sorted(indices) != list(range(count)):
        raise BackendError(f"the upstream's {what} are not one for each input", f"indices of {count} inputs")
    ordered: list[EncodedJson] = [b""] * count
    for index, result in zip(indices, results, strict=True):
        ordered[index] = result
    return ordered


def decode_reply(decoder: msgspec.json.Decoder[Value], body: Body, expected: str) -> Value:
    """Decode a reply, or raise `BackendError` that says what it is not."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError(f"the upstream's reply is not {expected}", str(error)) from None
