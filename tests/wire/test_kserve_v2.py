"""What the proxy says to a KServe V2 upstream, and what it makes of the reply."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.core.replica import Capacity
from carpool.errors import BackendError, BadInput
from carpool.wire import kserve_v2
from carpool.wire.call import EMBED, Call
from carpool.wire.upstream import Exchange


def exchange(call: Call = EMBED) -> Exchange:
    return kserve_v2.assume("m").dialect.exchange(call)


def reply(
    shape: list[int], data: Any, datatype: str = "FP32", separators: tuple[str, str] = (",", ":")
) -> bytes:
    """A whole reply, with an output before the one that is wanted."""
    outputs = [
        {"name": "tokens", "shape": [1], "datatype": "INT64", "data": [7]},
        {"name": "embedding", "shape": shape, "datatype": datatype, "data": data},
    ]
    return json.dumps({"model_name": "m", "id": "1", "outputs": outputs}, separators=separators).encode()


def test_texts_become_a_tensor_of_bytes() -> None:
    """Its shape says how many there are."""
    assert exchange().path == "/v2/models/m/infer"
    assert json.loads(exchange().encode([b'"a"', b'"b"'])) == {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]
    }


def test_a_model_says_how_its_input_is_called_and_shaped() -> None:
    """And Triton how large a batch may be."""
    metadata = b"""{"name":"m","inputs":[{"name":"ids","datatype":"INT64","shape":[-1]},
        {"name":"TEXT","datatype":"BYTES","shape":[-1,1]}],"outputs":[]}"""
    description = kserve_v2.describe("m", metadata, b'{"max_batch_size":8}')
    assert description.capacity == Capacity(batch_size=8)
    (tensor,) = json.loads(description.dialect.exchange(EMBED).encode([b'"a"', b'"b"']))["inputs"]
    assert (tensor["name"], tensor["shape"]) == ("TEXT", [2, 1])
    assert kserve_v2.describe("m", metadata, b"{}").capacity == Capacity()
    with pytest.raises(BackendError, match="takes no texts"):
        kserve_v2.describe("m", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]}', b"{}")


def test_what_cannot_be_said_is_refused() -> None:
    """Other operations, parameters that would be lost, token ids."""
    for call in (Call.of("rerank", query="q"), Call.of("embed", dimensions=3)):
        with pytest.raises(BadInput, match=r"at the upstream does not take|the upstream has no"):
            exchange(call)
    with pytest.raises(BadInput, match="not token ids"):
        exchange().encode([b"[1, 2]"])


@pytest.mark.parametrize("data", [[1, 2.50, 3, 4, 5, 6e-9], [[1, 2.50, 3], [4, 5, 6e-9]]])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_rows_are_cut_from_flat_and_from_nested_data(data: list[Any], separators: tuple[str, str]) -> None:
    """One for each text."""
    rows = exchange().decode(reply([2, 3], data, separators=separators), 2)
    assert [json.loads(bytes(row)) for row in rows] == [[1, 2.5, 3], [4, 5, 6e-9]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"outputs":[]}',
        reply([3, 2], [1, 2, 3, 4, 5, 6]),
        reply([6], [1, 2, 3, 4, 5, 6]),
        reply([2, 3], [1, 2, 3, 4, 5]),
        reply([2, 3], [1, 2, 3, 4, 5, 6, 7]),
        reply([2, 3], [[1, 2, 3]]),
        reply([2, 3], [1, 2, 3, [4, 5], 6]),
        reply([2, 0], []),
        reply([2, 3], ["1,2", 3, 4, 5, 6]),
        reply([2, 1], ["a", "b"], datatype="BYTES"),
        reply([2, 3], "123456"),
        reply([2, 3], [1, 2, 3, 4, 5, 6])[:-1],
    ],
)
def test_a_reply_that_does_not_pair_is_refused(body: bytes) -> None:
    """Of another shape, of another length than its shape, of another type, not whole."""
    with pytest.raises(BackendError, match="the upstream"):
        exchange().decode(body, 2)


@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_cutting_is_the_same_as_reshaping(data: st.DataObject, count: int, width: int) -> None:
    """For every matrix of numbers."""
    numbers = st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False))
    flat = data.draw(st.lists(numbers, min_size=count * width, max_size=count * width))
    rows = exchange().decode(reply([count, width], flat), count)
    assert [json.loads(bytes(row)) for row in rows] == [
        flat[start : start + width] for start in range(0, len(flat), width)
    ]
