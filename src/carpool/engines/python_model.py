"""A team's own model, written in Python: an object with `predict`, or a plain function on a list.

What it may have, all of it optional but one of the first three:

    predict(inputs)         one result for each input, in order                      /predict
    embed(texts)            one vector for each text, in order                       /embed, /v1/embeddings, ...
    rerank(query, texts)    one score for each text, in order                        /rerank
    load(device)            called once, before anything else
    warmup()                called once, after it
    preprocess(input)       one input as its caller sent it, to what `predict` takes; in a thread
    postprocess(result)     one result of `predict`, to what its caller gets; in a thread
    input_shape             a tuple: each input is to be an array of this shape; None where a size may be any
    input_dtype             and of this type; float32 if it does not say. Alone: an array of any shape
    collate(inputs)         inputs of one shape, to what `predict` takes
    cost(input)             a static method: what an input costs to run, as its caller sent it; see `pricing.py`

`predict` is called from one thread, always the same; `preprocess` and `collate` for the next batch meanwhile.
An exception in a result's place is that item's error. `ValueError`, `TypeError`, `LookupError` and
`AttributeError`, there or from `preprocess`, are the caller's fault; anything else is the model's, as is all
that `postprocess` raises.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import isfinite
from numbers import Integral
from operator import index
from typing import Any, TypeAlias

from carpool.engines import payloads, pricing, results
from carpool.engines.imports import imported
from carpool.errors import BadInput, ModelError, Unsupported
from carpool.wire import payload
from carpool.wire.call import EMBED, Call

_MOST_THREADS = 8
_OPERATIONS = {"infer": "predict", "embed": "embed", "rerank": "rerank"}
# Inputs as `predict` takes them, and whose they are.
_Group: TypeAlias = tuple[list[int], Any]
_EXPECTED = (
    "expected an object with predict(inputs), embed(texts) or rerank(query, texts), or a function on a list"
)


class PythonModel:
    """Runs batches on such an object; `run` is for one caller at a time."""

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._shape = _input_shape(getattr(model, "input_shape", None))
        # What it is to get as arrays; None for JSON's own values.
        self._dtype = _input_dtype(getattr(model, "input_dtype", None if self._shape is None else "float32"))
        self._preprocess = getattr(model, "preprocess", None)
        self._postprocess = getattr(model, "postprocess", None)
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "carpool-item")
        self._can = [ours for ours, theirs in _OPERATIONS.items() if hasattr(model, theirs)]
        self.info = {
            "engine": _taken(model, "engine", "python"),
            "inputs": name,
            "can": self._can,
            "dimensions": int(_taken(model, "dimensions", -1)),
            "max_tokens": int(_taken(model, "max_tokens", 0)),
            "input_shape": None if self._shape is None else list(self._shape),
            "input_dtype": self._dtype,
            "cost": pricing.name_of(model),
        }

    def __repr__(self) -> str:
        return f"PythonModel({self._model!r})"

    def run(self, items: Sequence[Any], call: Call = EMBED) -> list[bytes | Exception]:
        """One JSON value for each item, or what is wrong with it."""
        return self.prepare(items, call)()

    def prepare(self, items: Sequence[Any], call: Call = EMBED) -> Callable[[], list[bytes | Exception]]:
        """Make inputs of the items; the rest is what returns. Another batch may be run meanwhile."""
        if call.operation not in self._can:
            missing = _OPERATIONS.get(call.operation, call.operation)
            has = ", ".join(_OPERATIONS[operation] for operation in self._can)
            raise Unsupported(f"the model has no {missing}", f"it has {has}")
        parameters = dict(call.parameters)
        match call.operation:
            case "infer":
                write = results.to_finite_json if parameters.get("finite") else results.to_json
                return partial(self._infer, write, *self._inputs(items))
            case "embed":
                return partial(_embed, self._model.embed, items, parameters)
            case _:
                return partial(_rerank, self._model.rerank, str(parameters.get("query", "")), items)

    def _inputs(self, items: Sequence[bytes | memoryview]) -> tuple[list[Any], list[_Group]]:
        """The errors of items that cannot be read, in their places, and the inputs that the others are."""
        # Threads cost more than they save where nothing but a little JSON is read.
        is_heavy = self._preprocess is not None or any(payload.unpack(item)[0] for item in items)
        inputs = self._each(self._read, items, is_heavy)
        places = [place for place, read in enumerate(inputs) if not isinstance(read, Exception)]
        groups = [(group, self._collated(inputs, group)) for group in self._groups(inputs, places)]
        return [read if isinstance(read, Exception) else None for read in inputs], groups

    def _infer(
        self, write: Callable[[Any], bytes], answers: list[Any], groups: Sequence[_Group]
    ) -> list[bytes | Exception]:
        """Run the inputs, and write a result into each one's place."""
        made: dict[int, Any] = {}
        for group, inputs in groups:
            made.update(zip(group, _paired(self._model.predict(inputs), len(group)), strict=True))
        written = self._each(partial(self._write, write), list(made.values()), self._postprocess is not None)
        for place, result in zip(made, written, strict=True):
            answers[place] = result
        return answers

    def _each(self, work: Callable[[Any], Any], items: Sequence[Any], in_threads: bool) -> list[Any]:
        return list(self._threads.map(work, items) if in_threads and len(items) > 1 else map(work, items))

    def _read(self, item: bytes | memoryview) -> Any:
        try:
            value = payloads.read(item, self._dtype)
            if self._preprocess is not None:
                value = self._preprocess(value)
            return value if self._dtype is None else payloads.conform(value, self._shape, self._dtype)
        except Exception as error:
            return results.blamed(error)

    def _write(self, write: Callable[[Any], bytes], result: Any) -> bytes | Exception:
        if self._postprocess is not None and not isinstance(result, Exception):
            try:
                result = self._postprocess(result)
            except Exception as error:
                return error  # the model's own fault, whatever its type: the input has been run by now
        return results.encoded(result, write)

    def _groups(self, inputs: Sequence[Any], places: Sequence[int]) -> list[list[int]]:
        """Which of the inputs go to `predict` together: all, unless they are to be stacked and cannot be."""
        if not hasattr(self._model, "collate"):
            return [list(places)] if places else []
        groups: dict[Any, list[int]] = {}
        for place in places:
            groups.setdefault(getattr(inputs[place], "shape", None), []).append(place)
        return list(groups.values())

    def _collated(self, inputs: Sequence[Any], group: Sequence[int]) -> Any:
        collate = getattr(self._model, "collate", list)
        return collate([inputs[place] for place in group])


