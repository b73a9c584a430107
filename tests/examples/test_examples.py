"""Every example runs on its real libraries; what would fetch a trained model gets a small random one."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carpool.engines import python_model
from carpool.wire import payload
from carpool.wire.call import EMBED, INFER, Call
from tests.support.servers import carpool_serve

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and transformers deprecate their own parts


def load(name: str) -> python_model.PythonModel:
    return python_model.load(f"{name}:Model", str(EXAMPLES))


def answers(results: list[bytes | Exception]) -> list[Any]:
    for result in results:
        assert not isinstance(result, Exception), result
    return [json.loads(bytes(result)) for result in results if isinstance(result, bytes)]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_says_what_to_install_and_how_to_run_it(example: Path) -> None:
    """Whoever opens one of them has not read the others."""
    lines = [line.strip() for line in (ast.get_docstring(ast.parse(example.read_text())) or "").splitlines()]
    install, serve, ask = lines[lines.index("In this folder:") + 2 :][:3]
    assert install.startswith("pip install ")
    assert serve.endswith(f"carpool serve --model {example.stem}:Model")
    assert ask.startswith("curl http://127.0.0.1:3000/")


def test_the_embedding_model_is_the_embedded_one(minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out, it gives the same vectors, whatever travels beside a text."""
    from carpool.engines import text_embedding

    monkeypatch.setenv("MODEL_DIR", str(minilm_dir))
    texts = ["a", "a much longer text about nothing in particular", "b"]
    ours = np.array(answers(text_embedding.load(minilm_dir, "onnxruntime").run(texts)))
    theirs = np.array(answers(load("embedding").run(texts, EMBED)))
    assert np.sum(ours * theirs, axis=1) == pytest.approx(1, abs=1e-3)


def test_the_example_is_served_as_its_first_lines_say(minilm_dir: Path, tmp_path: Path) -> None:
    """From the examples' folder, in OpenAI's dialect as well."""
    (tmp_path / "embedding.py").write_text((EXAMPLES / "embedding.py").read_text())
    with carpool_serve(tmp_path, ["--model", "embedding:Model"], {"MODEL_DIR": str(minilm_dir)}) as server:
        own = server.client.post("/embed", json={"input": "a"}).json()["embedding"]
        theirs = server.client.post("/v1/embeddings", json={"input": "a", "model": "x"}).json()
        assert theirs["data"][0]["embedding"] == own
        assert len(own) == 384


def test_the_scikit_learn_model_names_flowers() -> None:
    """Those it was trained on, at least; a flower with three measures is refused."""
    pytest.importorskip("sklearn")
    flowers = [b'{"data": [5.1, 3.5, 1.4, 0.2]}', b'{"data": [1, 2, 3]}', b'{"data": [6.3, 3.3, 6.0, 2.5]}']
    first, refused, last = load("iris").run(flowers, INFER)
    assert answers([first, last]) == ["setosa", "virginica"]
    assert "expected float32 of the shape [4]" in str(refused)


def test_the_image_classifier_labels_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size and kind, in one batch."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}
    config = transformers.ResNetConfig(**sizes, id2label={0: "cat", 1: "dog", 2: "fish", 3: "fruit"})
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path)
    monkeypatch.setenv("MODEL", str(tmp_path))
    items = []
    for kind, size in (("png", (40, 50)), ("jpeg", (90, 33))):
        file = io.BytesIO()
        Image.new("RGB", size, (200, 100, 0)).save(file, kind)
        items.append(payload.head(f"image/{kind}", {}) + file.getvalue())
    for labels in answers(load("image_classifier").run(items, INFER)):
        assert [each["label"] in ("cat", "dog", "fish", "fruit") for each in labels] == [True] * 3
        assert 1 >= labels[0]["score"] >= labels[1]["score"] >= labels[2]["score"] >= 0


def test_the_reranker_scores_pairs(minilm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text's score does not depend on the texts beside it."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=30522, num_labels=1, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(minilm_dir / "tokenizer.json"), pad_token="[PAD]", model_max_length=64
    )
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("MODEL", str(tmp_path))
    model, call = load("reranker"), Call.of("rerank", query="What is a batch?")
    texts = ["Inputs that travel together.", "A fruit."]
    together = answers(model.run(texts, call))
    assert [rank["index"] for rank in together] == [0, 1]
    for text, rank in zip(texts, together, strict=True):
        (alone,) = answers(model.run([text], call))
        assert alone["score"] == pytest.approx(rank["score"], abs=1e-5)
