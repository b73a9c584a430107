"""carpool's own dialect: one text in, one vector out, and the error envelope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from carpool.errors import CarpoolError
from carpool.wire.base import EncodedJson, Reply, Route, TextField, error_headers, json_reply

decode_embed = TextField("input").ask


def encode_embedding(vectors: Sequence[EncodedJson], seconds: float) -> Sequence[EncodedJson]:
    """The reply to `POST /embed`, around a vector that is JSON already."""
    return (b'{"embedding":', vectors[0], b"}")


def encode_error(error: CarpoolError) -> Reply:
    """The error envelope: `{"error": {"code", "message", "detail"}}`."""
    envelope = {"error": {"code": error.status, "message": error.message, "detail": error.detail}}
    return json_reply(envelope, error.status, error_headers(error))


class ModelHealth(NamedTuple):
    """One of several models in `GET /health`; `upstreams` and `replicas` as in `encode_health`."""

    name: str
    trouble: str | None
    upstreams: Sequence[tuple[str, str | None]]
    replicas: Sequence[tuple[str, str | None]]
    is_loading: bool

    def told(self) -> dict[str, Any]:
        """What is said of it."""
        body: dict[str, Any] = {"name": self.name, "status": "loading" if self.is_loading else "healthy"}
        if self.trouble is not None and not self.is_loading:
            body |= {"status": "unhealthy", "reason": self.trouble}
        return body | _states("upstreams", "url", self.upstreams) | _states("replicas", "name", self.replicas)


def encode_health(
    trouble: str | None,
    timestamp: int,
    upstreams: Sequence[tuple[str, str | None]] = (),
    replicas: Sequence[tuple[str, str | None]] = (),
    models: Sequence[ModelHealth] = (),
) -> Reply:
    """The reply to `GET /health`: 200, or 503 with the reason.

    `upstreams` are URLs, `replicas` the names of worker processes, each with its trouble. Of several models
    some can serve while others cannot: that is 200, and "degraded".
    """
    body: dict[str, Any] = {"status": "healthy", "timestamp": timestamp, "service": "carpool"}
    if any(model.trouble is not None for model in models):
        body["status"] = "degraded"
    body |= _states("upstreams", "url", upstreams) | _states("replicas", "name", replicas)
    if models:
        body["models"] = [model.told() for model in models]
    if trouble is None:
        return json_reply(body)
    return json_reply(body | {"status": "unhealthy", "reason": trouble}, 503)


def _states(kind: str, key: str, states: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """A list of what there is several of, by its names; nothing, where there is nothing to list."""
    told = [
        {key: name, "status": "healthy"}
        if reason is None
        else {key: name, "status": "unhealthy", "reason": reason}
        for name, reason in states
    ]
    return {kind: told} if told else {}


_VECTOR = {"type": "array", "items": {"type": "number"}, "example": [0.0183, -0.0412, 0.0077]}
_ERROR_FIELDS = {"code": {"type": "integer"}, "message": {"type": "string"}, "detail": {"type": "string"}}

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "object", "required": list(_ERROR_FIELDS), "properties": _ERROR_FIELDS},
    },
}

EMBED = Route(
    path="/embed",
    payload="text",
    decode=decode_embed,
    encode=encode_embedding,
    encode_error=encode_error,
    statuses=(400, 401, 403, 408, 413, 415, 429, 500, 502, 503),
    summary="One text in, one vector out; it travels in a batch with whoever is waiting.",
    request_schema={
        "type": "object",
        "required": ["input"],
        "properties": {"input": {"type": "string", "minLength": 1, "example": "What is vector search?"}},
    },
    response_schema={"type": "object", "required": ["embedding"], "properties": {"embedding": _VECTOR}},
    error_schema=ERROR_SCHEMA,
)
