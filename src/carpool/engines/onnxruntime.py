"""A session on ONNX Runtime's CPU provider. The only module that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carpool.engines.base import Sessions, choose_output, unreadable
from carpool.engines.tensors import one_input
from carpool.errors import MissingExtra, ModelError

try:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no stubs
except ImportError as error:
    raise MissingExtra("onnxruntime", "onnx") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints
    from carpool.engines.payloads import Array


# As the library writes the types of tensors, and as numpy does.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


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
    opened = OnnxRuntimeSession(_open(model, threads))
    return Sessions(opened, opened)


class OnnxRuntimeNetwork:
    """A network on one tensor."""

    warm = (2, 1)

    def __init__(self, session: Any) -> None:
        (port,) = session.get_inputs()
        sizes = [size if isinstance(size, int) else None for size in port.shape]
        self.engine = f"onnxruntime {onnxruntime.__version__}"
        self.batch: int | None = sizes[0]
        self.shape = tuple(sizes[1:])
        self.dtype = _DTYPES[port.type]
        self._input = port.name
        self._names = [output.name for output in session.get_outputs()]
        self._session = session

    def run(self, batch: Array) -> Any:
        """The network's output, or its outputs by their names."""
        outputs = self._session.run(None, {self._input: batch})
        return dict(zip(self._names, outputs, strict=True)) if len(outputs) > 1 else outputs[0]


def is_exact(_: Path) -> bool:
    """It computes in the types that a file names."""
    return True


def open_network(model: Path, threads: int) -> OnnxRuntimeNetwork:
    """Load a network."""
    session = _open(model, threads)
    one_input(str(model), [port.name for port in session.get_inputs()])
    (port,) = session.get_inputs()
    if not port.shape:
        raise ModelError(f"{model} takes a tensor without a batch dimension", "expected [batch, ...]")
    if port.type not in _DTYPES:
        raise ModelError(f"{model} takes a {port.type}", f"allowed: {', '.join(_DTYPES)}")
    return OnnxRuntimeNetwork(session)


def _open(model: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings about the graph are not for the operator
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes have no common base and no public name
        raise unreadable(model, error) from error
