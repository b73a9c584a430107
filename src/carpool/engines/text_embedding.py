"""Texts to sentence vectors: tokenise, group, infer, pool, normalise, write JSON.

It joins the parts and knows none of their libraries but numpy: which one computes is a `Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from carpool.engines import grouping, pooling
from carpool.engines.base import EngineInfo, Session, Sessions, available_cores
from carpool.engines.onnx import library
from carpool.engines.results import not_finite
from carpool.engines.tokenize import TextTokenizer, read_tokenizer
from carpool.errors import BadInput, MissingExtra, ModelError, Unsupported
from carpool.wire.call import EMBED, Call, Scalar, Vector

try:
    import numpy as np
except ImportError as error:
    raise MissingExtra("numpy", "local") from error

if TYPE_CHECKING:
    from carpool.engines.base import Floats, Ints

Items: TypeAlias = "Sequence[str | list[int]]"
Parameters: TypeAlias = "Mapping[str, Scalar]"
Finish: TypeAlias = "Callable[[Floats], list[Any]]"
Run: TypeAlias = "Callable[[], list[bytes | Exception]]"
EngineName: TypeAlias = Literal["auto", "openvino", "onnxruntime", "torch"]

_EXPECTED = "a model is a tokenizer.json, and a model.onnx or a config.json and a model.safetensors"

_REQUIRED = frozenset({"input_ids", "attention_mask"})
_KNOWN = _REQUIRED | {"token_type_ids"}

# The numbers of tokens that are run once before the first real batch. Groups of a mixed batch are mostly
# below 256 tokens; preparing for the rest as well would take longer than the rare first one costs.
_WARM_GROUP_TOKENS = 256
_WARM_TEXT_TOKENS = 128


class TextEmbedding:
    """A loaded sentence-embedding model, for one caller at a time.

    Another thread may `prepare` the next batch meanwhile: its groups then run as soon as a stream is free, so
    that none is idle while a batch ends and the next begins.
    """

    prepare_from = 8  # texts: a batch of 17 ms, from which it is worth the 0.1 ms of two changes of threads

    def __init__(
        self, tokenizer: TextTokenizer, pool: pooling.Pool, sessions: Sessions, info: EngineInfo
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._pool = pool
        self._solo = sessions.solo
        self._shared = sessions.shared
        self._one_by_one = sessions.one_by_one
        self._streams = ThreadPoolExecutor(sessions.shared.streams, thread_name_prefix="carpool-stream")
        self._running: list[Future[list[Any]]] = []  # the groups of the batch that was prepared last

    def __repr__(self) -> str:
        return f"TextEmbedding({self.info})"

    def run(self, texts: Sequence[str | list[int]], call: Call = EMBED) -> list[bytes | Exception]:
        """One JSON value for each text, or for its token ids, in order: a vector, or what `call` asks for."""
        return self.prepare(texts, call)()

    def prepare(self, texts: Sequence[str | list[int]], call: Call = EMBED) -> Run:
        """What gives the same; texts to embed are tokenised and on their way to the streams by then."""
        parameters = dict(call.parameters)
        if call.operation == EMBED.operation:
            return self._prepare_embed(texts, parameters)
        operation = _OPERATIONS.get(call.operation)
        if operation is None:
            known = ", ".join((EMBED.operation, *_OPERATIONS))
            raise Unsupported(f"the model has no {call.operation}", f"it has {known}")
        return partial(operation, self, texts, parameters)

    def _prepare_embed(self, items: Items, parameters: Parameters) -> Run:
        """Vectors of length 1 unless `normalize` is false; the first `dimensions` of their numbers."""
        rows = self._rows(items, parameters)
        width = int(parameters.get("dimensions", self.info.dimensions))
        if width > self.info.dimensions:
            refusal = f"`dimensions` must be at most {self.info.dimensions}. Given: {width}"
            return lambda: [BadInput(refusal) for _ in rows]
        as_it_is = not parameters.get("normalize", True)

        def finish(vectors: Floats) -> list[Vector | Exception]:
            vectors = np.ascontiguousarray(vectors[:, :width])
            return pooling.encode(vectors if as_it_is else pooling.normalise(vectors))

        embed = self._each([row for row in rows if isinstance(row, list)], finish)

        def run() -> list[bytes | Exception]:
            vectors = iter(embed())
            return [_counted(next(vectors), len(row)) if isinstance(row, list) else row for row in rows]

        return run

    def _run_similarity(self, items: Items, parameters: Parameters) -> list[bytes | Exception]:
        """The cosine of each to the `source_sentence`: a bi-encoder's similarity."""
        scores = self._scores(items, str(parameters.get("source_sentence", "")), parameters)
        return [score if isinstance(score, Exception) else b"%.7g" % score for score in scores]

    def _run_rerank(self, items: Items, parameters: Parameters) -> list[bytes | Exception]:
        """The same to the `query`, as ranks. There is no logit behind it: `raw_scores` are the same ones."""
        scores = self._scores(items, str(parameters.get("query", "")), parameters)
        return [
            score if isinstance(score, Exception) else b'{"index":%d,"score":%.7g}' % (place, score)
            for place, score in enumerate(scores)
        ]

    def _run_tokenize(self, items: Items, parameters: Parameters) -> list[bytes | Exception]:
        _refuse_prompt(parameters)
        texts = [str(item) for item in items]
        special = bool(parameters.get("add_special_tokens", True))
        return [pooling.dumps(tokens) for tokens in self._tokenizer.tokens(texts, special)]

    def _run_decode(self, items: Items, parameters: Parameters) -> list[bytes | Exception]:
        rows = [list(item) for item in items if not isinstance(item, str)]
        skip = bool(parameters.get("skip_special_tokens", True))
        return [pooling.dumps(text) for text in self._tokenizer.decode(rows, skip)]

    def _scores(self, items: Items, question: str, parameters: Parameters) -> list[float | Exception]:
        rows = self._rows([question, *items], parameters)
        if isinstance(rows[0], BadInput):
            return [rows[0] for _ in items]
        vectors = iter(self._each([row for row in rows if isinstance(row, list)], _unit_vectors)())
        asked = next(vectors)
        return [_score(asked @ next(vectors)) if isinstance(row, list) else row for row in rows[1:]]

    def _rows(self, items: Items, parameters: Parameters) -> list[list[int] | BadInput]:
        """Token ids. The usual takes the short way: texts alone, cut on the right."""
        _refuse_prompt(parameters)
        truncate = bool(parameters.get("truncate", True))
        left = parameters.get("truncation_direction") == "Left"
        if truncate and not left and all(isinstance(item, str) for item in items):
            return [*self._tokenizer.ids([str(item) for item in items])]
        return self._tokenizer.rows(items, truncate, left)

    def _each(self, ids: list[list[int]], finish: Finish) -> Callable[[], list[Any]]:
        """What waits for what `finish` makes of the vector of each row, in order."""
        if len(ids) <= self._one_by_one:
            return lambda: [result for row in ids for result in self._embed(finish, self._solo, [row])]
        are_more = not all(group.done() for group in self._running)
        groups = grouping.plan([len(row) for row in ids], self._shared.streams, are_more)
        session = self._solo if len(groups) == 1 and not are_more else self._shared
        self._running = running = [
            self._streams.submit(self._embed, finish, session, [ids[index] for index in group])
            for group in groups
        ]

        def wait() -> list[Any]:
            results: list[Any] = [None] * len(ids)
            for group, made in zip(groups, running, strict=True):
                for index, result in zip(group, made.result(), strict=True):
                    results[index] = result
            return results

        return wait

    def warmup(self) -> None:
        """Run the shapes that real batches have, so that none of them is the first to be prepared for.

        The largest come first: an engine's buffers are then allocated once, not again for each larger one.
        """
        if not self._shared.prepares_shapes:
            return
        step = grouping.WIDTH_STEP
        row = [self._tokenizer.pad_id]
        for width in range(min(_WARM_TEXT_TOKENS, self.info.max_tokens), 0, -step):
            self._embed(_unit_vectors, self._solo, [row * width])
        embed = partial(self._embed, _unit_vectors, self._shared)
        for rows in range(_WARM_GROUP_TOKENS // step, 0, -1):
            list(self._streams.map(embed, [[row * step] * rows] * self._shared.streams))

    def _embed(self, finish: Finish, session: Session, rows: list[list[int]]) -> list[Any]:
        ids, mask = pad(rows, self._tokenizer)
        states = session.infer(_feeds(session, ids, mask))
        vectors = states if states.ndim == 2 else self._pool(states, mask)
        return finish(vectors)


_OPERATIONS: Mapping[str, Callable[[TextEmbedding, Items, Parameters], list[bytes | Exception]]] = {
    "similarity": TextEmbedding._run_similarity,
    "rerank": TextEmbedding._run_rerank,
    "tokenize": TextEmbedding._run_tokenize,
    "decode": TextEmbedding._run_decode,
}


def _score(cosine: Any) -> float | Exception:
    return float(cosine) if np.isfinite(cosine) else not_finite()


def _unit_vectors(vectors: Floats) -> list[Any]:
    return list(pooling.normalise(vectors))


def _counted(vector: Vector, tokens: int) -> Vector:
    vector.tokens = tokens
    return vector


def _refuse_prompt(parameters: Parameters) -> None:
    if parameters.get("prompt_name") is not None:
        raise Unsupported("the model has no prompts", "leave out `prompt_name`")


def load(directory: str | Path, engine: EngineName = "auto", threads: int = 0) -> TextEmbedding:
    """The model in a directory with tokenizer.json and model.onnx or model.safetensors, ready and warm.

    With "auto" an ONNX file runs on OpenVINO where that is installed, else on ONNX Runtime, and other weights
    on torch. 0 threads means one for each core that this process may use.
    """
    directory = Path(directory)
    model = _weights(directory, engine)
    if not (directory / "tokenizer.json").is_file():
        raise ModelError(f"{directory / 'tokenizer.json'} does not exist", _EXPECTED)
    pooling.refuse_layers(directory)
    tokenizer = read_tokenizer(directory)
    pool = pooling.read_pooling(directory)
    threads = threads or available_cores()
    is_onnx = model.suffix == ".onnx"
    open_sessions = library(engine, str(model)).open_sessions if is_onnx else _torch_opener(engine)
    sessions: Sessions = open_sessions(model, threads)
    dimensions = _dimensions(model, sessions.solo, tokenizer)
    info = EngineInfo(sessions.solo.engine, "text", dimensions, tokenizer.max_tokens, threads)
    embedding = TextEmbedding(tokenizer, pool, sessions, info)
    embedding.warmup()
    return embedding


def _weights(directory: Path, engine: EngineName) -> Path:
    """The ONNX file, or the directory itself where its weights are torch's."""
    for path in (directory / "model.onnx", directory / "onnx" / "model.onnx"):
        if path.is_file() and engine != "torch":
            return path
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
        return directory
    raise ModelError(f"{directory / 'model.onnx'} does not exist", _EXPECTED)


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


def _torch_opener(engine: EngineName) -> Callable[[Path, int], Sessions]:
    from carpool.engines import torch_text

    if engine == "onnxruntime":
        raise ModelError("onnxruntime runs no torch weights", "allowed: auto, torch, openvino")
    return torch_text.open_converted if engine == "openvino" else torch_text.open_sessions


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
