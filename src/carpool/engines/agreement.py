"""Whether a network that was changed to run faster gives what it gave: both run the same random inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carpool.engines.payloads import Array

# How far outputs may be off, as a part of their own length. Where either computes in bf16, of 8 bits, 0.005 to
# 0.011 was measured on ResNets; what went wrong is off by far more.
MOST_OFF = 0.03

# Inputs that are compared: more than one, so that a batch size that was frozen while tracing is found.
_ROWS = 3


def random_inputs(shape: Sequence[int], dtype: str) -> Array:
    """A batch of inputs of this shape, the same at each call."""
    random = np.random.default_rng(0)
    sizes = (_ROWS, *shape)
    is_float = dtype.startswith("float")
    # Of whole numbers 0 and 1: they are most often places in a table, of which it has two at least.
    return (random.standard_normal(sizes) if is_float else random.integers(2, size=sizes)).astype(dtype)


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
