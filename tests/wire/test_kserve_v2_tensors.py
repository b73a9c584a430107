"""Tensors of numbers in requests of KServe V2, and results as tensors, without a server."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.engines import payloads
from carpool.errors import BadInput, Unsupported
from carpool.wire import kserve_v2_tensors as tensors

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
NUMPY = {name: np.dtype(kind.dtype) for name, kind in tensors.TYPES.items()}


def read(data: Any, datatype: str, shape: list[int]) -> list[Any]:
    is_binary = isinstance(data, bytes)
    written = data if is_binary else json.dumps(data).encode()
    return [payloads.read(item) for item in tensors.rows(written, is_binary, datatype, shape)]


@given(SHAPES, st.sampled_from(sorted(NUMPY)))
def test_each_row_is_an_item_of_its_shape_and_type(shape: list[int], datatype: str) -> None:
    """Flat, nested and in bytes alike; half floats only in bytes."""
    dtype = NUMPY[datatype]
    tensor = (np.arange(np.prod(shape)) % 2 if datatype == "BOOL" else np.arange(np.prod(shape))).astype(dtype)
    tensor = tensor.reshape(shape)
    forms: list[Any] = [tensor.tobytes()]
    if datatype != "FP16":
        forms += [tensor.ravel().tolist(), tensor.tolist()]
    for data in forms:
        rows = read(data, datatype, shape)
        assert all(row.dtype == dtype and row.shape == tuple(shape[1:]) for row in rows)
        assert np.array_equal(np.stack(rows), tensor)


def test_integers_keep_all_their_digits() -> None:
    """64 bits are more than a float has."""
    assert read([2**63 - 1, -(2**63)], "INT64", [2]) == [2**63 - 1, -(2**63)]
    assert read([2**64 - 1], "UINT64", [1]) == [2**64 - 1]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "said"),
    [
        ([1.0], "FP31", [1], "allowed: BOOL, INT8"),
        ([1.0], "FP16", [1], "binary_data_size"),
        ([1.0, 2.0], "FP32", [3], r"expected FP32 of the shape \[3\]"),
        ([[1.0], [2.0]], "FP32", [1, 2], r"expected FP32 of the shape \[1, 2\]"),
        ([[1.0, 2.0], [3.0]], "FP32", [2, 2], "has 1 elements in the place of 2"),
        ([[1.0], 2.0], "FP32", [2, 1], "Expected `array`"),
        (["a"], "FP32", [1], "Expected `float`"),
        ([1.5], "INT32", [1], "Expected `int`"),
        ([300], "UINT8", [1], "no UINT8"),
        ([1e39], "FP32", [1], "no FP32"),
        ([2**64], "UINT64", [1], "no UINT64"),
        ([-1], "UINT64", [1], "no UINT64"),
        ([1], "BOOL", [1], "Expected `bool`"),
        ([], "FP32", [0, 3], r"allowed: \[n, ...\]"),
        ([1.0], "FP32", [], r"allowed: \[n, ...\]"),
        (b"", "INT8", [2**17], r"allowed: \[n, ...\]"),
        (b"123", "FP32", [1], "has 3 bytes: expected 4"),
        (b"", "INT8", [1, 2**62, 2**62], "has 0 bytes"),
    ],
)
def test_what_is_no_such_tensor_is_refused(data: Any, datatype: str, shape: list[int], said: str) -> None:
    """Each time with what is allowed."""
    with pytest.raises(BadInput, match=said):
        read(data, datatype, shape)


@given(SHAPES, st.sampled_from([None, 1]))
def test_results_of_one_shape_are_a_tensor(shape: list[int], indent: int | None) -> None:
    """Their numbers come out as they were written, whatever else is between them."""
    tensor = (np.arange(np.prod(shape)) - 1.5e-7).reshape(shape)
    rows, sizes = tensors.cut([json.dumps(row, indent=indent).encode() for row in tensor.tolist()])
    assert sizes == tuple(shape[1:])
    assert json.loads(b"[" + b",".join(rows) + b"]") == tensor.ravel().tolist()


@pytest.mark.parametrize(
    "results",
    [
        [[1, 2], [3]],
        [[[1, 2], [3]]],
        [[[1], [2, 3]]],
        [[[[1], [3]], [[1]]]],
        [[[1], 2]],
        [[1, [2]]],
        [[[1], [[2]]]],
        [[]],
        [[[], []]],
        [{"a": 1}],
        ["a"],
        [None],
        [[True, 1.0]],
    ],
)
def test_results_that_are_no_tensor_are_refused(results: list[Any]) -> None:
    """Ragged, empty, or not all numbers; the caller is told where they may be had."""
    with pytest.raises(Unsupported, match="/predict"):
        tensors.cut([json.dumps(result).encode() for result in results])


def test_bytes_are_little_endian() -> None:
    """Whatever the machine is."""
    assert tensors.pack(b"[1.5, -2]", "FP32", [2]) == struct.pack("<2f", 1.5, -2)
    assert tensors.pack(b"[1, -2]", "INT16", [2]) == struct.pack("<2h", 1, -2)
