"""Sessions on a text model's torch weights, where there is no ONNX file: on torch, or converted to OpenVINO."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carpool.engines.base import Sessions
from carpool.errors import MissingExtra, ModelError

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingExtra(error.name or "torch", "torch") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints

_KNOWN = ("input_ids", "attention_mask", "token_type_ids")


class TorchTextSession:
    """A transformer that gives the states of its tokens."""

    streams = 1
    prepares_shapes = False

    def __init__(self, encoder: Any) -> None:
        self.engine = f"torch {torch.__version__}"
        self.inputs = frozenset(
            name for name in inspect.signature(encoder.forward).parameters if name in _KNOWN
        )
        self._encoder = encoder

    def infer(self, feeds: Mapping[str, Ints]) -> Floats:
        """Run the model."""
        with torch.inference_mode():
            made = self._encoder(**{name: torch.from_numpy(ids) for name, ids in feeds.items()})
        states: Floats = np.array(made.last_hidden_state.float())
        return states


def open_sessions(directory: Path, threads: int) -> Sessions:
    """Load the weights; groups of a batch run one after the other, each with all threads."""
    session = TorchTextSession(_read(directory))
    torch.set_num_threads(threads)
    return Sessions(session, session)


def open_converted(directory: Path, threads: int) -> Sessions:
    """The same on OpenVINO, which must agree with torch about a first batch."""
    from carpool.engines import openvino
    from carpool.engines.converted import refuse_difference

    encoder = _read(directory)
    reference = TorchTextSession(encoder)
    sessions = openvino.convert_text(_States(encoder), sorted(reference.inputs), str(directory), threads)
    feeds = {name: np.ones((3, 16), dtype=np.int64) for name in reference.inputs}
    feeds["input_ids"] = np.random.default_rng(0).integers(1, encoder.config.vocab_size, (3, 16))
    feeds["attention_mask"][1:, 9:] = 0  # padding: only the states in front of it count
    if "token_type_ids" in feeds:
        feeds["token_type_ids"][:] = 0
    real = feeds["attention_mask"][:, :, None]
    refuse_difference(reference.infer(feeds) * real, sessions.solo.infer(feeds) * real, str(directory))
    return sessions


class _States(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """An encoder that returns a tensor, from its inputs in the order of their names."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, attention_mask: Any, input_ids: Any, token_type_ids: Any = None) -> Any:
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state


def _read(directory: Path) -> Any:
    try:
        return transformers.AutoModel.from_pretrained(directory, local_files_only=True).eval()
    except Exception as error:  # the library raises what it pleases
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{directory} holds no weights that transformers can load", reason) from error
