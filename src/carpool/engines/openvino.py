"""A session on OpenVINO's CPU plugin. Only this module and `openvino_graph` import openvino."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from carpool.engines.base import Sessions, choose_output, unreadable
from carpool.engines.tensors import one_input
from carpool.errors import MissingExtra, ModelError

try:
    import numpy as np
    import openvino  # type: ignore[import-untyped]  # it ships no stubs

    from carpool.engines.openvino_graph import simplify
except ImportError as error:
    raise MissingExtra("openvino", "local") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints
    from carpool.engines.payloads import Array


# The numbers of tokens that a text alone is padded up to; a network is compiled for each. Measured on MiniLM,
# two cores, with 70 sentences a second (three of four have at most 32 tokens, nearly all at most 64): the
# median is 6.0 ms on one of free shapes, 4.4 with 32 and 64, and no less with 16 as well.
_WIDTHS = (32, 64)

# What a network may take, as the library writes types of tensors and as numpy does.
_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u16": "uint16",
    "u8": "uint8",
    "boolean": "bool",
}

# What the CPU plugin computes in 32 bits, cutting larger numbers off without a word: so inputs are taken in 32.
# It makes int32 of uint32 and uint64, too, and right only of half their numbers: these are not taken.
_NARROWED = {"f64": "float32", "i64": "int32"}

# Measured on the same: two texts as one batch take 2.1 ms of 9.5 longer than one after the other, three 1.1 of
# 11.7, as shapes that change cost as much as fixed ones compute. Four gain 0.8.
_ONE_BY_ONE = 3


class OpenVinoSession:
    """A compiled model and one infer request for each stream."""

    prepares_shapes = True  # 10 to 30 ms, in each stream

    def __init__(self, compiled: Any, streams: int) -> None:
        self.engine = _engine()
        self.inputs = frozenset(port.any_name for port in compiled.inputs)
        self.streams = streams
        self._output = choose_output(_names(compiled.outputs))
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def infer(self, feeds: Mapping[str, Ints]) -> Floats:
        """Run the model on the first idle request; with more callers than streams, wait for one."""
        request = self._idle.get()
        try:
            # The inputs are read where they are. The outputs are copied (the default), because the request's
            # own memory belongs to the next caller as soon as the request is idle again.
            states: Floats = request.infer(dict(feeds), share_inputs=True)[self._output]
            return states
        finally:
            self._idle.put(request)


class OneTextSession:
    """One text at a time: on a network of a fixed width where it is short, else on one of free shapes.

    A network of free shapes needs 1.2 ms to change from one width to another, even between widths that it
    knows: more than half as long as it computes a short text.
    """

    streams = 1
    prepares_shapes = True

    def __init__(self, free: OpenVinoSession, fixed: Mapping[int, OpenVinoSession]) -> None:
        self.engine = free.engine
        self.inputs = free.inputs
        self._free = free
        self._fixed = fixed

    def infer(self, feeds: Mapping[str, Ints]) -> Floats:
        """Run the text, padded to the next fixed width; what comes back is as wide as the text was."""
        rows, tokens = feeds["input_ids"].shape
        width = next((width for width in self._fixed if tokens <= width), None)
        if rows > 1 or width is None:
            return self._free.infer(feeds)
        states = self._fixed[width].infer({name: _widened(ids, width) for name, ids in feeds.items()})
        return states[:, :tokens] if states.ndim > 2 else states


def _widened(ids: Ints, width: int) -> Ints:
    """One row of token ids, or their mask, with zeros behind it; where the mask is 0, any id will do."""
    wide = np.zeros((1, width), dtype=np.int64)
    wide[:, : ids.shape[1]] = ids
    return wide


def open_sessions(model: Path, threads: int) -> Sessions:
    """Compile the model for all threads together, and for streams of one thread each.

    Measured on two cores, MiniLM: groups run side by side do 15 to 23 % more than one after the other with
    all threads, because short texts make matrices too small to divide; a text alone is 12 % faster with all.
    """
    try:
        network = openvino.Core().read_model(model)
    except RuntimeError as error:
        raise unreadable(model, error) from error
    simplify(network)
    return _sessions(network, str(model), threads)


def _sessions(network: Any, name: str, threads: int) -> Sessions:
    """Compile clones of one network: 50 MB each on MiniLM, as they share what they were read from."""
    free = OpenVinoSession(_compile(network.clone(), name, threads), 1)
    solo = OneTextSession(free, _open_fixed(network, name, threads))
    if threads == 1:
        return Sessions(solo, free, _ONE_BY_ONE)
    shared = OpenVinoSession(_compile(network.clone(), name, threads, streams=threads), threads)
    return Sessions(solo, shared, _ONE_BY_ONE)


def _open_fixed(network: Any, name: str, threads: int) -> dict[int, OpenVinoSession]:
    """A session for each fixed width; none where the network has sizes of its own or does not take these."""
    if any(port.partial_shape != openvino.PartialShape([-1, -1]) for port in network.inputs):
        return {}
    fixed = {}
    for width in _WIDTHS:
        clone = network.clone()
        try:
            clone.reshape({port: [1, width] for port in clone.inputs})
            fixed[width] = OpenVinoSession(_compile(clone, name, threads), 1)
        except (RuntimeError, ModelError):
            break
    return fixed


class OpenVinoNetwork:
    """A compiled network on one tensor."""

    warm = (2, 1)

    def __init__(self, compiled: Any) -> None:
        (port,) = compiled.inputs
        sizes = [size.get_length() if size.is_static else None for size in port.partial_shape]
        self.engine = _engine()
        self.batch: int | None = sizes[0]
        self.shape = tuple(sizes[1:])
        self.dtype = (_DTYPES | _NARROWED)[port.element_type.get_type_name()]
        self._names = _names(compiled.outputs)
        self._request = compiled.create_infer_request()

    def run(self, batch: Array) -> Any:
        """The network's output, or its outputs by their names; they are the caller's."""
        made = self._request.infer([batch], share_inputs=True)
        outputs = {name: made[place] for place, name in enumerate(self._names)}
        return outputs if len(outputs) > 1 else outputs[self._names[0]]


def is_exact(model: Path) -> bool:
    """Whether OpenVINO computes in the types that a network's inputs have."""
    try:
        network = openvino.Core().read_model(model)
    except RuntimeError as error:
        raise unreadable(model, error) from error
    return all(port.element_type.get_type_name() in _DTYPES for port in network.inputs)


