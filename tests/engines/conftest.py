"""Both engines on the real model, loaded once, and small models for what the real one cannot show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from carpool.engines.text_embedding import TextEmbedding, load
from tests.engines import tiny_onnx

ENGINES = ("openvino", "onnxruntime")
Embed = Callable[[TextEmbedding, Sequence[str]], NDArray[np.float32]]
MakeModel = Callable[[bytes], Path]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest, minilm_dir: Path) -> TextEmbedding:
    return load(minilm_dir, cast(Literal["openvino", "onnxruntime"], request.param), threads=2)


@pytest.fixture
def embed() -> Embed:
    """The vectors of texts, as numbers."""
    return lambda engine, texts: vectors_in(engine.run(texts))


def vectors_in(results: Sequence[bytes | Exception]) -> NDArray[np.float32]:
    """What `run` returns, read back into numbers."""
    rows = [bytes(row) for row in results if isinstance(row, bytes)]
    return np.array([orjson.loads(row) for row in rows], dtype=np.float32)


@pytest.fixture
def make_model(minilm_dir: Path, tmp_path: Path) -> MakeModel:
    """A model directory with a small ONNX file and the real tokenizer."""

    def make(onnx: bytes) -> Path:
        shutil.copy(minilm_dir / "tokenizer.json", tmp_path)
        (tmp_path / "model.onnx").write_bytes(onnx)
        return tmp_path

    return make


@pytest.fixture
def tiny_dir(make_model: MakeModel) -> Path:
    return make_model(tiny_onnx.token_states())
