"""Texts to sentence vectors: tokenise, group, infer, pool, normalise, write JSON.

It joins the parts and knows none of their libraries but numpy: which one computes is a `Session`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from carpool.engines import grouping, pooling
from carpool.engines.base import EngineInfo, Session, Sessions
from carpool.engines.tokenize import TextTokenizer, read_tokenizer
from carpool.errors import MissingExtra, ModelError

try:
    import numpy as np
except ImportError as error:
    raise MissingExtra("numpy", "local") from error

if TYPE_CHECKING:
    from carpool.engines.base import Ints

EngineName: TypeAlias = Literal["auto", "openvino", "onnxruntime"]

_REQUIRED = frozenset({"input_ids", "attention_mask"})
_KNOWN = _REQUIRED | {"token_type_ids"}

# The numbers of tokens that are run once before the first real batch. Groups of a mixed batch are mostly
# below 256 tokens; preparing for the rest as well would take longer than the rare first one costs.
_WARM_GROUP_TOKENS = 256
_WARM_TEXT_TOKENS = 128


class TextEmbedding:
    """A loaded sentence-embedding model; `run` is for one caller at a time."""

    def __init__(
        self, tokenizer: TextTokenizer, pool: pooling.Pool, sessions: Sessions, info: EngineInfo
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._pool = pool
        self._solo = sessions.solo
        self._shared = sessions.shared
        self._streams = ThreadPoolExecutor(sessions.shared.streams, thread_name_prefix="carpool-stream")

    def __repr__(self) -> str:
        return f"TextEmbedding({self.info})"

    def run(self, texts: Sequence[str]) -> list[bytes]:
        """One JSON array for each text, in order."""
        ids = self._tokenizer.ids(texts)
        groups = grouping.plan([len(row) for row in ids], self._shared.streams)
        batches = [[ids[index] for index in group] for group in groups]
        results = [b""] * len(texts)
        for group, vectors in zip(groups, self._embed_all(batches), strict=True):
            for index, vector in zip(group, vectors, strict=True):
                results[index] = vector
        return results

    def warmup(self) -> None:
        """Run the shapes that real batches have, so that none of them is the first to be prepared for.

        The largest come first: an engine's buffers are then allocated once, not again for each larger one.
        """
        if not self._shared.prepares_shapes:
            return
        step = grouping.WIDTH_STEP
        row = [self._tokenizer.pad_id]
        for width in range(min(_WARM_TEXT_TOKENS, self.info.max_tokens), 0, -step):
            self._embed_all([[row * width]])
        for rows in range(_WARM_GROUP_TOKENS // step, 0, -1):
            # Two at least, or it would be taken for a text that is alone.
            self._embed_all([[row * step] * rows] * max(2, self._shared.streams))

    def _embed_all(self, batches: Sequence[list[list[int]]]) -> list[list[bytes]]:
        if len(batches) == 1:
            return [self._embed(self._solo, batches[0])]
        return list(self._streams.map(partial(self._embed, self._shared), batches))

    def _embed(self, session: Session, rows: list[list[int]]) -> list[bytes]:
        ids, mask = pad(rows, self._tokenizer)
        states = session.infer(_feeds(session, ids, mask))
        vectors = states if states.ndim == 2 else self._pool(states, mask)
        return pooling.to_json(pooling.normalise(vectors))


def load(directory: str | Path, engine: EngineName = "auto", threads: int = 0) -> TextEmbedding:
    """The model in a directory with model.onnx and tokenizer.json, ready and warm.

    With "auto" it runs on OpenVINO where that is installed, else on ONNX Runtime. 0 threads means one for
    each core that this process may use.
    """
    directory = Path(directory)
    model = directory / "model.onnx"
    for path in (model, directory / "tokenizer.json"):
        if not path.is_file():
            raise ModelError(f"{path} does not exist", "a model is a model.onnx and a tokenizer.json")
    tokenizer = read_tokenizer(directory)
    pool = pooling.read_pooling(directory)
    threads = threads or available_cores()
    sessions = _opener(engine)(model, threads)
    dimensions = _dimensions(model, sessions.solo, tokenizer)
    info = EngineInfo(sessions.solo.engine, "text", dimensions, tokenizer.max_tokens, threads)
    embedding = TextEmbedding(tokenizer, pool, sessions, info)
    embedding.warmup()
    return embedding


def available_cores() -> int:
    """How many cores this process may use: its affinity where the platform has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pad(rows: Sequence[Sequence[int]], tokenizer: TextTokenizer) -> tuple[Ints, Ints]:
    """Token ids as one tensor, and the mask that is 1 where a token is not padding."""
    # A model may have no position for the tokens that rounding up would add to its longest texts.
    width = min(grouping.padded(max(len(row) for row in rows)), tokenizer.max_tokens)
    ids = np.full((len(rows), width), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


def _feeds(session: Session, ids: Ints, mask: Ints) -> dict[str, Ints]:
    feeds = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in session.inputs:
        feeds["token_type_ids"] = np.zeros_like(ids)  # 0: every text is a first sentence
    return feeds


def _opener(engine: EngineName) -> Callable[[Path, int], Sessions]:
    # Imported on use: each of the two modules needs a library that may not be installed.
    match engine:
        case "openvino":
            from carpool.engines import openvino

            return openvino.open_sessions
        case "onnxruntime":
            from carpool.engines import onnxruntime

            return onnxruntime.open_sessions
        case "auto":
            with suppress(MissingExtra):
                return _opener("openvino")
            with suppress(MissingExtra):
                return _opener("onnxruntime")
            raise MissingExtra("openvino", "local")


def _dimensions(model: Path, session: Session, tokenizer: TextTokenizer) -> int:
    """The length of the model's vectors, learned by running it on a first text, as its file may not say."""
    if not _REQUIRED <= session.inputs <= _KNOWN:
        raise ModelError(
            f"{model} takes the inputs {', '.join(sorted(session.inputs))}",
            "expected: input_ids and attention_mask, with or without token_type_ids",
        )
    ids, mask = pad(tokenizer.ids(["carpool"]), tokenizer)
    try:
        states = session.infer(_feeds(session, ids, mask))
    except Exception as error:  # each library has its own exceptions
        raise ModelError(f"{model} fails on a first text", str(error)) from error
    # The leading sizes are those of the ids: [texts, tokens, n] or [texts, n].
    if states.dtype != np.float32 or states.shape[:-1] not in (ids.shape, ids.shape[:1]):
        raise ModelError(
            f"{model} returns {states.dtype} {list(states.shape)} for ids of shape {list(ids.shape)}",
            "expected: float32 token states [texts, tokens, n] or sentence vectors [texts, n]",
        )
    return int(states.shape[-1])
