"""What `model = SPEC` means: which loader the worker calls, with which arguments, and what the model takes.

It looks at names and files and imports nothing of a model: only the worker process does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from carpool.errors import MissingExtra, ModelError
from carpool.models import pull
from carpool.models.catalog import CATALOG
from carpool.wire.base import Payload

# By name: only the worker process imports an engine.
_TEXT = "carpool.engines.text_embedding:load"
_PYTHON = "carpool.engines.python_model:load"
_ONNX = "carpool.engines.tensor_files:load_onnx"

_TORCH = "carpool.engines.torch_files:load"
_VISION = "carpool.engines.vision:load"

_TORCH_OPTIONS = ("bf16", "compile")
_CLASSIFIER = re.compile(r"torchvision:(\w+)|(resnet(?:18|34|50|101|152))")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_ALLOWED = (
    f"allowed: {', '.join(CATALOG)}, a directory with tokenizer.json and model.onnx or safetensors, "
    "a file (.onnx, .pt, .pt2), resnet18, torchvision:NAME, package.module:name"
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """What a worker process is to load. `takes` is what `/predict` reads: a text, or anything else."""

    loader: str
    arguments: dict[str, Any]
    title: str
    takes: Payload


def resolve(spec: str, engine: str = "auto", progress: pull.Progress = lambda done: None) -> LocalModel:
    """The model that a SPEC means; a catalogue model is pulled if it is not here yet. Raises `ModelError`.

    Behind a question mark a SPEC may have options: `model.onnx?image=imagenet`.
    """
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    path = Path(name).expanduser()
    if name in CATALOG:
        _only(spec, options, ())
        if not pull.is_cached(CATALOG[name]):
            check_installed(engine)
        return _embedding(pull.pull(CATALOG[name], progress), engine, CATALOG[name].title)
    if path.is_dir():
        _only(spec, options, ())
        return _embedding(path.resolve(), engine, str(path.resolve()))
    if path.is_file() and path.suffix in _FILES:
        loader, allowed = _FILES[path.suffix]
        _only(spec, options, allowed)
        return LocalModel(loader, {"path": str(path.resolve()), "engine": engine} | options, path.name, "data")
    if (classifier := _CLASSIFIER.fullmatch(name)) is not None:
        _only(spec, options, (*_TORCH_OPTIONS, "weights", "pack"))
        arguments = {"name": classifier[1] or classifier[2], "engine": engine} | options
        return LocalModel(_VISION, arguments, spec, "data")
    if _TARGET.fullmatch(name):
        _only(spec, options, ())
        return LocalModel(_PYTHON, {"target": name, "folder": os.getcwd()}, name, "data")
    raise ModelError(f"model {spec!r} is no name, directory, file or Python that is known", _ALLOWED)


def check_installed(engine: str) -> None:
    """Raise `MissingExtra` where what runs a catalogue model is not here: it would be pulled for nothing."""
    engines = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}
    of_engine = engines.get(engine, ("openvino", "onnxruntime"))  # any of them will do
    for anyone in ("tokenizers",), ("numpy",), ("orjson",), of_engine:
        if not any(find_spec(package) for package in anyone):
            raise MissingExtra(anyone[0], "onnx" if engine == "onnxruntime" else "local")


# By its suffix: what loads a file, and the options that this takes.
_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    ".onnx": (_ONNX, ("image",)),
    ".pt": (_TORCH, ("shape", "dtype", "image", *_TORCH_OPTIONS)),
    ".pt2": (_TORCH, ("image", *_TORCH_OPTIONS)),
}


def _only(spec: str, options: dict[str, str], allowed: tuple[str, ...]) -> None:
    for option in options:
        if option not in allowed:
            raise ModelError(
                f"model {spec!r}: {option} is not known", f"allowed: {', '.join(allowed) or 'none'}"
            )


def _embedding(directory: Path, engine: str, title: str) -> LocalModel:
    return LocalModel(_TEXT, {"directory": str(directory), "engine": engine}, title, "text")
