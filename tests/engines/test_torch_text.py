"""Text models without an ONNX file: a sentence-transformers folder with safetensors, small and random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carpool.engines.text_embedding import EngineName, load
from carpool.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and transformers deprecate their own parts

TEXTS = ["a", "a longer text about nothing", "b c"]
VOCABULARY = 30522  # of the tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("sentence")
    shutil.copy(minilm_dir / "tokenizer.json", folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=VOCABULARY, **sizes)
    transformers.BertModel(config).eval().save_pretrained(folder)
    (folder / "modules.json").write_text(
        json.dumps([{"type": f"st.models.{kind}"} for kind in ("Transformer", "Pooling")])
    )
    return folder


def vectors(folder: Path, engine: EngineName) -> Any:
    rows = load(folder, engine).run(TEXTS)
    return np.array([json.loads(row) for row in rows if isinstance(row, bytes)])


def test_safetensors_give_the_mean_of_the_states(folder: Path) -> None:
    """As transformers itself computes them, text by text."""
    encoder = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = load(folder).run
    tokens = [json.loads(bytes(row)) for row in _tokens(tokenizer)]
    for given, row in zip(vectors(folder, "auto"), tokens, strict=True):
        ids = torch.tensor([[token["id"] for token in row]])
        with torch.inference_mode():
            states = encoder(input_ids=ids).last_hidden_state[0].numpy()
        mean = states.mean(axis=0)
        assert given == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def _tokens(run: Any) -> Any:
    from carpool.wire.call import Call

    return run(TEXTS, Call.of("tokenize"))


def test_openvino_agrees(folder: Path) -> None:
    """Converted, and compared with torch at the start."""
    assert np.sum(vectors(folder, "torch") * vectors(folder, "openvino"), axis=1) == pytest.approx(1, abs=1e-2)


def test_what_would_be_left_out_or_cannot_run_is_refused(folder: Path, tmp_path: Path) -> None:
    """A layer behind the pooling, an engine for ONNX files, a folder without weights."""
    with pytest.raises(ModelError, match="onnxruntime runs no torch weights"):
        load(folder, "onnxruntime")
    shutil.copytree(folder, tmp_path / "dense")
    (tmp_path / "dense" / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(ModelError, match="asks for a layer Dense"):
        load(tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx does not exist"):
        load(tmp_path / "dense", "torch")
