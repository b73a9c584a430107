"""What `model = SPEC` means: which loader the worker calls, with which arguments, and what the model takes.

It looks at names and files and imports nothing of a model: only the worker process does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from carpool.errors import ModelError
from carpool.models import pull
from carpool.models.catalog import CATALOG

_TEXT = "carpool.engines.text_embedding:load"  # by name: only the worker process imports an engine
_PYTHON = "carpool.engines.python_model:load"

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """What a worker process is to load. `takes` is what `/predict` reads: a text, or anything else."""

    loader: str
    arguments: dict[str, Any]
    title: str
    takes: Literal["text", "data"]


def resolve(spec: str, engine: str = "auto", progress: pull.Progress = lambda done: None) -> LocalModel:
    """The model that a SPEC means; a catalogue model is pulled if it is not here yet. Raises `ModelError`."""
    if spec in CATALOG:
        return _embedding(pull.pull(CATALOG[spec], progress), engine, CATALOG[spec].title)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _embedding(path.resolve(), engine, str(path.resolve()))
    if _TARGET.fullmatch(spec):
        return LocalModel(_PYTHON, {"target": spec, "folder": os.getcwd()}, spec, "data")
    raise ModelError(
        f"model {spec!r} is neither a catalogue name nor a directory nor Python",
        f"allowed: {', '.join(CATALOG)}, a directory with model.onnx and tokenizer.json, package.module:name",
    )


def _embedding(directory: Path, engine: str, title: str) -> LocalModel:
    return LocalModel(_TEXT, {"directory": str(directory), "engine": engine}, title, "text")
