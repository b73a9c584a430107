"""carpool's own dialect, byte for byte."""

from __future__ import annotations

import json

import msgspec
import pytest

from carpool.errors import BadInput, Overloaded, WrongMethod
from carpool.wire import native


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"input": "What is vector search?"}', "What is vector search?"),
        (b'{"other": [1, {"a": null}], "input": "x"}', "x"),
        (b'{"input": "\\ud83d\\ude80 \\u00e9\\n"}', "🚀 é\n"),
        ('{"input": "日本語"}'.encode(), "日本語"),
    ],
)
def test_a_text_is_read(body: bytes, text: str) -> None:
    """Unknown fields are ignored, escapes and UTF-8 are understood."""
    assert native.decode_embed(body) == text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b'{"input": "\xff"}', "not valid JSON"),
        (b'{"input": "\\ud800"}', "not valid JSON"),
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
    ],
)
def test_bad_input_says_what_was_wrong_and_what_is_expected(body: bytes, message: str) -> None:
    """The message is about this body, the detail about any."""
    with pytest.raises(BadInput) as caught:
        native.decode_embed(body)
    assert message in caught.value.message
    assert "expected" in caught.value.detail


@pytest.mark.parametrize("wrap", [bytes, memoryview, msgspec.Raw])
def test_a_vector_travels_as_the_bytes_it_came_in(wrap: type) -> None:
    """No float is parsed on the way, whatever holds the bytes."""
    vector = b"[0.10000000000000001, 1e-9,  -0.0]"
    assert native.encode_embedding(wrap(vector), 0.1) == b'{"embedding":' + vector + b"}"


def test_the_error_envelope() -> None:
    """Code, message and detail; and the headers that the status asks for."""
    reply = native.encode_error(Overloaded("the queue is full", "come back", retry_after=3))
    assert (reply.status, reply.headers) == (429, (("retry-after", "3"),))
    assert json.loads(reply.body) == {
        "error": {"code": 429, "message": "the queue is full", "detail": "come back"}
    }
    assert native.encode_error(WrongMethod("no", "", "POST")).headers == (("allow", "POST"),)


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
