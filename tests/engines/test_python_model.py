"""A model in ten lines: how it is found, what it gets, and whose fault an error is."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carpool.engines import results
from carpool.engines.python_model import PythonModel, load
from carpool.errors import BadInput, MissingExtra, ModelError, Unsupported
from carpool.wire import payload
from carpool.wire.call import EMBED, INFER, Call
from tests.support import own_models

HERE = "tests.support.own_models:"


def data(value: Any) -> bytes:
    return b'{"data": ' + json.dumps(value).encode() + b"}"


def infer(model: PythonModel, *values: Any) -> list[Any]:
    return decoded(model.run([data(value) for value in values], INFER))


def decoded(answers: list[bytes | Exception]) -> list[Any]:
    return [answer if isinstance(answer, Exception) else json.loads(answer) for answer in answers]


@pytest.mark.parametrize("name", ["Words", "make_words", "words"])
def test_a_class_a_factory_and_an_object_are_the_same(name: str) -> None:
    """What has `predict` is the model."""
    assert infer(load(HERE + name), "a b c", "a") == [3, 1]


@pytest.mark.parametrize("name", ["double", "make_function"])
def test_a_function_on_a_list_is_a_model(name: str) -> None:
    """One that takes nothing makes the model."""
    assert infer(load(HERE + name), 2, [1], "ab") == [4, [1, 1], "abab"]


def test_what_a_model_has_for_itself_under_names_of_ours_is_its_own() -> None:
    """They are taken where they say what carpool's own networks say by them."""

    class Words:
        engine = object()
        max_tokens = "many"

        def dimensions(self) -> int:
            return 3

        def embed(self, texts: list[str]) -> Any:
            return np.ones((len(texts), 3))

    info = PythonModel(Words(), "words").info
    assert (info["engine"], info["dimensions"], info["max_tokens"]) == ("python", -1, 0)
    mine = Words()
    mine.__dict__.update(engine="mine", dimensions=np.int64(3), max_tokens=8)
    info = PythonModel(mine, "words").info
    assert (info["engine"], info["dimensions"], info["max_tokens"]) == ("mine", 3, 8)
    assert json.loads(json.dumps(info)) == info


def test_a_model_in_the_current_folder_is_found(tmp_path: Path) -> None:
    """As `--model my_model:predict` is meant."""
    (tmp_path / "only_here.py").write_text("def predict(inputs):\n    return inputs\n")
    assert infer(load("only_here:predict", str(tmp_path)), {"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module:x", "there is no module 'no_such_module'"),
        (HERE + "missing", "'missing' is not in"),
        (HERE + "number", "is int: expected an object with predict"),
        ("tests.support.own_models:np.random.RandomState", "made RandomState: expected an object with predict"),
    ],
)
def test_what_is_not_a_model_is_said(target: str, words: str) -> None:
    """With what would be one."""
    with pytest.raises(ModelError, match=words):
        load(target)


def test_a_module_that_lacks_one_of_its_own_is_not_called_missing(tmp_path: Path) -> None:
    """The name in the error is the one to install."""
    (tmp_path / "needy.py").write_text("import not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        load("needy:x", str(tmp_path))


def test_batches_are_prepared_before_others_are_run() -> None:
    """Each has its own inputs, and the errors of those in their places."""
    served = load_object(own_models.Scale())
    bodies = ([data([[1], [2]]), data([1, 2, 3])], [data("x"), data([[5], [6]])])
    first, second = (served.prepare(items, INFER) for items in bodies)
    (one, wrong), (other_wrong, two) = decoded(first()), decoded(second())
    assert (one["twice"], two["twice"]) == ([[2], [4]], [[10], [12]])
    assert isinstance(wrong, BadInput)
    assert isinstance(other_wrong, BadInput)


def test_arrays_are_read_checked_stacked_by_shape_and_written() -> None:
    """A wrong one is refused with the shape that is wanted, and fails nobody else."""
    model = own_models.Scale()
    served = load_object(model)
    first, wrong, wide, second = infer(served, [[1], [2]], [1, 2, 3], [[1, 2], [3, 4]], [[5], [6]])
    assert (first["twice"], wide["twice"], second["twice"]) == ([[2], [4]], [[2, 4], [6, 8]], [[10], [12]])
    assert isinstance(wrong, BadInput)
    assert str(wrong) == "the input has the shape [3]: expected float32 of the shape [2, any]"
    assert model.calls == [("load", "cuda:0"), "warmup", (2, 2, 1), (1, 2, 2)]


def load_object(model: Any) -> PythonModel:
    from carpool.engines.python_model import serve

    return serve(model, "it", "cuda:0")


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((2, None), None, ([2, None], "float32")),
        ([np.int64(2)], np.int64, ([2], "int64")),
        ((), np.dtype("<f8"), ([], "float64")),
        (None, "f2", (None, "float16")),
        (None, None, (None, None)),
    ],
)
def test_a_shape_and_a_type_may_be_what_numpy_takes_for_one(shape: Any, dtype: Any, told: Any) -> None:
    """What the worker tells of it is plain."""
    info = load_object(shaped(shape, dtype)).info
    assert (info["input_shape"], info["input_dtype"]) == told


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((-1,), None, r"input_shape \(-1,\) is no shape: allowed: a tuple of sizes from 1, and None where"),
        ((2.5,), None, r"input_shape \(2.5,\) is no shape"),
        (4, None, "input_shape 4 is no shape"),
        ("34", None, "input_shape '34' is no shape"),
        ((4,), "floaty", "input_dtype 'floaty' is not known: allowed: bool, int8, .* float64"),
        ((4,), "complex64", "input_dtype 'complex64' is not known"),
        ((4,), object(), "input_dtype <object .* is not known"),
    ],
)
def test_a_shape_or_a_type_that_is_none_is_refused_at_the_start(shape: Any, dtype: Any, words: str) -> None:
    """Else every input would be, or the worker would die."""
    with pytest.raises(ModelError, match=words):
        load_object(shaped(shape, dtype))


