"""Which library runs an ONNX file. It knows neither of the two, but that each opens sessions and networks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from carpool.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from carpool.engines.tensors import Network


def library(engine: str, model: str) -> ModuleType:
    """The module of an engine; with "auto" it is OpenVINO's where that is installed, else ONNX Runtime's."""
    # Imported on use: each of the two modules needs a library that may not be installed.
    match engine:
        case "openvino":
            from carpool.engines import openvino

            return openvino
        case "onnxruntime":
            from carpool.engines import onnxruntime

            return onnxruntime
        case "auto":
            with suppress(MissingExtra):
                return library("openvino", model)
            with suppress(MissingExtra):
                return library("onnxruntime", model)
            raise MissingExtra("openvino", "local")
        case _:
            raise ModelError(f"{model} does not run on {engine}", "allowed: auto, openvino, onnxruntime")


def open_network(engine: str, model: Path, threads: int) -> Network:
    """The network in a file; with "auto" on ONNX Runtime, where there is that, if OpenVINO were not exact."""
    chosen = library(engine, model.name)
    if engine == "auto" and not chosen.is_exact(model):
        with suppress(MissingExtra):
            chosen = library("onnxruntime", model.name)
    network: Network = chosen.open_network(model, threads)
    return network
