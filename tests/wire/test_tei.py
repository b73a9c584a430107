"""What the proxy says to a TEI upstream, and what it makes of the reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carpool.core.replica import Capacity
from carpool.errors import BackendError, BadInput
from carpool.wire import tei
from carpool.wire.call import EMBED, Call
from carpool.wire.upstream import Exchange


def exchange(call: Call = EMBED) -> Exchange:
    return tei.DIALECT.exchange(call)


def test_texts_become_inputs() -> None:
    """One request for many items, in order, as they were written: texts, token ids."""
    body = exchange().encode([b'"a"', b'"\\"b\\"\\n"', b'"\\u00e9"', b"[1, 2]"])
    assert json.loads(body) == {"inputs": ["a", '"b"\n', "é", [1, 2]]}


@pytest.mark.parametrize(
    ("call", "path", "body"),
    [
        (
            Call.of("embed", truncate=True, dimensions=64, prompt_name="q", normalize=False, model="any"),
            "/embed",
            {"inputs": ["a", "b"], "truncate": True, "dimensions": 64, "prompt_name": "q", "normalize": False},
        ),
        (Call.of("embed_all"), "/embed_all", {"inputs": ["a", "b"]}),
        (
            Call.of("embed_sparse", truncation_direction="Left"),
            "/embed_sparse",
            {"inputs": ["a", "b"], "truncation_direction": "Left"},
        ),
        (
            Call.of("predict", raw_scores=True),
            "/predict",
            {"inputs": [["a"], ["b"]], "raw_scores": True},
        ),
        (Call.of("rerank", query="q?"), "/rerank", {"texts": ["a", "b"], "query": "q?"}),
        (
            Call.of("similarity", source_sentence="s", truncate=True),
            "/similarity",
            {"inputs": {"source_sentence": "s", "sentences": ["a", "b"]}, "parameters": {"truncate": True}},
        ),
    ],
)
def test_every_operation_in_its_own_words(call: Call, path: str, body: dict[str, Any]) -> None:
    """The call's parameters are where TEI looks for them."""
    assert exchange(call).path == path
    assert json.loads(exchange(call).encode([b'"a"', b'"b"'])) == body


def test_a_pair_to_predict_stays_a_pair() -> None:
    """A bare list of two texts would be one pair, so a single text is in a list of its own."""
    body = exchange(Call.of("predict")).encode([b'["a", "b"]', b'"c"'])
    assert json.loads(body) == {"inputs": [["a", "b"], ["c"]]}


def test_what_cannot_be_said_is_refused() -> None:
    """A parameter that would be lost on the way is an error, and not another answer than was asked for."""
    with pytest.raises(
        BadInput,
        match="predict at the upstream does not take dimensions = 3: parameters that it takes: truncate,",
    ):
        exchange(Call.of("predict", dimensions=3))


def test_calls_are_equal_whatever_the_order_of_their_parameters() -> None:
    """Only equal calls travel together, so the ones that are the same must be equal."""
    first = Call.of("embed", truncate=True, dimensions=64, prompt_name=None)
    assert first == Call.of("embed", dimensions=64, truncate=True)
    assert hash(first) == hash(Call.of("embed", dimensions=64, truncate=True))
    assert Call.of("embed") == EMBED
    assert (
        len(
            {first, EMBED, Call.of("embed", "Bearer a"), Call.of("embed_all"), Call.of("embed", truncate=False)}
        )
        == 5
    )


def test_ranks_come_back_in_the_order_of_the_texts() -> None:
    """TEI sorts them by score."""
    body = b'[{"index":2,"score":0.90},{"index":0,"score":0.5},{"index":1,"score":1e-3}]'
    ranks = exchange(Call.of("rerank", query="q")).decode(body, 3)
    assert [bytes(rank) for rank in ranks] == [
        b'{"index":0,"score":0.5}',
        b'{"index":1,"score":1e-3}',
        b'{"index":2,"score":0.90}',
    ]


@pytest.mark.parametrize(
    ("operation", "body", "results"),
    [
        ("embed_all", b"[[[1,2],[3]],[[4]]]", [b"[[1,2],[3]]", b"[[4]]"]),
        ("embed_sparse", b'[[{"index":1,"value":0.5}],[]]', [b'[{"index":1,"value":0.5}]', b"[]"]),
        ("predict", b'[[{"score":1,"label":"]["}],[]]', [b'[{"score":1,"label":"]["}]', b"[]"]),
        ("similarity", b"[0.10, 1]", [b"0.10", b"1"]),
    ],
)
def test_results_keep_their_bytes(operation: Any, body: bytes, results: list[bytes]) -> None:
    """Whatever their shape, one for each item."""
    assert [bytes(result) for result in exchange(Call.of(operation)).decode(body, 2)] == results


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("embed_all", b"[[[1]]]"),
        ("embed_all", b"[1,2]"),
        ("predict", b'{"error":"x"}'),
        ("rerank", b'[{"index":0,"score":1}]'),
        ("rerank", b'[{"index":0,"score":1},{"index":0,"score":1}]'),
        ("rerank", b'[{"index":0,"score":1},{"index":2,"score":1}]'),
        ("rerank", b"[1,2]"),
        ("similarity", b"[1]"),
        ("similarity", b'["a","b"]'),
    ],
)
def test_a_reply_of_another_shape_or_count_is_refused(operation: Any, body: bytes) -> None:
    """It pairs with nobody."""
    with pytest.raises(BackendError, match="the upstream"):
        exchange(Call.of(operation)).decode(body, 2)


def test_its_limits_are_read_from_info() -> None:
    """They bound what the scheduler sends."""
    body = b"""{"model_id":"m","model_sha":null,"model_dtype":"float32",
        "model_type":{"embedding":{"pooling":"mean"}},
        "max_concurrent_requests":512,"max_input_length":512,"max_batch_tokens":16384,"max_batch_requests":4,
        "max_client_batch_size":32,"auto_truncate":true,"version":"1.9.0"}"""
    description = tei.describe(body)
    assert description.capacity == Capacity(batch_size=32, batch_cost=16384, items=512)
    assert (description.model, description.dialect.name) == ("m", "tei")


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"model_id":7}'])
def test_somebody_elses_info_is_refused(body: bytes) -> None:
    """Many servers have an /info."""
    with pytest.raises(BackendError):
        tei.describe(body)
