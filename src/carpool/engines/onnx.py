"""Which library runs an ONNX file. It knows neither of the two, but that each opens sessions and networks."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType

from carpool.errors import MissingExtra, ModelError


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
