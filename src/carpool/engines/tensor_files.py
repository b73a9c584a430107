"""An ONNX file as a model on one tensor, on whichever library there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from carpool.engines.base import available_cores
from carpool.engines.python_model import PythonModel, serve
from carpool.engines.tensors import Network, TensorModel, picture
from carpool.errors import MissingExtra, ModelError


def load_onnx(path: str, engine: str = "auto", image: str = "", threads: int = 0) -> PythonModel:
    """The network in an ONNX file, ready and warm. With "auto" it is OpenVINO's where that is installed."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{path} does not exist", "expected an ONNX file")
    network = _open(file, engine, threads or available_cores())
    return serve(TensorModel(network, picture(image)), file.name)


def _open(file: Path, engine: str, threads: int) -> Network:
    # Imported on use: each of the two modules needs a library that may not be installed.
    match engine:
        case "openvino":
            from carpool.engines import openvino

            return openvino.open_network(file, threads)
        case "onnxruntime":
            from carpool.engines import onnxruntime

            return onnxruntime.open_network(file, threads)
        case "auto":
            with suppress(MissingExtra):
                return _open(file, "openvino", threads)
            with suppress(MissingExtra):
                return _open(file, "onnxruntime", threads)
            raise MissingExtra("openvino", "local")
        case _:
            raise ModelError(f"{file.name} does not run on {engine}", "allowed: auto, openvino, onnxruntime")
