"""What the server's dialects read out of a body, without a server: items, groups, errors."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.errors import (
    BackendError,
    BadInput,
    CarpoolError,
    Overloaded,
    ShuttingDown,
    TimedOut,
    TooLarge,
    Unsupported,
    WrongType,
)
from carpool.server.routes import nearest_dialect
from carpool.wire import cohere_routes, kserve_v2_routes, native, openai_routes, tei_routes
from carpool.wire.base import Ask, Route, Times
from carpool.wire.call import Call, Vector
from carpool.wire.inputs import by_field

OPENAI = openai_routes.embeddings("default", lambda name: name == "default")


def said(route: Route, body: bytes, *results: bytes) -> Any:
    encode = route.decode(body).encode or route.encode
    return json.loads(b"".join(encode(results, 0.0)))


def test_a_callers_long_name_for_a_model_is_not_kept() -> None:
    """It comes back in the answer, and is forgotten."""
    kept = openai_routes._encode_end_again.cache_info
    for length, more in ((256, 1), (257, 0)):
        before = kept().currsize
        name = "n" * length
        assert said(OPENAI, json.dumps({"input": "a", "model": name}).encode(), b"[1]")["model"] == name
        assert kept().currsize - before == more


def test_items_are_the_callers_bytes() -> None:
    """Escapes, blanks and digits stay as they were written."""
    ask = tei_routes.EMBED.decode(b'{"inputs": [ "\\u00e9" ,[1,  2], "x y"]}')
    assert (ask.items, ask.group) == ((b'"\\u00e9"', b"[1,  2]", b'"x y"'), None)
    assert tei_routes.EMBED.decode(b'{"inputs": [1, 2]}').items == (b"[1, 2]",)
    assert OPENAI.decode(b'{"input": [1, 2]}').items == (b"[1, 2]",)
    assert OPENAI.decode(b'{"input": [[1], [2]]}').items == (b"[1]", b"[2]")


@pytest.mark.parametrize(
    ("route", "body", "call"),
    [
        (tei_routes.EMBED, {"inputs": "a", "truncate": None}, None),
        (
            tei_routes.EMBED,
            {"inputs": "a", "truncation_direction": "left", "normalize": False, "dimensions": 3},
            Call.of("embed", truncation_direction="Left", normalize=False, dimensions=3),
        ),
        (tei_routes.EMBED_ALL, {"inputs": "a"}, Call.of("embed_all")),
        (tei_routes.RERANK, {"query": "q", "texts": ["a"]}, Call.of("rerank", query="q")),
        (
            tei_routes.SIMILARITY,
            {"inputs": {"source_sentence": "s", "sentences": ["a"]}, "parameters": {"truncate": True}},
            Call.of("similarity", source_sentence="s", truncate=True),
        ),
        (cohere_routes.RERANK, {"query": "q", "documents": ["a"], "top_n": 1}, Call.of("rerank", query="q")),
        (OPENAI, {"input": "a", "model": "default", "user": "me"}, None),
        (OPENAI, {"input": "a", "model": "other"}, Call.of("embed", model="other")),
        (OPENAI, {"input": "a", "dimensions": 3}, Call.of("embed", dimensions=3)),
    ],
)
def test_only_what_was_asked_for_divides_requests(route: Route, body: Any, call: Call | None) -> None:
    """Equal questions have equal groups, in whichever dialect; the usual one has none."""
    assert route.decode(json.dumps(body).encode()).group == call


def test_predict_tells_a_pair_from_a_batch() -> None:
    """A bare list of two texts is one pair, and its answer is no list of answers."""
    answer = b'[{"score":1,"label":"a"}]'
    assert tei_routes.PREDICT.decode(b'{"inputs":["a","b"]}').items == (b'["a","b"]',)
    assert tei_routes.PREDICT.decode(b'{"inputs":[["a"],["a","b"]]}').items == (b'["a"]', b'["a","b"]')
    assert said(tei_routes.PREDICT, b'{"inputs":"a"}', answer) == json.loads(answer)
    assert said(tei_routes.PREDICT, b'{"inputs":[["a"]]}', answer) == [json.loads(answer)]
    with pytest.raises(BadInput):
        tei_routes.PREDICT.decode(b'{"inputs":["a","b","c"]}')


def test_ranks_have_the_callers_places() -> None:
    """Whatever place they had in the batch that they travelled in."""
    ranks = (b'{"index":17,"score":0.1}', b'{"index":0,"score":0.9}')
    body = b'{"query":"q","texts":["a","b"],"return_text":true}'
    expected = [{"index": 1, "text": "b", "score": 0.9}, {"index": 0, "text": "a", "score": 0.1}]
    assert said(tei_routes.RERANK, body, *ranks) == expected
    body = b'{"query":"q","documents":["a",{"text":"b"}],"top_n":1}'
    assert said(cohere_routes.RERANK, body, *ranks) == {"results": [{"index": 1, "relevance_score": 0.9}]}


def test_usage_is_the_sum_of_what_was_counted() -> None:
    """And base64 holds little-endian float32."""
    one, two = Vector(b"[1]"), Vector(b"[2]")
    one.tokens, two.tokens = 3, 4
    body = b'{"input":["a","b"],"encoding_format":"base64","model":"m"}'
    reply = said(OPENAI, body, one, two)
    assert reply["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert reply["data"][0] == {"object": "embedding", "index": 0, "embedding": "AACAPw=="}
    assert said(OPENAI, b'{"input":[1,2,3]}', b"[1]")["usage"]["prompt_tokens"] == 3
    with pytest.raises(BackendError):
        said(OPENAI, body, b"[null]", b"[2]")


def test_kserve_reads_its_terms_from_the_body() -> None:
    """Priority 1 is the highest; the timeout is in microseconds."""
    route = kserve_v2_routes.infer("m")
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    ask = route.decode(
        json.dumps({"inputs": [tensor], "parameters": {"priority": 1, "timeout": 2_500_000}}).encode()
    )
    assert (ask.items, ask.weight, ask.timeout) == ((b'"a"',), 4.0, 2.5)
    ask = route.decode(json.dumps({"inputs": [tensor]}).encode())
    assert (ask.weight, ask.timeout, ask.group) == (None, None, None)
    deep: Any = "a"
    for _ in range(500):
        deep = [deep]
    with pytest.raises(BadInput):
        route.decode(json.dumps({"inputs": [tensor | {"data": deep, "shape": [1] * 500}]}).encode())


@pytest.mark.parametrize(("name", "largest"), [("timeout", 3_600_000_000), ("priority", 4_294_967_295)])
def test_kserves_terms_are_bounded(name: str, largest: int) -> None:
    """A timeout by what the header may say: an hour."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    body = json.dumps({"inputs": [tensor], "parameters": {name: 7}})
    route = kserve_v2_routes.infer("m")

    def ask(number: str) -> Ask:
        return route.decode(body.replace("7", number).encode())

    assert len(ask(str(largest)).items) == 1
    for number in (str(largest + 1), "9" * 400, "9" * 5000, "-1"):
        with pytest.raises(BadInput, match=rf"parameters\.{name}"):
            ask(number)


