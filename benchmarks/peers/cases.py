"""The cases: which model, and what it is asked, the same for every server and in the words of each.

It is imported in the environments of the peers as well, so it needs nothing but Python and carpool's source.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.support.sentences import sentences

from carpool.bench.inputs import generate_images, generate_texts

RESULTS = Path(__file__).parents[1] / "results"
SENTENCES = 2000
PICTURES = 16  # one is megabytes as JSON, and no server here compares them
SHAPE = (3, 224, 224)
WIDTH, HEIGHT = 500, 375  # about what ImageNet's pictures have
BATCH = 32  # at most: carpool's default
JSON, JPEG = "application/json", "image/jpeg"


@dataclass(frozen=True)
class Question:
    """The body of a request."""

    body: bytes
    media_type: str = JSON


@dataclass(frozen=True)
class Case:
    """`spec` is what carpool serves, with these `flags`; `dialect` is how it is asked."""

    name: str
    model: str
    spec: str
    dialect: str
    # How long a peer may wait for more. A model that takes no time gains nothing from it, so it is as short as
    # all of them can have it; their documentation and defaults have 5 to 10 ms for models that do.
    wait_ms: int
    inputs: Callable[[], Sequence[Any]]
    rounds: int = 3
    seconds: float = 5.0  # of a round
    patience: float = 10.0  # seconds that the last answers of a round are waited for
    peers_in_open_loops: bool = True
    flags: tuple[str, ...] = ()

    @property
    def table(self) -> Path:
        """Where its committed result is."""
        return RESULTS / f"peers_{self.name}.md"

    def questions(self, dialect: str) -> list[Question]:
        """All of them, for a server."""
        return [_PHRASES[dialect](one) for one in self.inputs()]


@cache
def _pictures() -> list[bytes]:
    return [image.content for image in generate_images(WIDTH, HEIGHT, PICTURES, "image/jpeg")]


@cache
def _tensors() -> list[bytes]:
    """Normally distributed, with all digits: 3 MB each, as `torch.randn(3, 224, 224).tolist()` is."""
    random = Random("tensors")
    return [json.dumps(_normal(random, SHAPE)).encode() for _ in range(PICTURES)]


def _normal(random: Random, shape: Sequence[int]) -> Any:
    return [_normal(random, shape[1:]) for _ in range(shape[0])] if shape else random.gauss(0, 1)


def _json(body: Any) -> Question:
    return Question(json.dumps(body).encode())


_PHRASES: Mapping[str, Callable[[Any], Question]] = {
    "native": lambda text: _json({"input": text}),
    "predict": lambda text: _json({"data": text}),
    "openai": lambda text: _json({"input": [text], "model": "minilm"}),
    "tensor": lambda array: Question(b'{"data":%b}' % array),
    "image": lambda picture: Question(picture, JPEG),
    "base64": lambda picture: _json({"data": base64.b64encode(picture).decode()}),
}

_RESNET18 = ("resnet18", "resnet18?weights=none")
# A thousand users of a model that does 17 a second wait for a minute, and on a busy machine for several. By
# default 30 s is the longest.
CROWD_SECONDS = 300.0
_CROWD = ("--queue-timeout-ms", f"{CROWD_SECONDS * 1000:.0f}")
CASES = {
    case.name: case
    for case in (
        Case("noop", "noop", "benchmarks.peers.model:Noop", "predict", 1, cache(lambda: generate_texts(5, 15))),
        Case("minilm", "minilm", "minilm", "native", 5, lambda: sentences(SENTENCES)),
        # 64 of these bodies take the peers 8 to 10 s: a round is longer than that, and there is no time for
        # other loads on all of them.
        Case(
            *("resnet18", *_RESNET18, "tensor", 5, _tensors),
            rounds=2,
            seconds=12.0,
            patience=30.0,
            peers_in_open_loops=False,
            flags=_CROWD,
        ),
        Case("resnet18-jpeg", *_RESNET18, "image", 5, _pictures, patience=30.0, flags=_CROWD),
    )
}
