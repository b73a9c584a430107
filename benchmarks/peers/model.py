"""The models that every server here runs, as the same code: what takes time is alike, what serves it differs.

It is imported in the environments of the peers, so it needs nothing but Python; for MiniLM, carpool's engine.
A model takes the texts of a batch and gives for each the JSON that is its answer, as bytes: no server needs to
encode anything. It is for one caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Model = Callable[[Sequence[str]], list[bytes]]


class Noop:
    """For `carpool serve --model benchmarks.peers.model:Noop`: no time, and still its own answer to each."""

    def predict(self, inputs: list[str]) -> list[int]:
        """How many characters each has."""
        return [len(text) for text in inputs]


def load(case: str) -> Model:
    """The model of a case, warm."""
    return {"noop": _load_noop, "minilm": _load_minilm}[case]()


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