def binary_ask(tail: bytes, more: Mapping[str, Any] = MappingProxyType({}), **tensor: Any) -> Ask:
    """What a body with these bytes behind its JSON asks for."""
    route = kserve_v2_routes.infer("m")
    assert route.by_head is not None
    whole = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [whole | tensor]} | dict(more)).encode()
    return route.by_head(route, {"inference-header-content-length": str(len(head))}).decode(head + tail)


def test_kserve_unpacks_binary_texts_and_packs_vectors() -> None:
    """Every element has its length in front; the vectors come back as float32."""
    ask = binary_ask(b"\2\0\0\0\xc3\xa9\1\0\0\0b", {"parameters": {"binary_data_output": True}}, shape=[2, 1])
    assert [json.loads(item) for item in ask.items] == ["é", "b"]
    assert ask.answer is not None
    reply = ask.answer((b"[1,2]", b"[3,4]"), Times(0, 0))
    length = int(dict(reply.headers)["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["shape"] == [2, 2]
    assert reply.body[length:] == struct.pack("<4f", 1, 2, 3, 4)
    with pytest.raises(BackendError, match="not of one length"):
        ask.answer((b"[1,2]", b"[3]"), Times(0, 0))
    other = binary_ask(b"\1\0\0\0x\2\0\0\0yz", {"parameters": {"binary_data_output": True}}, shape=[2, 1])
    assert [json.loads(item) for item in other.items] == ["x", "yz"]  # though all the JSON is the same
    outputs = [{"name": "embedding", "parameters": {"binary_data": False}}]
    own = binary_ask(b"\1\0\0\0a", {"parameters": {"binary_data_output": True}, "outputs": outputs})
    assert own.answer is None


@pytest.mark.parametrize(
    ("tail", "tensor"),
    [
        (b"\1\0\0\0a", {"shape": [2]}),
        (b"\1\0\0\0a", {"data": ["a"]}),
        (b"\1\0\0\0a", {"parameters": {"binary_data_size": 4}}),
        (b"\1\0\0\0a", {"parameters": {}}),
        (b"\1\0\0\0a", {"datatype": "FP32"}),
        (b"\2\0\0\0a", {}),
        (b"\1\0\0\0a\0", {}),
        (b"\0\0\0\0", {}),
        (b"\1\0\0\0\xff", {}),
        (b"", {}),
    ],
)
def test_a_binary_tensor_that_is_not_what_it_says_is_refused(tail: bytes, tensor: dict[str, Any]) -> None:
    """By its shape, its size, its elements' lengths; and before anything of it is run."""
    with pytest.raises(BadInput):
        binary_ask(tail, **tensor)


@given(
    st.lists(st.text(min_size=1).filter(lambda text: text.isprintable()), min_size=1), st.binary(max_size=40)
)
def test_binary_texts_come_back_or_are_refused(texts: list[str], noise: bytes) -> None:
    """Any texts are those that were packed; any bytes at all are texts or `BadInput`."""
    packed = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    ask = binary_ask(packed, shape=[len(texts)])
    assert [json.loads(item) for item in ask.items] == texts
    with contextlib.suppress(BadInput):
        binary_ask(noise)


@pytest.mark.parametrize(
    ("error", "tei", "openai", "kserve", "cohere"),
    [
        (BadInput("x"), (422, "Validation"), 400, 400, 400),
        (Unsupported("x"), (424, "Backend"), 400, 400, 400),
        (TimedOut("x"), (429, "Overloaded"), 408, 503, 408),
        (Overloaded("x", retry_after=7), (429, "Overloaded"), 429, 503, 429),
        (BackendError("x"), (424, "Backend"), 502, 502, 502),
        (ShuttingDown("x"), (503, "Unhealthy"), 503, 503, 503),
        (CarpoolError("x"), (500, "Backend"), 500, 500, 500),
        (TooLarge("x"), (413, None), 413, 413, 413),
        (WrongType("x"), (415, None), 415, 415, 415),
    ],
)
def test_each_dialect_has_its_own_statuses(
    error: CarpoolError, tei: tuple[int, str | None], openai: int, kserve: int, cohere: int
) -> None:
    """And shapes; all of them say when to come back."""
    reply = tei_routes.encode_error(error)
    assert reply.status == tei[0]
    if tei[1] is not None:
        assert json.loads(reply.body)["error_type"] == tei[1]
    replies = [reply]
    for module, status in ((openai_routes, openai), (kserve_v2_routes, kserve), (cohere_routes, cohere)):
        reply = module.encode_error(error)
        assert reply.status == status
        assert isinstance(json.loads(reply.body), dict)
        replies.append(reply)
    if isinstance(error, Overloaded):
        assert all(("retry-after", "7") in reply.headers for reply in replies)


def test_a_path_of_two_dialects_is_told_apart_by_its_fields() -> None:
    """The first one keeps all that it ever took, and what nobody can read."""
    route = by_field(native.EMBED, b'{"input":', {"inputs": tei_routes.EMBED})
    assert route.choose is not None
    for body in (b'{"input":"a","inputs":"b"}', b'{"inputs":"b", "input":"a"}', b"{}", b"[]", b"{", b"\xff"):
        assert route.choose(body) is native.EMBED
    for body in (b'{"inputs":"b"}', b' { "x": {"input": 1}, "inputs" : null }'):
        assert route.choose(body) is tei_routes.EMBED


def test_what_is_not_served_is_refused_in_the_nearest_dialect() -> None:
    """By the beginning of its path."""
    assert nearest_dialect("/v1/x") is openai_routes.encode_error
    assert nearest_dialect("/v2/x") is kserve_v2_routes.encode_error
    assert nearest_dialect("/x") is native.encode_error
