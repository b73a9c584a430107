from __future__ import annotations

import importlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from carpool.engines.base import available_cores
from carpool.engines.text_embedding import TextEmbedding, load
from carpool.engines.tokenize import read_tokenizer
from carpool.errors import MissingExtra, ModelError
from carpool.wire.call import Call
from tests.engines import tiny_onnx
from tests.engines.conftest import ENGINES, Embed, MakeModel, vectors_in
from tests.support.sentences import sentences

EngineName = Literal["openvino", "onnxruntime"]
ODDITIES = [
    "",
    " ",
    "\0",
    "\ud83d",
    "🚗" * 300,
    "नमस्ते",
    "e\u0301",
    "\u202eright to left",
    "a" * 10_000,
    "\ufffe",
]


def test_a_vector_does_not_depend_on_its_batch(engine: TextEmbedding, embed: Embed) -> None:
    """Nobody can tell who travelled together: alone or in company, the answer is the same."""
    texts = random.Random(1).sample(sentences(400), 160)
    alone = np.concatenate([embed(engine, [text]) for text in texts])
    together = np.concatenate([embed(engine, texts[start : start + 32]) for start in range(0, 160, 32)])
    assert np.sum(alone * together, axis=1).min() > 0.9999


def test_of_a_few_texts_each_is_run_as_if_alone_where_that_is_faster(minilm_dir: Path, embed: Embed) -> None:
    """On OpenVINO: to the last bit what it has alone, which a text of a larger batch need not have."""
    engine = load(minilm_dir, "openvino")
    texts = ["a word", "The train to the coast leaves at nine, and the next one an hour later.", "two words"]
    alone = np.concatenate([embed(engine, [text]) for text in texts])
    assert np.array_equal(embed(engine, texts), alone)
    assert np.array_equal(embed(engine, texts[::-1]), alone[::-1])


@pytest.mark.parametrize("name", ENGINES)
def test_a_score_that_is_no_number_is_the_error_of_its_text(name: EngineName, make_model: MakeModel) -> None:
    """JSON has no NaN, and the others have their scores."""
    (_, token, _) = read_tokenizer(make_model(b"")).ids(["broken"])[0]
    good = tiny_onnx.table()[token].tobytes()
    bad = np.full(tiny_onnx.DIMENSIONS, np.nan, np.float32).tobytes()
    directory = make_model(tiny_onnx.token_states().replace(good, bad))
    for call in (Call.of("similarity", source_sentence="a"), Call.of("rerank", query="a")):
        score, error = load(directory, name, threads=1).run(["whole", "broken"], call)
        assert isinstance(score, bytes)
        assert isinstance(error, FloatingPointError)


def test_answers_come_in_the_order_of_the_texts(engine: TextEmbedding, embed: Embed) -> None:
    """Grouping by length must leave no trace."""
    texts = sorted(sentences(64), key=len)
    shuffled = random.Random(2).sample(range(64), 64)
    in_order = embed(engine, texts)
    out_of_order = embed(engine, [texts[index] for index in shuffled])
    assert np.sum(in_order[shuffled] * out_of_order, axis=1).min() > 0.9999


def test_the_next_batch_may_be_prepared_before_one_is_run(engine: TextEmbedding, embed: Embed) -> None:
    """Its groups run with those of the other, and every text has its own vector all the same."""
    texts = sentences(64)
    first, second = engine.prepare(texts[:32]), engine.prepare(texts[32:])
    made = vectors_in(first() + second())
    assert np.sum(made * embed(engine, texts), axis=1).min() > 0.9999


def test_a_batch_prepared_among_others_may_be_run_before_them(engine: TextEmbedding, embed: Embed) -> None:
    """Whatever became of the one before it: nothing of a batch waits for another's end."""
    texts = sentences(40)
    first, second = engine.prepare(texts[:20]), engine.prepare(texts[20:])
    made = vectors_in(second() + first())
    assert np.sum(made * embed(engine, texts[20:] + texts[:20]), axis=1).min() > 0.9999


def test_texts_about_the_same_thing_are_near(engine: TextEmbedding, embed: Embed) -> None:
    """The numbers mean something: each question finds its answer."""
    questions = embed(
        engine, ["How do I reset my password?", "What does the train cost?", "Why is the sky blue?"]
    )
    answers = embed(
        engine,
        [
            "Air scatters short wavelengths of sunlight more than long ones.",
            "You can choose a new password on the login page.",
            "A rail ticket is 30 euros.",
        ],
    )
    assert (questions @ answers.T).argmax(axis=1).tolist() == [1, 2, 0]


def test_what_is_past_the_maximum_is_not_read(engine: TextEmbedding, embed: Embed) -> None:
    """An overlong text is cut, not refused, and its neighbour does not notice."""
    start = "the car " * 200
    cut, other, short = embed(engine, [start, start + "a banana", "a banana"])
    assert cut @ other > 0.99999
    assert short @ embed(engine, ["a banana"])[0] > 0.9999


