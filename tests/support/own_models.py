"""Models as a team would write them, small: what `--model own_models:NAME` serves in tests."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import numpy as np


class Scale:
    """Numbers times two. It has everything that a model may have."""

    input_shape = (2, None)

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def load(self, device: str) -> None:
        self.calls.append(("load", device))

    def warmup(self) -> None:
        self.calls.append("warmup")

    def collate(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        self.calls.append(batch.shape)
        return batch * 2

    def postprocess(self, result: Any) -> Any:
        return {"twice": result, "pid": os.getpid()}


class Words:
    """Counts words, and does what the text says."""

    def preprocess(self, text: str) -> list[str]:
        return text.split()

    def predict(self, inputs: list[list[str]]) -> list[Any]:
        if ["die"] in inputs:
            os.kill(os.getpid(), signal.SIGKILL)
        if ["short"] in inputs:
            return []
        return [ValueError("no words") if not words else self._count(words) for words in inputs]

    def _count(self, words: list[str]) -> Any:
        return RuntimeError("a bug") if words == ["bug"] else len(words)


class Lengths:
    """Vectors and scores for texts, by their lengths."""

    def embed(self, texts: list[str]) -> Any:
        return np.array([[3.0, 4.0 * len(text)] for text in texts])

    def rerank(self, query: str, texts: list[str]) -> list[float]:
        return [-abs(len(text) - len(query)) for text in texts]


class Logarithms:
    """Of lists of numbers; for 0 it is infinite, and for less it is not a number."""

    def predict(self, inputs: list[list[float]]) -> Any:
        with np.errstate(all="ignore"):
            return [{"logs": np.log(np.array(each, dtype=np.float32)), "note": None} for each in inputs]


class Ranker:
    """Scores by the letters that a text shares with the query, the same in every company."""

    def rerank(self, query: str, texts: list[str]) -> Any:
        return np.array([len(set(text) & set(query)) / len(text) for text in texts])


class CrowdedRanker(Ranker):
    """Its scores are shares of the best one in the batch."""

    def rerank(self, query: str, texts: list[str]) -> Any:
        scores = super().rerank(query, texts)
        return scores / scores.max()


class Once:
    """Answers the first of its inputs alone."""

    input_shape = (4,)

    def predict(self, inputs: list[Any]) -> list[float]:
        return [1.0]


class Exits:
    """Ends the process, as a command would, for two inputs."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        if len(inputs) > 1:
            sys.exit(3)
        return inputs


class Unloadable:
    """Has a bug where it is loaded."""

    def load(self, device: str) -> None:
        weights: dict[str, Any] = {}
        self.weights = weights["layer.0"]

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs


class Divided:
    """Vectors and scores that are infinite for an empty text, and NaN when they are made 1 long."""

    def embed(self, texts: list[str]) -> Any:
        return [[1.0, 1 / len(text) if text else np.inf] for text in texts]

    def rerank(self, query: str, texts: list[str]) -> list[float]:
        return [1 / len(text) if text else np.nan for text in texts]


class Ranks:
    """A reranker and nothing else."""

    def rerank(self, query: str, texts: list[str]) -> list[float]:
        """How near a text's length is to the query's."""
        return [-abs(len(query) - len(text)) for text in texts]


def make_words() -> Words:
    return Words()


def make_none() -> Any:
    sys.exit("no licence")


def make_function() -> Any:
    return double


def double(inputs: list[Any]) -> list[Any]:
    return [each * 2 for each in inputs]


def sizes(pictures: list[Any]) -> list[Any]:
    return [picture.size for picture in pictures]


words = Words()
number = 3


class Padded:
    """The mean of a list of numbers, which forgets that the shorter ones were padded."""

    def predict(self, inputs: list[list[float]]) -> Any:
        width = max(len(each) for each in inputs)
        return np.array([[*each, *[0.0] * (width - len(each))] for each in inputs]).mean(axis=1)


class Stacked:
    """The sum of a list of numbers; lists of different lengths cannot be stacked."""

    def predict(self, inputs: list[list[float]]) -> Any:
        return np.stack([np.array(each) for each in inputs]).sum(axis=1)


class Centred:
    """Arrays minus their means, which are one vector for each."""

    input_shape = (2, 3)
    input_dtype = "float32"

    def collate(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        return batch - batch.mean(axis=(1, 2), keepdims=True)


class Counted:
    """With how many others an input was run: a whole number."""

    input_dtype = "int64"

    def predict(self, inputs: list[Any]) -> list[int]:
        return [len(inputs)] * len(inputs)


class Priced:
    """With how many others an input was run; its length is its price."""

    def predict(self, inputs: list[str]) -> list[int]:
        return [len(inputs)] * len(inputs)

    @staticmethod
    def cost(text: str) -> Any:
        if text == "bug":
            raise RuntimeError("a bug")
        return -1 if text == "cheap" else len(text)


class PricedByItself(Priced):
    """Its prices need the model."""

    def cost(self, text: str) -> Any:  # type: ignore[override]
        return len(text)


def make_priced() -> Priced:
    return Priced()


class Buggy:
    """Has a bug in one place or another, as the text says."""

    def predict(self, inputs: list[str]) -> list[str]:
        return [self._helper(text) for text in inputs]

    def _helper(self, text: str) -> str:
        settings: dict[str, str] = {}
        return settings["threshold"] if text == "in predict" else text

    def postprocess(self, result: str) -> Any:
        if result == "in postprocess":
            raise ValueError("a bug")
        return object() if result == "no JSON" else result