def open_network(model: Any, threads: int) -> OpenVinoNetwork:
    """Compile a network: the path of an ONNX file, or a model that OpenVINO has converted."""
    compiled = _compile(model, str(model), threads)
    one_input(str(model), _names(compiled.inputs))
    if compiled.inputs[0].partial_shape.rank.is_dynamic or not len(compiled.inputs[0].partial_shape):
        raise ModelError(f"{model} takes a tensor without a batch dimension", "expected [batch, ...]")
    kind = compiled.inputs[0].element_type.get_type_name()
    if kind not in _DTYPES | _NARROWED:
        allowed = f"{', '.join(_DTYPES | _NARROWED)}; on ONNX Runtime u32 and u64 as well"
        raise ModelError(f"{model} takes a tensor of {kind}", f"allowed on OpenVINO: {allowed}")
    return OpenVinoNetwork(compiled)


def convert_network(module: Any, example: Any, name: str, threads: int) -> OpenVinoNetwork:
    """Compile a PyTorch module that takes a tensor such as `example`, in batches of any size."""
    return open_network(_convert(module, name, example, input=[-1, *example.shape[1:]]), threads)


def convert_text(module: Any, names: Sequence[str], name: str, threads: int) -> Sessions:
    """Compile a PyTorch module that takes token ids under these names."""
    import torch

    example = {each: torch.ones(2, 16, dtype=torch.int64) for each in names}
    return _sessions(_convert(module, name, example), name, threads)


def _convert(module: Any, name: str, example: Any, **more: Any) -> Any:
    try:
        return openvino.convert_model(module, example_input=example, **more)
    except Exception as error:  # the converter raises what it pleases
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{name} cannot be converted to OpenVINO", f'{reason}; serve it with engine = "torch"'
        ) from error


def _engine() -> str:
    return f"openvino {openvino.__version__.partition('-')[0]}"


def _names(ports: Sequence[Any]) -> list[str]:
    """Names of inputs or outputs; converted networks may have none."""
    return [str(port.any_name) if port.names else f"output_{place}" for place, port in enumerate(ports)]


def _compile(model: Any, name: str, threads: int, streams: int = 1) -> Any:
    """Compile a network, or the file at a path; `name` is what an error calls it.

    The precision stays OpenVINO's own choice: bf16 on a CPU with matrix units for it, else f32. Measured on
    MiniLM: bf16 takes half the time of f32, and its vectors have a cosine of at least 0.9999 to those of f32.
    """
    options = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads take the same first cores in every worker process, and leave the others idle.
        # Measured: two workers of one thread each on two cores do half as much when pinned.
        "ENABLE_CPU_PINNING": False,
        # Without bf16 units OpenVINO rounds activations to 8 bits by default. Measured: up to two thirds
        # faster, but the cosine to the exact vector falls to 0.998, so the same text would differ by CPU.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    try:
        return openvino.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise unreadable(name, error) from error
