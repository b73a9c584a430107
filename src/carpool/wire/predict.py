"""The model server's dialect: `{"data": ...}` in, `{"result": ...}` out, errors as `{"detail": "..."}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from carpool.errors import BackendError, BadInput, CarpoolError, TimedOut
from carpool.wire.base import EncodedJson, Reply, Route, TextField, error_headers, json_reply

decode_predict = TextField("data").ask  # the models served so far take a text


def encode_prediction(results: Sequence[EncodedJson], seconds: float) -> Sequence[EncodedJson]:
    """The reply to `POST /predict`, around a result that is JSON already."""
    tail = f',"request_id":"{uuid4()}","processing_time":{seconds:.6f}}}'
    return (b'{"result":', results[0], tail.encode())


def encode_error(error: CarpoolError) -> Reply:
    """`{"detail": "..."}` with this dialect's statuses: 422, 429, 503 and 500 tell what the others spread."""
    match error:
        case BadInput():
            status = 422
        case TimedOut():
            status = 503
        case BackendError():
            status = 500
        case _:
            status = error.status
    headers = error_headers(error)
    if status == 503 and not headers:
        headers += (("retry-after", "1"),)
    return json_reply({"detail": str(error)}, status, headers)


ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}

PREDICT = Route(
    path="/predict",
    payload="data",
    decode=decode_predict,
    encode=encode_prediction,
    encode_error=encode_error,
    statuses=(413, 415, 422, 429, 500, 503),
    summary="One input in, the model's result out; batched like any other.",
    request_schema={
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "minLength": 1, "example": "What is vector search?"}},
    },
    response_schema={
        "type": "object",
        "required": ["result", "request_id", "processing_time"],
        "properties": {
            "result": {"type": "array", "items": {"type": "number"}, "example": [0.0183, -0.0412]},
            "request_id": {"type": "string", "format": "uuid"},
            "processing_time": {"type": "number", "description": "seconds from arrival to result"},
        },
    },
    error_schema=ERROR_SCHEMA,
)
