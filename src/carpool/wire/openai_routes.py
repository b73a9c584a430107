"""The dialect of OpenAI's embeddings API, from its server's side: routes and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

import msgspec

from carpool.errors import BadInput, CallerError, CarpoolError, NotFound, Overloaded
from carpool.wire import floats
from carpool.wire.base import Ask, EncodedJson, Reply, Route, decode_json, error_headers, json_reply
from carpool.wire.call import Call
from carpool.wire.counting import count_tokens
from carpool.wire.inputs import IDS_SCHEMA, TEXT_SCHEMA, TokenId, is_blank, items_of, some

_MOST_INPUTS = 2048  # in one request, by OpenAI's own documentation
# So many ends of answers are known, by what they tell: of one model, with about as many tokens.
_MOST_AGAIN = 1024
_LONGEST_AGAIN = 256  # characters of a model's name, which callers choose: with the above some MiB at most
_EXPECTED = '{"input": "a text, a list of texts, token ids or a list of such", "model": "..."}'


class _Body(msgspec.Struct):
    # Not list[str] | list[list[int]]: a union has one kind of array, so the rest is checked by hand.
    input: str | list[str | TokenId | list[TokenId]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Written(msgspec.Struct):
    input: msgspec.Raw


_BODY = msgspec.json.Decoder(_Body)
_WRITTEN = msgspec.json.Decoder(_Written)


def embeddings(model: str, serves: Callable[[str], bool]) -> Route:
    """The route; `model` is what is served where a body names none, and `serves` says which names mean it too.

    Another name is left to the upstream; where there are several models, the name chooses among them.
    """
    return Route(
        path="/v1/embeddings",
        payload="text",
        decode=partial(_decode, model, serves),
        encode=partial(_encode, (), model, False),
        encode_error=encode_error,
        statuses=(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503),
        summary="Texts or token ids in, vectors out, as OpenAI has it.",
        request_schema=_REQUEST_SCHEMA,
        response_schema=_RESPONSE_SCHEMA,
        error_schema=ERROR_SCHEMA,
    )


def _decode(model: str, serves: Callable[[str], bool], body: bytes) -> Ask:
    asked = decode_json(_BODY, body, _EXPECTED)
    items = _items(asked.input, body)
    named = asked.model or model
    other = None if serves(named) else named
    is_usual = asked.dimensions is None and other is None
    group = None if is_usual else Call.of("embed", dimensions=asked.dimensions, model=other)
    encode = partial(_encode, items, named, asked.encoding_format == "base64")
    return Ask(items, group, encode, model=asked.model or "")


def _items(inputs: str | list[Any], body: bytes) -> tuple[bytes, ...]:
    """What is asked for, each as JSON."""
    if is_blank(inputs):
        raise BadInput("`input` is empty", "expected at least one text, none of them empty")
    if isinstance(inputs, str):  # nearly always: to write it again is faster than to find what was written
        return (msgspec.json.encode(inputs),)
    if len({type(one) for one in inputs}) > 1:
        raise BadInput("`input` mixes texts and token ids", f"expected {_EXPECTED}")
    items = items_of(inputs, bytes(_WRITTEN.decode(body).input))
    if len(items) > _MOST_INPUTS:
        raise BadInput(f"`input` has {len(items)} inputs", f"allowed: {_MOST_INPUTS}")
    return items


def _encode(
    items: Sequence[bytes], model: str, base64: bool, results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    pieces: list[EncodedJson] = [b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":']
    for place, vector in enumerate(results):
        if place:
            pieces.append(b'},{"object":"embedding","index":%d,"embedding":' % place)
        pieces.append(floats.base64(vector) if base64 else vector)
    encode_end = _encode_end_again if len(model) <= _LONGEST_AGAIN else _encode_end
    pieces.append(encode_end(model, count_tokens(items, results)))
    return pieces


def _encode_end(model: str, tokens: int) -> bytes:
    """What is behind the vectors."""
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    return b'}],"model":%b,"usage":%b}' % (msgspec.json.encode(model), usage)


_encode_end_again = lru_cache(_MOST_AGAIN)(_encode_end)


def encode_models(names: Sequence[str]) -> Reply:
    """The reply to `GET /v1/models`."""
    return json_reply({"object": "list", "data": [_describe(name) for name in names]})


def encode_model(name: str) -> Reply:
    """The reply to `GET /v1/models/{name}`."""
    return json_reply(_describe(name))


def _describe(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "carpool"}


def encode_error(error: CarpoolError) -> Reply:
    """`{"error": {"message", "type", "param", "code"}}`."""
    kind, code = "server_error", None
    match error:
        case Overloaded():
            kind, code = "rate_limit_error", "rate_limit_exceeded"
        case NotFound():
            kind, code = "invalid_request_error", "model_not_found"
        case CallerError():
            kind = "invalid_request_error"
    param = "input" if isinstance(error, BadInput) and "`input`" in error.message else None
    body = {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
    return json_reply(body, error.status, error_headers(error))


ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string", "example": "invalid_request_error"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "description": f"a text, a list of texts, token ids or a list of such, {_MOST_INPUTS} at most",
            "anyOf": [TEXT_SCHEMA, IDS_SCHEMA, some(TEXT_SCHEMA), some(IDS_SCHEMA)],
            "example": ["What is vector search?", "What is a batch?"],
        },
        "model": {"type": "string", "example": "default"},
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "minimum": 1},
        "user": {"type": "string"},
    },
}
_RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": {
                        "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}],
                        "example": [0.0183, -0.0412, 0.0077],
                    },
                },
            },
        },
        "model": {"type": "string"},
        "usage": {
            "type": "object",
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
    },
}
