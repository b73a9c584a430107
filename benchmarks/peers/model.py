"""The models that every server here runs, as the same code: what takes time is alike, what serves it differs.

It is imported in the environments of the peers, so it needs nothing but Python before a model is loaded.
A model takes the inputs of a batch and gives for each the JSON that is its answer, as bytes: no server needs to
encode anything. It is for one caller at a time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Model = Callable[[Sequence[Any]], list[bytes]]

# sentence-transformers/all-MiniLM-L6-v2 as its library wants it; `servers.py` puts it there.
SENTENCE_TRANSFORMER = Path(__file__).parents[2] / "build" / "peers" / "all-MiniLM-L6-v2"


class Noop:
    """For `carpool serve --model benchmarks.peers.model:Noop`: no time, and still its own answer to each."""

    def predict(self, inputs: list[str]) -> list[int]:
        """How many characters each has."""
        return [len(text) for text in inputs]


def load(name: str) -> Model:
    """A model by name, warm."""
    return {
        "noop": _load_noop,
        "minilm": _load_minilm,
        "sentence-transformers": _load_sentence_transformer,
        "resnet18": _load_resnet18,
    }[name]()


def _load_noop() -> Model:
    model = Noop()
    return lambda texts: [b'{"result":%d}' % length for length in model.predict(list(texts))]


def _load_minilm() -> Model:
    """What `carpool serve --model minilm` runs in its worker."""
    from carpool.backends.process import child
    from carpool.models import spec

    local = spec.resolve("minilm")
    engine = child.load(local.loader, local.arguments)
    return lambda texts: [b'{"result":%b}' % vector for vector in _vectors(engine.run(texts))]


def _vectors(results: Sequence[bytes | Exception]) -> list[bytes]:
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, bytes)]


def _load_sentence_transformer() -> Model:
    """The same model as most run it: full weights on torch."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(SENTENCE_TRANSFORMER), device="cpu")

    def run(texts: Sequence[str]) -> list[bytes]:
        return _answers(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    run(["warm"])
    return run


def _load_resnet18() -> Model:
    """As a team would write it. The weights are random, but the same as carpool's, which has the same seed."""
    import numpy as np
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "embedding_size": 64,
        "num_labels": 1000,
    }
    network = ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)).eval()

    def run(inputs: Sequence[Any]) -> list[bytes]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack([_tensor(one) for one in inputs]))
            return _answers(network(batch).logits.numpy())

    run([np.zeros((3, 224, 224)).tolist()])
    return run


def _tensor(data: Any) -> Any:
    """From nested lists, or from a JPEG as it is or in base64, by the recipe that carpool has for pictures."""
    import numpy as np
    from PIL import Image

    from carpool.engines.tensors import Picture

    if not isinstance(data, str | bytes | bytearray):
        return np.asarray(data, dtype=np.float32)
    content = base64.b64decode(data) if isinstance(data, str) else data
    return Picture().tensor(Image.open(io.BytesIO(content)).convert("RGB"))


def _answers(rows: Any) -> list[bytes]:
    import orjson

    return [b'{"result":%b}' % orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows]
