"""A PyTorch network on one tensor: what runs it. How a file becomes one is `torch_files.py`'s matter.

On CUDA a batch goes through pinned memory and a stream of its own, so that it is copied while the one before is
still being computed. `compile` and CUDA graphs want few batch sizes: batches are then filled up to powers of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from carpool.engines.agreement import random_inputs
from carpool.engines.tensors import cut, padded
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
        packs: bool = True,
    ) -> None:
        self.engine = f"torch {torch.__version__}"
        self.shape = shape
        self.dtype = dtype
        self._device = torch.device(device)
        self._bf16 = bf16
        self._packs = packs and not bf16
        self._is_compiled = bool(compiler)
        self.warm = _COMPILED_SIZES if compiler else (2, 1)
        if isinstance(module, torch.nn.Module):
            module = module.to(self._device)
        self._module = _compiled(module, compiler, self._device) if compiler else module
        self._copier = _Copier(self._device) if self._device.type == "cuda" else None

    def stage(self, batch: Array) -> _Staged:
        """The batch on its way to the device, filled up where that is wanted. Another may run meanwhile."""
        count = 1 << (len(batch) - 1).bit_length() if self._is_compiled else len(batch)
        whole = padded(batch, count) if count > len(batch) else batch
        if self._copier is None:
            return _Staged(torch.from_numpy(whole), len(batch))
        return self._copier.send(whole, len(batch))

    def run(self, batch: Array | _Staged) -> Any:
        """The module's output, with its tensors as arrays that are the caller's."""
        staged = batch if isinstance(batch, _Staged) else self.stage(batch)
        with torch.inference_mode(), self._precision():
            outputs = _arrays(self._module(staged.arrived()))
        return outputs if len(staged) == len(staged.tensor) else cut(outputs, len(staged))

    def lay_out_convolutions(self) -> None:
        """Have convolutions lie in memory as they are computed fastest, if the outputs stay the same.

        On a CPU, and where it is known what the network takes; nobody has measured it with a compiler.
        """
        from carpool.engines.convolutions import has_convolutions, lay_out

        if self._is_compiled or self._device.type != "cpu" or self.shape is None or None in self.shape:
            return
        if has_convolutions(self._module):
            inputs = random_inputs([size or 1 for size in self.shape], self.dtype)
            done = lay_out(self._module, self.run, inputs, self._packs)
            self.engine = ", ".join([self.engine, *done])

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()


@dataclass(frozen=True, slots=True)
class _Staged:
    """A batch on its device, or on its way there."""

    tensor: Any
    rows: int  # without those that fill it up
    copied: Any = None  # the event after which it is there; None if it is

    def __len__(self) -> int:
        return self.rows

    def arrived(self) -> Any:
        """The tensor, for the stream that computes."""
        if self.copied is not None:
            computing = torch.cuda.current_stream(self.tensor.device)
            computing.wait_event(self.copied)
            self.tensor.record_stream(computing)  # its memory is not given away while that stream reads it
        return self.tensor


class _Copier:
    """Copies batches to a CUDA device through pinned memory, on a stream of its own.

    torch keeps pinned memory that was used, and gives it to another batch once the copy from it is done: two
    batches on their way have two parts of it.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Array, rows: int) -> _Staged:
        """The batch, of which so many rows are wanted, on its way to the device."""
        with torch.cuda.stream(self._stream):  # also makes its device the current one, which each thread has
            sent = torch.from_numpy(batch).pin_memory().to(self._device, non_blocking=True)
            return _Staged(sent, rows, self._stream.record_event())


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
