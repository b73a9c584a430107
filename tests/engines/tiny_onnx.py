"""ONNX files of a few nodes, written field by field, so that the tests need no library to build them.

The field numbers are those of onnx.proto.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 30522
DIMENSIONS = 4
_FLOAT, _INT64 = 1, 7

# The types of tensors, by the names that numpy has for them.
ELEMENTS = {
    "float32": _FLOAT,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": _INT64,
    "str": 8,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
}


def table() -> NDArray[np.float32]:
    """The embedding of each token id: what the models here return for it."""
    return np.random.default_rng(0).standard_normal((VOCABULARY, DIMENSIONS)).astype(np.float32)


def token_states(ids: str = "input_ids", mask: str = "attention_mask") -> bytes:
    """A model without token_type_ids that looks each token up: [texts, tokens, 4]."""
    return _model(_lookup(ids, mask, "last_hidden_state"), (ids, mask), {"last_hidden_state": 3})


def few_positions(most: int) -> bytes:
    """The same as `token_states`, but it adds to each token a position, of which it has only so many."""
    nodes = _lookup("input_ids", "attention_mask", "found_by_id") + _node("Shape", ["input_ids"], "sizes")
    nodes += _node("Slice", ["sizes", "axis", "two"], "tokens")
    nodes += _node("Slice", ["positions", "zero", "tokens"], "used") + _node(
        "Add", ["found_by_id", "used"], "sum"
    )
    more = _tensor("positions", np.zeros((most, DIMENSIONS), dtype=np.float32), _FLOAT)
    more += b"".join(
        _tensor(name, np.array([value], dtype=np.int64), _INT64) for name, value in (("zero", 0), ("two", 2))
    )
    return _model(nodes + more, ("input_ids", "attention_mask"), {"sum": 3})


def sentence_vectors() -> bytes:
    """The same, and the sums over the tokens as a second output: [texts, 4]."""
    nodes = _lookup("input_ids", "attention_mask", "token_embeddings")
    nodes += _node("ReduceSum", ["token_embeddings", "axis"], "kept")
    nodes += _node("Squeeze", ["kept", "axis"], "sentence_embedding")
    return _model(nodes, ("input_ids", "attention_mask"), {"token_embeddings": 3, "sentence_embedding": 2})


def same_as_mask() -> bytes:
    """A model that returns one number for each token: [texts, tokens], int64."""
    return _model(
        _node("Add", ["input_ids", "attention_mask"], "sum"),
        ("input_ids", "attention_mask"),
        {"sum": 2},
        element=_INT64,
    )


def doubled(*shape: int | str, outputs: int = 1, inputs: int = 1) -> bytes:
    """A network that returns twice its tensor of this shape, once or more; a size with a name may be any."""
    nodes = b"".join(_node("Add", ["x0", f"x{inputs - 1}"], f"y{place}") for place in range(outputs))
    graph = nodes + _field(2, b"tiny")
    graph += b"".join(_shaped(11, f"x{place}", shape) for place in range(inputs))
    graph += b"".join(_shaped(12, f"y{place}", shape) for place in range(outputs))
    return _whole(graph)


def same(dtype: str, *shape: int | str) -> bytes:
    """A network that returns its tensor as it is."""
    element = ELEMENTS[dtype]
    graph = _node("Identity", ["x"], "y") + _field(2, b"tiny")
    return _whole(graph + _shaped(11, "x", shape, element) + _shaped(12, "y", shape, element))


def constant() -> bytes:
    """A network that takes nothing."""
    graph = _tensor("c", np.ones(2, dtype=np.float32), _FLOAT) + _node("Identity", ["c"], "y")
    return _whole(graph + _field(2, b"tiny") + _shaped(12, "y", (2,)))


def _shaped(field: int, name: str, shape: tuple[int | str, ...], element: int = _FLOAT) -> bytes:
    sizes = [_number(1, size) if isinstance(size, int) else _field(2, size.encode()) for size in shape]
    tensor = _number(1, element) + _field(2, b"".join(_field(1, size) for size in sizes))
    return _field(field, _field(1, name.encode()) + _field(2, _field(1, tensor)))


def _lookup(ids: str, mask: str, output: str) -> bytes:
    nodes = _node("Gather", ["table", ids], "found") + _node("Gather", ["keep", mask], "kept_or_not")
    return nodes + _node("Mul", ["found", "kept_or_not"], output)


def _model(nodes: bytes, inputs: tuple[str, ...], outputs: dict[str, int], element: int = _FLOAT) -> bytes:
    graph = nodes + _field(2, b"tiny")
    graph += _tensor("table", table(), _FLOAT)
    graph += _tensor("keep", np.array([[0] * DIMENSIONS, [1] * DIMENSIONS], dtype=np.float32), _FLOAT)
    graph += _tensor("axis", np.array([1], dtype=np.int64), _INT64)
    graph += b"".join(_value(11, name, _INT64, rank=2) for name in inputs)
    graph += b"".join(_value(12, name, element, rank) for name, rank in outputs.items())
    return _whole(graph)


def _whole(graph: bytes) -> bytes:
    return _number(1, 8) + _field(8, _number(2, 13)) + _field(7, graph)


def _node(operator: str, inputs: list[str], output: str) -> bytes:
    body = b"".join(_field(1, name.encode()) for name in inputs)
    return _field(1, body + _field(2, output.encode()) + _field(4, operator.encode()))


def _tensor(name: str, values: NDArray[np.float32] | NDArray[np.int64], element: int) -> bytes:
    dimensions = b"".join(_number(1, size) for size in values.shape)
    return _field(5, dimensions + _number(2, element) + _field(8, name.encode()) + _field(9, values.tobytes()))


def _value(field: int, name: str, element: int, rank: int) -> bytes:
    shape = b"".join(_field(1, _field(2, f"{name}{axis}".encode())) for axis in range(rank))
    tensor = _number(1, element) + _field(2, shape)
    return _field(field, _field(1, name.encode()) + _field(2, _field(1, tensor)))


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
