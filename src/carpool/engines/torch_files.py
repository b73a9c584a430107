"""A TorchScript file, a `torch.export` archive or a module at hand, as a model; on torch or on OpenVINO."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carpool.engines.python_model import PythonModel, serve
from carpool.engines.tensors import Picture, TensorModel, one_input, picture
from carpool.engines.torch import TorchNetwork
from carpool.errors import MissingExtra, ModelError

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "torch") from error

if TYPE_CHECKING:
    from carpool.engines.payloads import Shape

logger = logging.getLogger(__name__)

# The types of tensors that numpy has as well.
_WHOLE = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
_DTYPES = ("float32", "float64", "float16", *_WHOLE)

# As a SPEC's options write them.
_TRUTHS = {"true": True, "1": True, "false": False, "0": False, "": False}


def load(
    path: str,
    engine: str = "auto",
    device: str = "cpu",
    shape: str = "",
    dtype: str = "",
    image: str = "",
    **options: str,
) -> PythonModel:
    """The network in a TorchScript file or a `torch.export` archive, ready and warm.

    A TorchScript file does not say what it takes: `shape` does, `3,224,224`, and `dtype`, where that is not
    float32. The other `options` are those of every network on torch.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{path} does not exist", "expected a TorchScript or torch.export file")
    run_on = network_options(device, **options)
    if file.suffix == ".pt2":
        module, own, run_on["dtype"] = _exported(file)
    else:
        module, own, run_on["dtype"] = _script(file, device), None, dtype or "float32"
    if run_on["dtype"] not in _DTYPES:
        raise ModelError(f"{file.name} cannot take {run_on['dtype']}", f"allowed: {', '.join(_DTYPES)}")
    wanted = _shape(shape) if shape else own
    if wanted is None:
        logger.warning(
            "%s does not say the shape of its input, so a wrong one is not told from an error of the model: "
            "pass %s?shape=3,224,224, with any for a size that may be any",
            file.name,
            file.name,
        )
    return from_module(module, wanted, file.name, engine, picture(image), **run_on)


def from_module(
    module: Any,
    shape: Shape | None,
    name: str,
    engine: str = "auto",
    picture: Picture | None = None,
    **options: Any,
) -> PythonModel:
    """A module as a model: on torch, or converted to OpenVINO and checked against torch."""
    if engine not in ("auto", "torch", "openvino"):
        raise ModelError(f"{name} does not run on {engine}", "allowed: auto, torch, openvino")
    device = options.get("device", "cpu")
    network: Any = TorchNetwork(module, shape, **options)
    if engine == "openvino":
        from carpool.engines.converted import convert

        network = convert(module, network, name)
    else:
        network.lay_out_convolutions()
    return serve(TensorModel(network, picture), name, device)


def network_options(
    device: str,
    bf16: str = "",
    compile: str = "",  # noqa: A002 (as the option of the SPEC is called)
    pack: str = "true",
) -> dict[str, Any]:
    """What a SPEC's options mean for `TorchNetwork`; `compile` is "true" or a backend of `torch.compile`."""
    for option, value in (("bf16", bf16), ("pack", pack)):
        if value.lower() not in _TRUTHS:
            raise ModelError(f"{option}={value} is not known", "allowed: true, false")
    is_truth = compile.lower() in _TRUTHS
    backend = ("inductor" if _TRUTHS[compile.lower()] else "") if is_truth else compile
    if backend and backend not in torch._dynamo.list_backends(None):
        allowed = ", ".join(("true", "false", *torch._dynamo.list_backends(None)))
        raise ModelError(f"compile={compile} is not known", f"allowed: {allowed}")
    _check_device(device)
    truths = {"bf16": _TRUTHS[bf16.lower()], "packs": _TRUTHS[pack.lower()]}
    return {"device": device, "compiler": backend} | truths


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each kind of device has its own
        there = ["cpu", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"device {device} cannot be used", f"there is {', '.join(there)} ({reason})"
        ) from error


def _shape(text: str) -> Shape:
    sizes = [size.strip() for size in text.split(",")]
    if not all(size == "any" or (size.isdecimal() and int(size) > 0) for size in sizes):
        raise ModelError(f"shape={text} is not a shape", "allowed: sizes from 1, or any, as 3,224,224")
    return tuple([None if size == "any" else int(size) for size in sizes])


def _script(file: Path, device: str) -> Any:
    try:
        return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        detail = "save it with torch.jit.save or torch.export.save, or write a Python model around its weights"
        raise ModelError(f"{file} is not a TorchScript file", detail) from error


def _exported(file: Path) -> tuple[Any, Shape, str]:
    """The module, and the shape and the type of its input."""
    try:
        program = torch.export.load(str(file))
    except Exception as error:  # whatever is wrong with a zip file, its pickles or its schema
        raise ModelError(f"{file} is not a torch.export archive", str(error).partition("\n")[0]) from error
    names = program.graph_signature.user_inputs
    one_input(str(file), [str(name) for name in names])
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == names[0])
    if not value.ndim or isinstance(value.shape[0], int):
        raise ModelError(
            f"{file} takes the shape {list(value.shape)}",
            "export it with dynamic_shapes, so that its first size, the batch, may be any",
        )
    module = program.module()
    module.eval = lambda: module  # OpenVINO's converter calls it, and torch's own raises
    shape = tuple([size if isinstance(size, int) else None for size in value.shape[1:]])
    return module, shape, str(value.dtype).removeprefix("torch.")
