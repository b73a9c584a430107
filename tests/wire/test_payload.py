"""Bodies that travel whole: what their heads say, and what of the headers is refused."""

from __future__ import annotations

import pytest

from carpool.errors import BadInput
from carpool.wire import payload
from carpool.wire.call import INFER


def test_a_body_of_bytes_travels_with_what_its_headers_say() -> None:
    """And comes out as it went in."""
    head = payload.head(payload.OCTETS, {"x-dtype": "uint8", "x-shape": "2, 3"})
    asked = payload.ask(head, b"{bytes")
    assert asked.group == INFER
    described, body = payload.unpack(asked.items[0])
    assert described == payload.Head(payload.OCTETS, "uint8", (2, 3))
    assert payload.expected_bytes(described) == 6
    assert bytes(body) == b"{bytes"


def test_json_travels_as_it_is() -> None:
    """Nobody looks into it on the way."""
    (item,) = payload.ask(b"", b'{"data": [1').items
    assert payload.unpack(item) == (None, memoryview(b'{"data": [1'))


def test_other_content_types_need_no_headers() -> None:
    """A file says itself what it holds."""
    assert payload.unpack(payload.head("image/png", {"x-shape": "?"}))[0] == payload.Head("image/png")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-dtype": "object"},
        {"x-shape": ""},
        {"x-shape": "3,a"},
        {"x-shape": "0"},
        {"x-shape": "-1"},
        {"x-shape": "-1,-1"},
        {"x-shape": "1," * 9},
        {"x-shape": "99999999999999999999999"},
        {"x-shape": "9223372036854775807,2"},
        {"x-shape": str(2**63)},
    ],
)
def test_headers_that_describe_no_tensor_are_refused(headers: dict[str, str]) -> None:
    """With what is allowed."""
    with pytest.raises(BadInput, match="allowed: "):
        payload.head(payload.OCTETS, headers)


def test_a_shape_may_be_as_large_as_numpy_can_count() -> None:
    """And travels; the body is never that long."""
    described, _ = payload.unpack(payload.head(payload.OCTETS, {"x-shape": str(2**63 - 1)}))
    assert described == payload.Head(payload.OCTETS, shape=(2**63 - 1,))


def test_an_empty_body_is_refused() -> None:
    """Before it takes a place in a batch."""
    with pytest.raises(BadInput, match="the body is empty"):
        payload.ask(b"", b"")
