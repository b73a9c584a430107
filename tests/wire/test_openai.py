"""What the proxy says to an OpenAI-compatible upstream, and what it makes of the reply."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.errors import BackendError, BadInput
from carpool.wire import openai
from carpool.wire.call import EMBED, Call
from carpool.wire.upstream import Exchange


def exchange(call: Call = EMBED, model: str = "") -> Exchange:
    return openai.assume(model).dialect.exchange(call)


def reply(data: Any, separators: tuple[str, str] = (",", ":")) -> bytes:
    """A whole reply, with what stands around the data."""
    body = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    return json.dumps(body, separators=separators).encode()


def datum(index: int, *vector: float) -> dict[str, Any]:
    return {"object": "embedding", "embedding": list(vector), "index": index}


@pytest.mark.parametrize(
    ("call", "model", "body"),
    [
        (EMBED, "", {"input": ["a", "b"]}),
        (EMBED, "m", {"input": ["a", "b"], "model": "m"}),
        (
            Call.of("embed", model="theirs", dimensions=64),
            "m",
            {"input": ["a", "b"], "model": "theirs", "dimensions": 64},
        ),
        (Call.of("embed", normalize=True, truncate=True), "", {"input": ["a", "b"]}),
    ],
)
def test_texts_become_input(call: Call, model: str, body: dict[str, Any]) -> None:
    """With the model that was asked for, or else the upstream's own."""
    assert exchange(call, model).path == "/v1/embeddings"
    assert json.loads(exchange(call, model).encode([b'"a"', b'"b"'])) == body


@pytest.mark.parametrize(
    "call", [Call.of("rerank", query="q"), Call.of("embed", normalize=False), Call.of("embed", prompt_name="q")]
)
def test_what_cannot_be_said_is_refused(call: Call) -> None:
    """Another answer than was asked for would be worse than none."""
    with pytest.raises(
        BadInput,
        match=rf"{call.operation} at the upstream does not take|the upstream has no {call.operation}",
    ):
        exchange(call)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,", " : ")])
def test_vectors_come_in_the_order_of_their_index(separators: tuple[str, str]) -> None:
    """However they are ordered and spaced, as the upstream's own bytes."""
    body = reply([datum(2, 0.5), datum(0, 1e-9, -1), datum(1, 7)], separators)
    vectors = exchange().decode(body, 3)
    assert [json.loads(bytes(vector)) for vector in vectors] == [[1e-9, -1], [7], [0.5]]
    assert all(bytes(vector) in body for vector in vectors)


def test_digits_stay_as_they_are() -> None:
    """No float is parsed and written again."""
    body = b'{"data":[{"index":0,"embedding":[0.10000000000000001,1E5],"object":"embedding"}]}'
    (vector,) = exchange().decode(body, 1)
    assert bytes(vector) == b"[0.10000000000000001,1E5]"
    assert isinstance(vector, memoryview)
    assert vector.obj is body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[[1],[2]]",
        b'{"data":[]}',
        reply([datum(0, 1)]),
        reply([datum(0, 1), datum(1, 1), datum(2, 1)]),
        reply([datum(0, 1), datum(0, 1)]),
        reply([datum(1, 1), datum(2, 1)]),
        reply([{"embedding": [1]}, {"embedding": [2]}]),
        reply([datum(0, 1), {"embedding": "AACAPw==", "index": 1}]),
        reply([datum(0, 1), {"embedding": 0, "index": 1}]),
        reply([{"embedding": 0, "index": 0}, {"embedding": 1, "index": 1}]),
        reply([datum(0, 1), datum(1, 2)])[:-1],
        reply([datum(0, 1), datum(1, 2)]) + b"}",
        b'{"data":[{"embedding":[1,"index":0},{"embedding":[2],"index":1}]}',
    ],
)
def test_a_reply_that_does_not_pair_is_refused(body: bytes) -> None:
    """Missing, doubled, of another shape or not whole."""
    with pytest.raises(BackendError, match="the upstream"):
        exchange().decode(body, 2)


def test_brackets_in_strings_are_no_vectors() -> None:
    """What stands around the vectors may hold anything."""
    body = reply([datum(1, 1) | {"note": '"embedding":[9]'}, datum(0, 2) | {"embedding ": [3]}])
    assert [bytes(vector) for vector in exchange().decode(body, 2)] == [b"[2]", b"[1]"]


NUMBERS = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))
NOTES = st.dictionaries(st.text(max_size=9), st.text(alphabet='":[]{},embding\\', max_size=20), max_size=2)


@given(
    st.lists(st.tuples(st.lists(NUMBERS, max_size=4), NOTES), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_cutting_is_the_same_as_decoding(
    given: list[tuple[list[float], dict[str, str]]], random: Any, separators: tuple[str, str]
) -> None:
    """For every valid reply, whatever else is in it."""
    data = [notes | datum(index, *vector) for index, (vector, notes) in enumerate(given)]
    random.shuffle(data)
    body = reply(data, separators)
    results = exchange().decode(body, len(given))
    assert [json.loads(bytes(result)) for result in results] == [vector for vector, _ in given]
    with pytest.raises(BackendError):
        exchange().decode(body, len(given) + 1)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_corrupted_reply_is_never_paired_wrongly(vectors: list[list[float]], data: st.DataObject) -> None:
    """It is refused, or it pairs as a JSON parser would pair it, or only the inside of a vector is damaged."""
    body = bytearray(reply([datum(index, *vector) for index, vector in enumerate(vectors)]))
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, min(len(body), start + 12)))
    body[start:stop] = data.draw(st.text(alphabet='[],"0e n{}:index', max_size=3)).encode()
    try:
        results = exchange().decode(bytes(body), len(vectors))
    except BackendError:
        return
    assert len(results) == len(vectors)
    try:
        valid = {datum["index"]: datum["embedding"] for datum in json.loads(bytes(body))["data"]}
    except ValueError:
        assert all(bytes(result)[:1] == b"[" and b'"' not in bytes(result) for result in results)
    else:
        assert [json.loads(bytes(result)) for result in results] == [valid[i] for i in range(len(vectors))]


def test_the_model_is_read_from_the_list_of_models() -> None:
    """The first, unless one was asked for."""
    body = b'{"object":"list","data":[{"id":"first","object":"model"},{"id":"second"}]}'
    assert openai.describe(body, "").model == "first"
    assert openai.describe(body, "mine").model == "mine"
    assert openai.describe(b'{"data":[]}', "").model == ""
    with pytest.raises(BackendError):
        openai.describe(b'{"models":[]}', "")
