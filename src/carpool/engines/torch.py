"""A PyTorch network on one tensor: what runs it. How a file becomes one is `torch_files.py`'s matter.

On CUDA a batch goes through pinned memory and a stream of its own, so that the copy does not wait for what is
still being computed. `compile` and CUDA graphs want few batch sizes: batches are then filled up to powers of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from carpool.engines.tensors import run_padded
from carpool.errors import MissingExtra

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "torch") from error

if TYPE_CHECKING:
    from carpool.engines.payloads import Array, Shape


# What is compiled before the first real batch; larger batches are compiled when they are first met.
_COMPILED_SIZES = (32, 16, 8, 4, 2, 1)


class TorchNetwork:
    """A module, ready to run; `run` is for one caller at a time."""

    batch: int | None = None

    def __init__(
        self,
        module: Any,
        shape: Shape | None,
        device: str = "cpu",
        dtype: str = "float32",
        bf16: bool = False,
        compiler: str = "",
    ) -> None:
        self.engine = f"torch {torch.__version__}"
        self.shape = shape
        self.dtype = dtype
        self._device = torch.device(device)
        self._bf16 = bf16
        self._is_compiled = bool(compiler)
        self.warm = _COMPILED_SIZES if compiler else (2, 1)
        if isinstance(module, torch.nn.Module):
            module = module.to(self._device)
        self._module = _compiled(module, compiler, self._device) if compiler else module
        self._copier = _Copier(self._device) if self._device.type == "cuda" else None

    def run(self, batch: Array) -> Any:
        """The module's output, with its tensors as arrays that are the caller's."""
        if not self._is_compiled:
            return self._run(batch)
        return run_padded(self._run, batch, 1 << (len(batch) - 1).bit_length())

    def _run(self, batch: Array) -> Any:
        with torch.inference_mode(), self._precision():
            sent = torch.from_numpy(batch) if self._copier is None else self._copier.send(batch)
            return _arrays(self._module(sent))

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()


class _Copier:
    """Copies batches to a CUDA device through pinned memory, on a stream of its own."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = torch.empty(0, dtype=torch.uint8, pin_memory=True)
        self._copied = torch.cuda.Event()

    def send(self, batch: Array) -> Any:
        """The batch as a tensor on the device, for the stream that computes."""
        self._copied.synchronize()  # what was in the pinned memory has left it
        if self._pinned.numel() < batch.nbytes:
            self._pinned = torch.empty(batch.nbytes, dtype=torch.uint8, pin_memory=True)
        source = torch.from_numpy(batch)
        staged = self._pinned[: batch.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            sent = staged.to(self._device, non_blocking=True)
            self._copied.record(self._stream)
        computing.wait_stream(self._stream)
        sent.record_stream(computing)  # its memory is not to be given away while that stream reads it
        return sent


def _compiled(module: Any, backend: str, device: Any) -> Any:
    # Batch sizes are few: shapes are compiled as they are, and on CUDA recorded as graphs.
    mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
    return torch.compile(module, backend=backend, dynamic=False, mode=mode)


def _arrays(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        output = output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
        return np.array(output.cpu())
    if isinstance(output, Mapping):
        return {name: _arrays(one) for name, one in output.items()}
    if isinstance(output, (list, tuple)):
        return [_arrays(one) for one in output]
    raise TypeError(f"the network returned {type(output).__name__}: expected tensors")
