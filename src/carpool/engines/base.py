"""What the engines have in common, and what they need from the library that computes for them.

`Session` is the narrow part that each library implements. Nothing here knows any of them, or what the tensors
mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from carpool.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine tells about itself. `inputs` is what one item of a batch is."""

    engine: str
    inputs: str
    dimensions: int
    max_tokens: int
    threads: int


class Session(Protocol):
    """A model as its library has compiled it. `streams` threads may call `infer` at the same time."""

    @property
    def engine(self) -> str:
        """The library and its version."""

    @property
    def inputs(self) -> frozenset[str]:
        """The names of the tensors that the model takes."""

    @property
    def streams(self) -> int:
        """How many inferences run side by side, each with an equal part of the threads."""

    @property
    def prepares_shapes(self) -> bool:
        """Whether the first inference of each number of tokens is slower than those that follow."""

    def infer(self, feeds: Mapping[str, Ints], /) -> Floats:
        """Run the model on one tensor for each of its inputs; the array that returns is the caller's."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """A model, opened for its two uses: one inference at a time (`solo`), or several groups of a batch.

    They are the same session where a library gains nothing from a second one. A batch of up to `one_by_one`
    texts is not divided into groups: its texts run one after the other, each as if it were alone.
    """

    solo: Session
    shared: Session
    one_by_one: int = 1


def available_cores() -> int:
    """How many cores this process may use: its affinity where the platform has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_output(names: Sequence[str]) -> int:
    """The index of the output to read: sentence vectors where the model offers them, else what comes first.

    Exports of whole sentence-transformers pipelines name them so; exports of the transformer alone begin with
    the token states.
    """
    return names.index("sentence_embedding") if "sentence_embedding" in names else 0


def unreadable(model: Path | str, error: Exception) -> ModelError:
    """The error for a model file that a library will not take."""
    return ModelError(f"{model} is not an ONNX model that can be loaded", _last_line(error))


def _last_line(error: Exception) -> str:
    """The reason that a library gives: OpenVINO first says where in its source that was, line by line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