def test_any_string_has_a_vector(engine: TextEmbedding, embed: Embed) -> None:
    """What a caller sends cannot fail the batch of the others."""
    vectors = embed(engine, ODDITIES)
    assert vectors.shape == (len(ODDITIES), 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_no_texts_no_vectors(engine: TextEmbedding) -> None:
    """An empty batch is not an error."""
    assert engine.run([]) == []


def test_an_engine_tells_what_it_is(engine: TextEmbedding) -> None:
    """The server shows it to the operator."""
    assert engine.info.engine.split()[0] in ENGINES
    assert (engine.info.inputs, engine.info.dimensions, engine.info.max_tokens) == ("text", 384, 256)
    assert engine.info.threads == 2
    assert "384" in repr(engine)


def test_one_thread_is_enough(minilm_dir: Path, embed: Embed, engine: TextEmbedding) -> None:
    """On one core there is one session, and the same answers."""
    texts = sentences(12)
    single = load(minilm_dir, "openvino", threads=1)
    assert np.sum(embed(single, texts) * embed(engine, texts), axis=1).min() > 0.999


def test_it_takes_the_cores_it_may_use(tiny_dir: Path) -> None:
    """A worker confined to some cores must not start a thread for each of the machine's."""
    assert load(tiny_dir).info.threads == available_cores() >= 1


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_need_not_take_token_types(tiny_dir: Path, embed: Embed, name: EngineName) -> None:
    """Any encoder's export will do; the mean of its token states is exactly that."""
    found = embed(load(tiny_dir, name, threads=2), ["hello world", "hello"])
    table = tiny_onnx.table()
    expected = np.array([table[[101, 7592, 2088, 102]].sum(axis=0), table[[101, 7592, 102]].sum(axis=0)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.sum(found * expected, axis=1).min() > 0.9999


@pytest.mark.parametrize("name", ENGINES)
def test_sentence_vectors_are_not_pooled_again(make_model: MakeModel, embed: Embed, name: EngineName) -> None:
    """A model that offers them is believed, though its token states come first."""
    found = embed(load(make_model(tiny_onnx.sentence_vectors()), name, threads=2), ["hello"])[0]
    expected = tiny_onnx.table()[[101, 7592, 102]].sum(axis=0)
    assert found @ expected / np.linalg.norm(expected) > 0.9999


@pytest.mark.parametrize("name", ENGINES)
def test_padding_never_passes_the_maximum(tiny_dir: Path, embed: Embed, name: EngineName) -> None:
    """A model may have no more positions than its longest text has tokens, and 20 is no whole step."""
    (tiny_dir / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    engine = load(tiny_dir, name, threads=2)
    assert engine.info.max_tokens == 20
    assert embed(engine, ["word " * 50, "word"]).shape == (2, tiny_onnx.DIMENSIONS)


def test_a_model_that_takes_no_fixed_width_keeps_free_shapes(make_model: MakeModel, embed: Embed) -> None:
    """A text alone is padded further than its batch would be, but not past the positions that a model has."""
    directory = make_model(tiny_onnx.few_positions(20))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    engine = load(directory, "openvino", threads=2)
    alone = [embed(engine, [text])[0] for text in ("word " * 50, "word")]
    assert np.sum(alone * embed(engine, ["word " * 50, "word"]), axis=1).min() > 0.9999


@pytest.mark.parametrize("length", [1, 14, 15, 30, 31, 62, 63, 200])
def test_the_width_a_text_is_padded_to_leaves_no_trace(
    engine: TextEmbedding, embed: Embed, length: int
) -> None:
    """At both sides of each fixed width, a text alone has the vector that it has beside others."""
    texts = [" ".join(["car"] * length), "a", "two cars", "a train to the sea"]
    assert embed(engine, texts[:1])[0] @ embed(engine, texts)[0] > 0.9999


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(tiny_dir: Path, missing: str) -> None:
    """The operator learns which file to add."""
    (tiny_dir / missing).unlink()
    with pytest.raises(ModelError, match=f"{missing} does not exist"):
        load(tiny_dir)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("onnx", "complaint"),
    [
        (b"not a model", r"model\.onnx is not an ONNX model that can be loaded"),
        (
            tiny_onnx.token_states(ids="pixels"),
            r"takes the inputs attention_mask, pixels: expected: input_ids",
        ),
        (tiny_onnx.same_as_mask(), r"model\.onnx returns int64 .* expected: float32 token states"),
    ],
    ids=["damaged", "inputs", "output"],
)
def test_a_wrong_model_is_refused_with_what_was_found(
    make_model: MakeModel, name: EngineName, onnx: bytes, complaint: str
) -> None:
    """At the start, and by name: not at the first request, and not in a library's words."""
    with pytest.raises(ModelError, match=complaint):
        load(make_model(onnx), name, threads=1)


def forget(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Make these libraries impossible to import, as where they are not installed."""
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"carpool.engines.{library}", raising=False)
        monkeypatch.delattr(importlib.import_module("carpool.engines"), library, raising=False)


def test_auto_takes_what_is_installed(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO first, ONNX Runtime without it."""
    assert load(tiny_dir).info.engine.startswith("openvino ")
    forget(monkeypatch, "openvino")
    assert load(tiny_dir).info.engine.startswith("onnxruntime ")


def test_without_an_engine_the_error_names_the_extra(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the line to type."""
    forget(monkeypatch, *ENGINES)
    with pytest.raises(MissingExtra, match=r"pip install 'carpool\[local\]'"):
        load(tiny_dir)
    with pytest.raises(MissingExtra, match=r"pip install 'carpool\[onnx\]'"):
        load(tiny_dir, "onnxruntime")


def test_a_directory_may_be_given_as_a_string(minilm_dir: Path, tmp_path: Path) -> None:
    """The server sends its arguments to the worker as text."""
    shutil.copytree(minilm_dir, tmp_path / "a model")
    assert load(str(tmp_path / "a model"), "onnxruntime", threads=1).info.dimensions == 384
