"""A PyTorch network as OpenVINO runs it: converted, and not trusted before it agrees with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from carpool.engines.base import available_cores
from carpool.engines.openvino import OpenVinoNetwork, convert_network
from carpool.errors import ModelError

if TYPE_CHECKING:
    from carpool.engines.payloads import Array
    from carpool.engines.torch import TorchNetwork

# How far the outputs may be from torch's, as a part of their own length. CPUs with bf16 units compute in bf16,
# of 8 bits: 0.005 was measured on ResNet-18; a conversion that went wrong is off by far more.
_MOST_OFF = 0.03

# Inputs that are compared: more than one, so that a batch size that was frozen while tracing is found.
_ROWS = 3


def convert(module: Any, network: TorchNetwork, name: str) -> OpenVinoNetwork:
    """The network, converted and compared; raises `ModelError` with the difference."""
    shape = network.shape
    if shape is None or None in shape:
        raise ModelError(f"{name} cannot be converted: its input shape is not known", "give ?shape=3,224,224")
    random = np.random.default_rng(0)
    sizes = (_ROWS, *[size or 1 for size in shape])
    is_float = network.dtype.startswith("float")
    # Of whole numbers 0 and 1: they are most often places in a table, of which it has two at least.
    batch = (random.standard_normal(sizes) if is_float else random.integers(2, size=sizes)).astype(
        network.dtype
    )
    example = torch.from_numpy(batch[:2])  # two: a batch of one would be frozen as 1
    ours = convert_network(module, example, name, available_cores())
    off = refuse_difference(network.run(batch), ours.run(batch), name)
    ours.shape = shape
    ours.engine += f", from torch (off by {off:.2g})"
    return ours


def refuse_difference(expected: Any, given: Any, name: str) -> float:
    """How far the outputs are off; raises `ModelError` where that is too far."""
    off = difference(expected, given)
    if not off <= _MOST_OFF:
        raise ModelError(
            f"{name} on OpenVINO differs from torch by {off:.3g} of the output",
            f'allowed: {_MOST_OFF}; serve it with engine = "torch"',
        )
    return off


def difference(expected: Any, given: Any) -> float:
    """The largest difference of any output, as a part of the length of what was expected."""
    worst = 0.0
    theirs, ours = _listed(expected), _listed(given)
    if len(theirs) != len(ours):
        return float("inf")
    for one, other in zip(theirs, ours, strict=True):
        if one.shape != other.shape:
            return float("inf")
        length = float(np.linalg.norm(one)) or 1.0
        worst = max(worst, float(np.linalg.norm(one - other)) / length)
    return worst


def _listed(outputs: Any) -> list[Array]:
    if isinstance(outputs, dict):
        return [np.asarray(output) for output in outputs.values()]
    return [np.asarray(output) for output in outputs] if isinstance(outputs, list) else [np.asarray(outputs)]
