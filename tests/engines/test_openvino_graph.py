"""Graphs as exporters write them, of a few nodes: what is left of them, and that they compute the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino  # type: ignore[import-untyped]
import pytest
from numpy.typing import NDArray
from openvino import opset13 as op

from carpool.engines import openvino_graph
from carpool.engines.openvino_graph import simplify

Floats = NDArray[np.float32]

LOWEST = float(np.finfo(np.float32).min)
VALUES = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
SCORES = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
PACKED = np.random.default_rng(2).integers(-128, 128, (4, 3)).astype(np.int8)
SCALE = np.array([0.5, 0.25, 2.0], dtype=np.float32)


def number(value: float, dtype: type = np.float32) -> Any:
    return op.constant(np.array(value, dtype=dtype))


def attention(*choice: float, dtype: type = np.float32) -> Any:
    """Means of VALUES by scores, of which a mask keeps some, and behind the softmax what torch puts there.

    `choice` is what the mask adds where it is true, and where not; without one nothing is masked.
    """
    scores, mask = op.parameter([-1, 4], dtype), op.parameter([-1, 1, 4], np.bool_)
    added = [op.squeeze(op.select(mask, *(number(one, dtype) for one in choice)), [1])] if choice else []
    softmax = op.softmax(op.add(scores, *added) if added else op.abs(scores), 1)
    guarded = op.select(op.is_nan(softmax), number(0.0, dtype), softmax)
    values = op.constant(VALUES.astype(dtype))
    return openvino.Model([op.matmul(guarded, values, False, False)], [scores, mask])


def packed(weights: Any) -> Any:
    """A product by weights, for the rows of an embedding that is packed too."""
    ids = op.parameter([-1], np.int64)
    table = op.multiply(op.convert(op.constant(PACKED.T.copy()), np.float32), number(0.5))
    return openvino.Model([op.matmul(op.gather(table, ids, 0), weights, False, False)], [ids])


def scaled() -> Any:
    """8-bit weights, with their zero point and their scales."""
    return op.multiply(
        op.subtract(op.convert(op.constant(PACKED), np.float32), number(3.0)), op.constant(SCALE)
    )


def kinds(network: Any) -> list[str]:
    return [node.get_type_name() for node in network.get_ops()]


def run(network: Any, *inputs: Any, precision: str = "f32") -> Floats:
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    (output,) = compiled(list(inputs)).values()
    return np.array(output)


@pytest.mark.parametrize("masked", [-math.inf, LOWEST])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_an_attention_needs_no_guard_whose_mask_is_finite(masked: float, precision: str) -> None:
    """The same means to the last bit for who may look at somebody, and no NaN for who may not."""
    mask = np.array([[[True, False, True, False]], [[True] * 4], [[False] * 4]])
    network = attention(0.0, masked)
    before = run(network, SCORES, mask, precision=precision)
    simplify(network)
    assert "IsNaN" not in kinds(network)
    after = run(network, SCORES, mask, precision=precision)
    assert np.array_equal(after[:2], before[:2])
    assert np.isfinite(after[2]).all()


def test_a_mask_keeps_its_type() -> None:
    """A model in 16 bits is compiled like any other."""
    network = attention(0.0, float(np.finfo(np.float16).min), dtype=np.float16)
    mask = np.array([[[True, False, True, False]], [[True] * 4], [[False] * 4]])
    before = run(network, SCORES.astype(np.float16), mask)
    simplify(network)
    assert "IsNaN" not in kinds(network)
    after = run(network, SCORES.astype(np.float16), mask)
    assert np.array_equal(after[:2], before[:2])


@pytest.mark.parametrize("choice", [(), (0.0, -100.0), (1.0, -math.inf), (0.0, math.nan)])
def test_a_guard_stays_where_the_mask_is_something_else(choice: tuple[float, ...]) -> None:
    """Without one, with one that masks nothing, and with one that is not 0 where it keeps."""
    network = attention(*choice)
    simplify(network)
    assert kinds(network) == kinds(attention(*choice))


def test_weights_are_unpacked_once() -> None:
    """All of them; an embedding, of which a batch needs a few rows, stays small."""
    network, ids = packed(scaled()), np.array([2, 0])
    before = run(network, ids)
    simplify(network)
    assert kinds(network).count("Convert") == 1  # the embedding's
    assert np.array_equal(run(network, ids), before)


def test_large_weights_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take as much memory as they were packed to save."""
    monkeypatch.setattr(openvino_graph, "_MOST_PACKED", PACKED.nbytes - 1)
    network = packed(scaled())
    simplify(network)
    assert kinds(network) == kinds(packed(scaled()))


def test_weights_that_are_multiplied_in_8_bits_stay_packed() -> None:
    """Those without a scale, which is for the product; and all in a network whose activations have 8 bits."""
    unscaled = op.convert(op.constant(PACKED), np.float32)
    network = packed(unscaled)
    simplify(network)
    assert kinds(network).count("Convert") == 2
    network = packed(scaled())
    (product,) = [node for node in network.get_ops() if node.get_type_name() == "MatMul"]
    ends = [number(end) for end in (-4.0, 4.0, -4.0, 4.0)]
    product.input(0).replace_source_output(op.fake_quantize(product.input_value(0), *ends, 256).output(0))
    simplify(network)
    assert kinds(network).count("Convert") == 2
