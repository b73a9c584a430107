"""An ONNX file as a model on one tensor, on whichever library there is."""

from __future__ import annotations

from pathlib import Path

from carpool.engines.base import available_cores
from carpool.engines.onnx import open_network
from carpool.engines.python_model import PythonModel, serve
from carpool.engines.tensors import TensorModel, picture
from carpool.errors import ModelError


def load_onnx(path: str, engine: str = "auto", image: str = "", threads: int = 0) -> PythonModel:
    """The network in an ONNX file, ready and warm."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{path} does not exist", "expected an ONNX file")
    network = open_network(engine, file, threads or available_cores())
    return serve(TensorModel(network, picture(image)), file.name)
