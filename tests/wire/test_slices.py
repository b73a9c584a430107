"""Cutting a reply without parsing it: the same as parsing it, or refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carpool.errors import BackendError
from carpool.wire.base import EncodedJson
from carpool.wire.slices import cut_flat, cut_vectors

NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    NUMBERS | st.text(alphabet='[]",\\ab') | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
VECTORS = st.lists(st.lists(NUMBERS, max_size=5) | st.lists(VALUES, max_size=3), min_size=1, max_size=5)
FORMATS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", ":")])


def as_bytes(results: list[EncodedJson]) -> list[bytes]:
    return [bytes(result) for result in results]


def decoded(body: bytes) -> list[bytes]:
    """What a JSON parser says the elements are."""
    return [bytes(element) for element in msgspec.json.decode(body, type=list[msgspec.Raw])]


def test_vectors_keep_their_bytes() -> None:
    """Digits, exponents and spaces come back as the upstream wrote them."""
    body = b" [ [0.10000000000000001, 1e-9] ,[1],\n[ ] ] "
    assert as_bytes(cut_vectors(body, 3)) == [b"[0.10000000000000001, 1e-9]", b"[1]", b"[ ]"]


@pytest.mark.parametrize("body", [b"[[0.5,-1],[2e3]]", bytearray(b"[[0.5, -1], [2e3]]"), b"[[7]]"])
def test_the_usual_reply_is_cut_where_it_lies(body: bytes | bytearray) -> None:
    """No copy and no parser, with and without spaces."""
    vectors = cut_flat(body, body.count(b"[") - 1)
    assert vectors is not None
    assert all(isinstance(vector, memoryview) and vector.obj is body for vector in vectors)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"[",
            b"[[",
            b"[]",
            b"[[]",
            b"[[1]",
            b"[[1]]]",
            b"[[1], 2]",
            b'{"error": "x"}',
            b'["a"]',
            b"null",
        ),
        *(b"<html>", b"[" * 100_000, b"\xff", b"[[1],[2]]", b"[1]", b"[[garbage]]", b"[[1,2,,]]", b"[[NaN]]"),
        *(b"[[1]] [[2]]", b"[[1]],", b"[[1],]", b"[[1][2]]", b'["[1]"]', b"[[1]]\x00", b"[[-]]"),
    ],
)
def test_a_reply_that_is_not_one_vector_is_refused(body: bytes) -> None:
    """Garbage is everyone's error and no one's answer."""
    with pytest.raises(BackendError, match="the upstream"):
        cut_vectors(body, 1)


@pytest.mark.parametrize("body", [b"[[null,1]]", b"[[]]", b'[["],["]]', b"[[[1],[2]]]", b'[[{"a":[1]}]]'])
def test_an_unusual_array_is_decoded_in_full_and_passes(body: bytes) -> None:
    """It is the upstream's word; `null` is how TEI writes what is not a number."""
    assert cut_flat(body, 1) is None
    assert as_bytes(cut_vectors(body, 1)) == [body[1:-1]]


@given(VECTORS, FORMATS)
@example([["],[", 1]], (",", ":"))
def test_cutting_is_the_same_as_decoding(vectors: list[list[Any]], separators: tuple[str, str]) -> None:
    """For every valid reply, whatever is in the arrays; no other count passes."""
    body = json.dumps(vectors, separators=separators).encode()
    assert as_bytes(cut_vectors(body, len(vectors))) == decoded(body)
    for count in (len(vectors) - 1, len(vectors) + 1):
        with pytest.raises(BackendError):
            cut_vectors(body, count)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_a_corrupted_reply_is_never_paired_wrongly(vectors: list[list[Any]], data: st.DataObject) -> None:
    """Bytes are lost, changed or added: it is refused, or each vector is a stretch of the reply in its order.

    If the reply is still valid JSON, they are exactly its elements.
    """
    body = bytearray(json.dumps(vectors, separators=(",", ":")).encode())
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, min(len(body), start + 4)))
    body[start:stop] = data.draw(st.text(alphabet='[],"0e n{', max_size=3)).encode()
    try:
        cut = as_bytes(cut_vectors(bytes(body), len(vectors)))
    except BackendError:
        return
    assert len(cut) == len(vectors)
    assert all(vector[:1] == b"[" and vector[-1:] == b"]" and b"],[" not in vector for vector in cut)
    rest = bytes(body)
    for vector in cut:
        before, found, rest = rest.partition(vector)
        assert found
        assert not set(before) - set(b"[, ")
    try:
        valid = decoded(bytes(body))
    except msgspec.DecodeError:
        return
    assert cut == valid
