"""A session on OpenVINO's CPU plugin. The only module that imports openvino."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from carpool.engines.base import Sessions, choose_output, unreadable
from carpool.engines.tensors import one_input
from carpool.errors import MissingExtra, ModelError

try:
    import openvino  # type: ignore[import-untyped]  # it ships no stubs
except ImportError as error:
    raise MissingExtra("openvino", "local") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints
    from carpool.engines.payloads import Array


class OpenVinoSession:
    """A compiled model and one infer request for each stream."""

    prepares_shapes = True  # 10 to 30 ms, in each stream

    def __init__(self, compiled: Any, streams: int) -> None:
        self.engine = _engine()
        self.inputs = frozenset(port.any_name for port in compiled.inputs)
        self.streams = streams
        self._output = choose_output([_name(port, place) for place, port in enumerate(compiled.outputs)])
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


def open_sessions(model: Path, threads: int) -> Sessions:
    """Compile the model for all threads together, and for streams of one thread each.

    Measured on two cores, MiniLM: groups run side by side do 15 to 23 % more than one after the other with
    all threads, because short texts make matrices too small to divide; a text alone is 12 % faster with all.
    """
    return _sessions(model, threads)


def _sessions(model: Any, threads: int) -> Sessions:
    solo = OpenVinoSession(_compile(model, threads, streams=1), 1)
    if threads == 1:
        return Sessions(solo, solo)
    return Sessions(solo, OpenVinoSession(_compile(model, threads, streams=threads), threads))


class OpenVinoNetwork:
    """A compiled network on one tensor."""

    warm = (2, 1)

    def __init__(self, compiled: Any) -> None:
        (port,) = compiled.inputs
        sizes = [size.get_length() if size.is_static else None for size in port.partial_shape]
        self.engine = _engine()
        self.batch: int | None = sizes[0]
        self.shape = tuple(sizes[1:])
        self.dtype = str(port.element_type.to_dtype())
        self._names = [_name(port, place) for place, port in enumerate(compiled.outputs)]
        self._request = compiled.create_infer_request()

    def run(self, batch: Array) -> Any:
        """The network's output, or its outputs by their names; they are the caller's."""
        made = self._request.infer([batch], share_inputs=True)
        outputs = {name: made[place] for place, name in enumerate(self._names)}
        return outputs if len(outputs) > 1 else outputs[self._names[0]]


def open_network(model: Any, threads: int) -> OpenVinoNetwork:
    """Compile a network: the path of an ONNX file, or a model that OpenVINO has converted."""
    compiled = _compile(model, threads, streams=1)
    one_input(str(model), [port.any_name for port in compiled.inputs] if len(compiled.inputs) > 1 else [""])
    if compiled.inputs[0].partial_shape.rank.is_dynamic or not len(compiled.inputs[0].partial_shape):
        raise ModelError(f"{model} takes a tensor without a batch dimension", "expected [batch, ...]")
    return OpenVinoNetwork(compiled)


def convert_network(module: Any, example: Any, name: str, threads: int) -> OpenVinoNetwork:
    """Compile a PyTorch module that takes a tensor such as `example`, in batches of any size."""
    return open_network(_convert(module, name, example, input=[-1, *example.shape[1:]]), threads)


def convert_text(module: Any, names: Sequence[str], name: str, threads: int) -> Sessions:
    """Compile a PyTorch module that takes token ids under these names."""
    import torch

    return _sessions(
        _convert(module, name, {each: torch.ones(2, 16, dtype=torch.int64) for each in names}), threads
    )


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


def _name(port: Any, place: int) -> str:
    return str(port.any_name) if port.names else f"output_{place}"  # converted ones may have none


def _compile(model: Any, threads: int, streams: int) -> Any:
    """Shapes are left free: compiling for fixed ones was measured and gains nothing.

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
        raise unreadable(model, error) from error
