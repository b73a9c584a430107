"""A PyTorch network as OpenVINO runs it: converted, and not trusted before it agrees with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from carpool.engines.agreement import MOST_OFF, difference, random_inputs
from carpool.engines.base import available_cores
from carpool.engines.openvino import OpenVinoNetwork, convert_network
from carpool.errors import ModelError

if TYPE_CHECKING:
    from carpool.engines.torch import TorchNetwork


def convert(module: Any, network: TorchNetwork, name: str) -> OpenVinoNetwork:
    """The network, converted and compared; raises `ModelError` with the difference."""
    shape = network.shape
    if shape is None or None in shape:
        raise ModelError(f"{name} cannot be converted: its input shape is not known", "give ?shape=3,224,224")
    batch = random_inputs([size or 1 for size in shape], network.dtype)
    example = torch.from_numpy(batch[:2])  # two: a batch of one would be frozen as 1
    ours = convert_network(module, example, name, available_cores())
    off = refuse_difference(network.run(batch), ours.run(batch), name)
    ours.shape = shape
    ours.engine += f", from torch (off by {off:.2g})"
    return ours


def refuse_difference(expected: Any, given: Any, name: str) -> float:
    """How far the outputs are off; raises `ModelError` where that is too far."""
    off = difference(expected, given)
    if not off <= MOST_OFF:
        raise ModelError(
            f"{name} on OpenVINO differs from torch by {off:.3g} of the output",
            f'allowed: {MOST_OFF}; serve it with engine = "torch"',
        )
    return off