def shaped(shape: Any, dtype: Any) -> Any:
    """A model with these attributes, but for what is None."""
    given = {"input_shape": shape, "input_dtype": dtype}
    return type(
        "Shaped", (own_models.Words,), {name: value for name, value in given.items() if value is not None}
    )()


def test_an_items_exception_is_its_own_and_says_whose_fault_it_is() -> None:
    """From `preprocess` and in a result's place."""
    refused, unread, bug, counted = infer(load(HERE + "Words"), "", 7, "bug", "a b")
    assert isinstance(refused, BadInput)
    assert "ValueError: no words" in str(refused)
    assert isinstance(unread, BadInput)
    assert isinstance(bug, RuntimeError)
    assert counted == 2


def test_a_library_that_is_not_installed_is_not_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow no image can be read, whoever sends it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    [failed] = load(HERE + "sizes").run([payload.head("image/png", {}) + b"a png"], INFER)
    assert isinstance(failed, MissingExtra)


def test_a_wrong_number_of_results_fails_the_batch() -> None:
    """Nobody gets someone else's."""
    with pytest.raises(RuntimeError, match="the model returned 0 results for 2 inputs"):
        infer(load(HERE + "Words"), "a", "short")


def test_a_batch_of_nothing_but_refused_inputs_does_not_reach_the_model() -> None:
    """An empty list is no batch."""
    assert [type(answer) for answer in infer(load(HERE + "Scale"), 1, 2)] == [BadInput, BadInput]


def test_a_model_embeds_and_reranks_where_it_has_the_methods() -> None:
    """With the parameters that every embedding model has."""
    model = load(HERE + "Lengths")
    assert decoded(model.run(["a"], EMBED)) == [pytest.approx([0.6, 0.8])]
    assert model.run(["a"], Call.of("embed", normalize=False, dimensions=1)) == [b"[3.0]"]
    assert isinstance(model.run(["a"], Call.of("embed", dimensions=3))[0], BadInput)
    ranks = model.run(["ab", "abcd"], Call.of("rerank", query="abc"))
    assert decoded(ranks) == [{"index": 0, "score": -1}, {"index": 1, "score": -1}]
    with pytest.raises(Unsupported, match="the model takes texts alone"):
        model.run([[101, 102]], EMBED)


@pytest.mark.parametrize("call", [EMBED, Call.of("embed", normalize=False), Call.of("rerank", query="")])
def test_a_vector_or_a_score_that_is_not_finite_fails_its_text_alone(call: Call) -> None:
    """It would be null in JSON, where every client expects a number."""
    answers = load_object(own_models.Divided()).run(["", "ab"], call)
    assert str(answers[0]) == "the model returned NaN or infinity"
    assert isinstance(answers[0], FloatingPointError)
    assert isinstance(answers[1], bytes)


@pytest.mark.parametrize("call", [EMBED, Call.of("tokenize"), Call.of("rerank", query="a")])
def test_what_a_model_has_no_method_for_it_cannot_do(call: Call) -> None:
    """It says what it can."""
    with pytest.raises(Unsupported, match=r"the model has no \w+: it has predict"):
        load(HERE + "Words").run(["a"], call)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32(0.1), b"0.1"),
        (np.arange(4).reshape(2, 2).T, b"[[0,2],[1,3]]"),
        ({"a": np.array([True]), 1: None}, b'{"a":[true],"1":null}'),
        (np.array(3), b"3"),
        ([float("nan")], b"[null]"),
    ],
)
def test_results_are_json_with_arrays_in_them(value: Any, written: bytes) -> None:
    """With the fewest digits that give the same number back."""
    assert results.to_json(value) == written


@pytest.mark.parametrize("value", [np.float32("nan"), {"a": [1.0, float("inf")]}, np.array([[1, -np.inf]])])
def test_what_is_not_finite_is_an_error_where_that_is_asked(value: Any) -> None:
    """Wherever it is in the result; to `carpool check`, which asks, null says nothing."""
    with pytest.raises(FloatingPointError, match="the model returned NaN or infinity"):
        results.to_finite_json(value)


@pytest.mark.parametrize("value", [None, {"a": None, 1: np.float32(2)}, datetime(2026, 1, 1)])
def test_what_is_finite_is_written_as_ever(value: Any) -> None:
    """Null is no number, and of some types there is more than `json` knows."""
    assert results.to_finite_json(value) == results.to_json(value)


def test_what_postprocess_raises_is_the_models_fault_and_called_what_it_is() -> None:
    """Of whatever type: no caller can mend it, and it has nothing to do with JSON."""
    bug, fine, unwritten = infer(load(HERE + "Buggy"), "in postprocess", "fine", "no JSON")
    assert type(bug) is ValueError
    assert str(bug) == "a bug"
    assert bug.__traceback__ is not None
    assert fine == "fine"
    assert str(unwritten).startswith("the result cannot be written as JSON")


def test_a_result_that_is_no_json_fails_alone() -> None:
    """The others of the batch are answered."""
    assert isinstance(results.encoded(object(), results.to_json), TypeError)
    assert results.encoded(1, results.to_json) == b"1"
