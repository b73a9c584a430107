"""The model server's dialect: `{"data": ...}` in, `{"result": ...}` out, errors as `{"detail": "..."}`.

There are two routes, of which a server has one: where the model takes a text, and where it takes anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

from carpool.errors import BackendError, BadInput, CarpoolError, TimedOut
from carpool.wire import payload
from carpool.wire.base import EncodedJson, Reply, Route, TextField, error_headers, json_reply, media_type

# Request ids are random by process and count from there: to draw each was an eighth of what a small one cost.
_ID_PREFIX = str(uuid4())[:24]
_numbers = count(uuid4().node)

decode_text = TextField("data").ask
decode_data = partial(payload.ask, b"")  # read in the worker: it may be megabytes of numbers


def _by_head(route: Route, headers: Mapping[str, str]) -> Route:
    """A body that is not JSON goes to the worker behind a head that says how to read it."""
    given = media_type(headers)
    if given not in payload.MEDIA_TYPES:
        return route
    head = payload.head(given, headers)
    return replace(route, decode=partial(payload.ask, head), beginning=head)


def encode_prediction(results: Sequence[EncodedJson], seconds: float) -> Sequence[EncodedJson]:
    """The reply to `POST /predict`, around a result that is JSON already."""
    request_id = f"{_ID_PREFIX}{next(_numbers) & 0xFFFFFFFFFFFF:012x}"
    tail = f',"request_id":"{request_id}","processing_time":{seconds:.6f}}}'
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
    decode=decode_text,
    encode=encode_prediction,
    encode_error=encode_error,
    statuses=(401, 403, 413, 415, 422, 429, 500, 503),
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

PREDICT_DATA = replace(
    PREDICT,
    decode=decode_data,
    beginning=b"",
    by_head=_by_head,
    media_types=payload.MEDIA_TYPES,
    summary="One input in, the model's result out: JSON, or the bytes of a tensor or an image.",
    request_schema={
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"description": "what the model takes", "example": [0.5, 1.5]}},
    },
    response_schema=PREDICT.response_schema
    | {"properties": PREDICT.response_schema["properties"] | {"result": {"description": "what it returns"}}},
)
