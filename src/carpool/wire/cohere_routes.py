"""Cohere's dialect, from its server's side: `POST /rerank` with `documents`, as Infinity has it too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec

from carpool.errors import BadInput, CarpoolError
from carpool.wire.base import Ask, EncodedJson, Reply, Route, decode_json, error_headers, json_reply
from carpool.wire.call import Call
from carpool.wire.inputs import TEXT_SCHEMA, elements, is_blank, ranked, some

_EXPECTED = '{"query": "a text", "documents": ["a text", ...], "top_n": 3}'


class _Document(msgspec.Struct):
    text: str


class _Body(msgspec.Struct):
    query: str
    documents: list[str | _Document]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None
    model: str | None = None


class _Written(msgspec.Struct):
    documents: msgspec.Raw


_BODY = msgspec.json.Decoder(_Body)
_WRITTEN = msgspec.json.Decoder(_Written)


def _decode(body: bytes) -> Ask:
    asked = decode_json(_BODY, body, _EXPECTED)
    if all(isinstance(document, str) for document in asked.documents):
        texts = elements(bytes(_WRITTEN.decode(body).documents))
    else:
        texts = tuple([msgspec.json.encode(_text(document)) for document in asked.documents])
    if not asked.query or is_blank(asked.documents) or b'""' in texts:
        raise BadInput("`query` and `documents` must not be empty", f"expected {_EXPECTED}")
    call = Call.of("rerank", query=asked.query, raw_scores=asked.raw_scores)
    encode = partial(_encode, texts if asked.return_documents else (), asked.top_n)
    return Ask(texts, call, encode, model=asked.model or "")


def _text(document: str | _Document) -> str:
    return document if isinstance(document, str) else document.text


def _encode(
    texts: Sequence[bytes], top_n: int | None, results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    """The best `top_n`, best first."""
    found = []
    for place, score in ranked(results)[:top_n]:
        document = b',"document":{"text":%s}' % texts[place] if texts else b""
        found.append(b'{"index":%d,"relevance_score":%s%s}' % (place, msgspec.json.encode(score), document))
    return (b'{"results":[', b",".join(found), b"]}")


def encode_error(error: CarpoolError) -> Reply:
    """`{"message": "..."}`."""
    return json_reply({"message": str(error)}, error.status, error_headers(error))


_DOCUMENT_SCHEMA = {"type": "object", "required": ["text"], "properties": {"text": TEXT_SCHEMA}}

RERANK = Route(
    path="/rerank",
    payload="text",
    decode=_decode,
    encode=partial(_encode, (), None),
    encode_error=encode_error,
    statuses=(400, 401, 403, 408, 413, 415, 429, 500, 502, 503),
    summary="With `documents`, as Cohere has it.",
    request_schema={
        "type": "object",
        "required": ["query", "documents"],
        "properties": {
            "query": {"type": "string", "minLength": 1, "example": "What is vector search?"},
            "documents": some({"anyOf": [TEXT_SCHEMA, _DOCUMENT_SCHEMA]})
            | {"example": ["Finding near vectors.", "A fruit."]},
            "top_n": {"type": "integer", "minimum": 1},
            "return_documents": {"type": "boolean"},
            "model": {"type": "string"},
        },
    },
    response_schema={
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "relevance_score"],
                    "properties": {
                        "index": {"type": "integer"},
                        "relevance_score": {"type": "number", "example": 0.9},
                        "document": {"type": "object", "properties": {"text": {"type": "string"}}},
                    },
                },
            }
        },
    },
    error_schema={
        "type": "object",
        "required": ["message"],
        "properties": {"message": {"type": "string"}},
    },
)