class _Function:
    """A plain function on a list, as a model."""

    def __init__(self, predict: Callable[[list[Any]], Any]) -> None:
        self.predict = predict


def _taken(model: Any, name: str, default: Any) -> Any:
    """What a model of carpool's own says of itself; a user's may mean something else by the same name."""
    value = getattr(model, name, default)
    return value if isinstance(value, Integral if isinstance(default, int) else str) else default


def _input_shape(given: Any) -> payloads.Shape | None:
    if given is None:
        return None
    try:
        shape = tuple(None if size is None else index(size) for size in given)
        if all(size is None or size > 0 for size in shape):
            return shape
    except TypeError:  # no sequence, or not of whole numbers
        pass
    raise ModelError(
        f"input_shape {given!r} is no shape",
        "allowed: a tuple of sizes from 1, and None where a size may be any",
    )


def _input_dtype(given: Any) -> str | None:
    """Its name, of whatever numpy takes for a type: `np.float32` is "float32"."""
    if given is None:
        return None
    import numpy as np

    with suppress(Exception):  # numpy has one of many kinds for each thing that is no type
        if (name := str(np.dtype(given).name)) in payload.DTYPES:
            return name
    raise ModelError(f"input_dtype {given!r} is not known", f"allowed: {', '.join(payload.DTYPES)}")


def _paired(returned: Any, count: int) -> list[Any]:
    """The results, one for each input, or an error: a result must never reach another input's caller."""
    made = results.rows(returned)
    if len(made) != count:
        raise RuntimeError(f"the model returned {len(made)} results for {count} inputs")
    return made


def _embed(embed: Callable[[list[Any]], Any], texts: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
    import numpy as np

    from carpool.engines import pooling

    _need_texts(texts)
    vectors = np.asarray(results.as_array(embed(list(texts))), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise RuntimeError(f"embed returned {list(vectors.shape)} for {len(texts)} texts: expected [texts, n]")
    width = int(parameters.get("dimensions") or vectors.shape[1])
    if width > vectors.shape[1]:
        return [BadInput(f"`dimensions` must be at most {vectors.shape[1]}. Given: {width}") for _ in texts]
    vectors = np.ascontiguousarray(vectors[:, :width])
    if parameters.get("normalize", True):
        with np.errstate(invalid="ignore"):  # NaN is found when they are written
            vectors = pooling.normalise(vectors)
    return list(pooling.encode(vectors))


def _rerank(rerank: Callable[[str, list[Any]], Any], query: str, texts: Sequence[Any]) -> list[Any]:
    _need_texts(texts)
    scores = _paired(rerank(query, list(texts)), len(texts))
    return [results.encoded(score, partial(_rank, place)) for place, score in enumerate(scores)]


def _rank(place: int, score: Any) -> bytes:
    if not isfinite(number := float(score)):
        raise results.not_finite()
    return results.to_json({"index": place, "score": number})


def _need_texts(items: Sequence[Any]) -> None:
    if not all(isinstance(item, str) for item in items):
        raise Unsupported("the model takes texts alone", "send texts, not token ids")


def load(target: str, folder: str = "", device: str = "cpu") -> PythonModel:
    """The model at `package.module:name`, loaded and warm; `folder` is where to look for it first."""
    return serve(_instance(imported(target, folder), target), target, device)


def serve(model: Any, name: str, device: str = "cpu") -> PythonModel:
    """The object as a model: loaded and warm."""
    for step, arguments in (("load", (device,)), ("warmup", ())):
        if hasattr(model, step):
            getattr(model, step)(*arguments)
    return PythonModel(model, name)


def _instance(found: Any, target: str) -> Any:
    """The object itself, or what a class or a factory makes; a function that needs an argument is the model."""
    if not inspect.isclass(found) and any(hasattr(found, name) for name in _OPERATIONS.values()):
        return found
    if not callable(found):
        raise ModelError(f"{target} is {type(found).__name__}", _EXPECTED)
    if not inspect.isclass(found) and _needs_an_argument(found):
        return _Function(found)
    made = found()
    if any(hasattr(made, name) for name in _OPERATIONS.values()):
        return made
    if inspect.isclass(found) or not callable(made):
        raise ModelError(f"{target} made {type(made).__name__}", _EXPECTED)
    return _Function(made)


def _needs_an_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # built in, and without a signature: `sorted`, a C extension's
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)
