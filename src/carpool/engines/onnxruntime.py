"""A session on ONNX Runtime's CPU provider. The only module that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carpool.engines.base import Sessions, choose_output, unreadable
from carpool.errors import MissingExtra

try:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no stubs
except ImportError as error:
    raise MissingExtra("onnxruntime", "onnx") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints


class OnnxRuntimeSession:
    """An inference session that uses all its threads for each inference."""

    streams = 1
    prepares_shapes = False

    def __init__(self, session: Any) -> None:
        self.engine = f"onnxruntime {onnxruntime.__version__}"
        self.inputs = frozenset(port.name for port in session.get_inputs())
        outputs = [port.name for port in session.get_outputs()]
        self._outputs = [outputs[choose_output(outputs)]]
        self._session = session

    def infer(self, feeds: Mapping[str, Ints]) -> Floats:
        """Run the model."""
        states: Floats = self._session.run(self._outputs, dict(feeds))[0]
        return states


def open_sessions(model: Path, threads: int) -> Sessions:
    """Load the model once.

    Measured on two cores: groups run side by side with a thread each gain nothing on long batches and lose
    15 % on short ones.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings about the graph are not for the operator
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes have no common base and no public name
        raise unreadable(model, error) from error
    opened = OnnxRuntimeSession(session)
    return Sessions(opened, opened)
