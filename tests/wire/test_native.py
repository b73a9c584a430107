"""carpool's own dialect, byte for byte."""

from __future__ import annotations

import json

import pytest

from carpool.errors import BadInput, Overloaded, Unavailable, WrongMethod
from carpool.wire import native, predict
from carpool.wire.base import Ask


@pytest.mark.parametrize(
    ("body", "item"),
    [
        (b'{"input": "What is vector search?"}', b'"What is vector search?"'),
        (b'{"input":"a"}', b'"a"'),
        (b' { "input" : "a" } ', b'"a"'),
        (b'{"input": \t"a"\r\n}', b'"a"'),
        (b'{"other": [1, {"a": null}], "input": "x"}', b'"x"'),
        (b'{"input": "x", "other": "}"}', b'"x"'),
        (b'{"input": "a", "input": "b"}', b'"b"'),
        (b'{"in\\u0070ut": "x"}', b'"x"'),
        (b'{"input": "\\ud83d\\ude80 \\u00e9\\n\\/"}', b'"\\ud83d\\ude80 \\u00e9\\n\\/"'),
        (b'{"input": " \\u0041"}', b'" \\u0041"'),
        ('{"input": "日本語"}'.encode(), '"日本語"'.encode()),
    ],
)
def test_a_text_stays_the_json_that_its_caller_wrote(body: bytes, item: bytes) -> None:
    """Byte for byte, escapes and all; unknown fields are ignored."""
    assert native.decode_embed(body) == Ask((item,))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b'{"input": "\xff"}', "not valid JSON"),
        (b'{"input": "\xc3"}', "not valid JSON"),
        (b'{"x": 1, "input": "\xed\xa0\x80"}', "not valid JSON"),
        (b'{"input": "\\ud800"}', "not valid JSON"),
        (b'{"x": 1, "input": "\\udc00"}', "not valid JSON"),
        (b'{"input": "\\q"}', "not valid JSON"),
        (b'{"input": "\\u12"}', "not valid JSON"),
        (b'{"input": "a\nb"}', "not valid JSON"),
        (b'{"input": "a\x00b"}', "not valid JSON"),
        (b'{"input": "a"b"}', "not valid JSON"),
        (b'{"input": \x0b"a"}', "not valid JSON"),
        (b'{"input": "a"', "not valid JSON"),
        (b'{"input": "a"},', "not valid JSON"),
        (b'{"input":}', "not valid JSON"),
        (b'{"input": "x"} {"input": "y"}', "not valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "not valid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `input`"),
        (b'{"inputs": "x"}', "missing required field `input`"),
        (b'{"input": 3}', "Expected `str`, got `int`"),
        (b'{"input": null}', "Expected `str`, got `null`"),
        (b'{"input": ["a", "b"]}', "Expected `str`, got `array`"),
        (b'{"input": ""}', "`input` is empty"),
        (b'{"input": " \\n\\t "}', "`input` is empty"),
        (b'{"input": "\\u0020\\u00a0"}', "`input` is empty"),
        (b'{"x": 1, "input": " "}', "`input` is empty"),
    ],
)
def test_bad_input_says_what_was_wrong_and_what_is_expected(body: bytes, message: str) -> None:
    """The message is about this body, the detail about any."""
    with pytest.raises(BadInput) as caught:
        native.decode_embed(body)
    assert message in caught.value.message
    assert "expected" in caught.value.detail


@pytest.mark.parametrize("wrap", [bytes, memoryview])
def test_a_vector_travels_as_the_bytes_it_came_in(wrap: type) -> None:
    """No float is parsed on the way, whatever holds the bytes."""
    vector = b"[0.10000000000000001, 1e-9,  -0.0]"
    assert b"".join(native.encode_embedding([wrap(vector)], 0.1)) == b'{"embedding":' + vector + b"}"


def test_the_error_envelope() -> None:
    """Code, message and detail; and the headers that the status asks for."""
    reply = native.encode_error(Overloaded("the queue is full", "come back", retry_after=3))
    assert (reply.status, reply.headers) == (429, (("retry-after", "3"),))
    assert json.loads(reply.body) == {
        "error": {"code": 429, "message": "the queue is full", "detail": "come back"}
    }
    assert native.encode_error(WrongMethod("no", "", "POST")).headers == (("allow", "POST"),)


@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
@pytest.mark.parametrize(("seconds", "said"), [(7, "7"), (0, "1")])
def test_callers_are_told_when_to_come_back(
    kind: type[Overloaded | Unavailable], seconds: int, said: str
) -> None:
    """In a second at the soonest, and once in each dialect; nothing where nobody named a time."""
    error = kind("busy", retry_after=seconds)
    for encode_error in (native.encode_error, predict.encode_error):
        assert encode_error(error).headers == (("retry-after", said),)
    assert native.encode_error(Unavailable("no")).headers == ()


def test_health() -> None:
    """200 when all is well, 503 with the reason when not."""
    well = native.encode_health(None, 1700000000)
    assert (well.status, json.loads(well.body)) == (
        200,
        {"status": "healthy", "timestamp": 1700000000, "service": "carpool"},
    )
    ill = native.encode_health("no worker", 1700000000)
    assert ill.status == 503
    assert json.loads(ill.body)["status"] == "unhealthy"
    assert json.loads(ill.body)["reason"] == "no worker"
    one_of_two = native.encode_health(None, 1700000000, [("http://a", None), ("http://b", "gone")])
    assert one_of_two.status == 200
    assert json.loads(one_of_two.body)["upstreams"] == [
        {"url": "http://a", "status": "healthy"},
        {"url": "http://b", "status": "unhealthy", "reason": "gone"},
    ]
