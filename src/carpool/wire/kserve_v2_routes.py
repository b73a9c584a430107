"""The dialect of KServe V2, from its server's side: texts (BYTES) in, vectors (FP32) out, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Annotated, Any

import msgspec

from carpool.core.request import WEIGHTS
from carpool.errors import BadInput, CarpoolError, Overloaded, TimedOut
from carpool.wire.base import Ask, EncodedJson, Reply, Route, decode_json, error_headers, json_reply

_INPUT, _OUTPUT = "text", "embedding"
_DEEPEST = 8  # dimensions of a tensor
_EXPECTED = '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a text"]}]}'
_SHARES = {1: WEIGHTS["high"], 2: WEIGHTS["normal"]}  # by Triton's `priority`, of which 1 is the highest


class _Parameters(msgspec.Struct):
    priority: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: the usual one
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0  # microseconds; 0: none


class _Input(msgspec.Struct):
    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    datatype: str
    data: list[Any]


class _Output(msgspec.Struct):
    name: str


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


_BODY = msgspec.json.Decoder(_Body)


def infer(model: str, version: str = "") -> Route:
    """The route of a model by its name, and of one version of it where that is in the path."""
    return Route(
        path=f"/v2/models/{model}{version}/infer",
        payload="data",
        decode=partial(_decode, model),
        encode=partial(_encode, model, None),
        encode_error=encode_error,
        statuses=(400, 413, 415, 500, 502, 503),
        summary="Texts in, vectors out, as KServe's V2 protocol has it.",
        request_schema=_REQUEST_SCHEMA,
        response_schema=_RESPONSE_SCHEMA,
        error_schema=ERROR_SCHEMA,
    )


def _decode(model: str, body: bytes) -> Ask:
    asked = decode_json(_BODY, body, _EXPECTED)
    if len(asked.inputs) != 1:
        raise BadInput(f"expected 1 input, got {len(asked.inputs)}", f"expected {_EXPECTED}")
    for output in asked.outputs or ():
        if output.name != _OUTPUT:
            raise BadInput(f"unexpected inference output '{output.name}'", f"allowed: {_OUTPUT}")
    items = tuple([msgspec.json.encode(text) for text in _texts(asked.inputs[0])])
    given = asked.parameters or _Parameters()
    return Ask(
        items,
        encode=partial(_encode, model, asked.id),
        weight=_SHARES.get(given.priority, WEIGHTS["low"]) if given.priority else None,
        timeout=given.timeout / 1e6 if given.timeout else None,
    )


def _texts(tensor: _Input) -> list[str]:
    if tensor.datatype != "BYTES":
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype}", "this model takes texts: BYTES")
    texts = _flat(tensor)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise BadInput(
            f"input '{tensor.name}' is no list of texts", "expected at least one, none of them empty"
        )
    if prod(tensor.shape) != len(texts):
        raise BadInput(f"input '{tensor.name}' has {len(texts)} elements", f"expected the shape {tensor.shape}")
    return texts


def _flat(tensor: _Input) -> list[Any]:
    """Row by row; it may be nested as deep as its shape is long."""
    data = tensor.data
    for _ in tensor.shape[1:_DEEPEST]:
        data = [one for row in data for one in (row if isinstance(row, list) else (row,))]
    return data


def _encode(
    model: str, number: str | None, results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    """All the rows in one flat array: each vector without its brackets."""
    rows = [bytes(result)[1:-1] for result in results]
    head = {"model_name": model, "model_version": "1"} | ({} if number is None else {"id": number})
    shape = b"%d,%d" % (len(rows), rows[0].count(b",") + 1)
    output = b',"outputs":[{"name":"embedding","datatype":"FP32","shape":[' + shape + b'],"data":['
    return (msgspec.json.encode(head)[:-1], output, b",".join(rows), b"]}]}")


def encode_server(version: str) -> Reply:
    """The reply to `GET /v2`."""
    return json_reply({"name": "carpool", "version": version, "extensions": []})


def encode_health(trouble: str | None, name: str) -> Reply:
    """The reply to the health routes; `name` says which of them. Not ready is 400, as it is with Triton."""
    return json_reply({name: trouble is None}, 200 if trouble is None else 400)


def encode_model_ready(model: str, trouble: str | None) -> Reply:
    """The reply to `GET /v2/models/M/ready`."""
    return json_reply({"name": model, "ready": trouble is None}, 200 if trouble is None else 400)


def encode_model(model: str, dimensions: int) -> Reply:
    """The reply to `GET /v2/models/M`; -1 is any number."""
    return json_reply(
        {
            "name": model,
            "versions": ["1"],
            "platform": "carpool",
            "inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": _OUTPUT, "datatype": "FP32", "shape": [-1, dimensions]}],
        }
    )


def encode_error(error: CarpoolError) -> Reply:
    """`{"error": "..."}`; a full queue and an expired request are 503, as with Triton."""
    status = 503 if isinstance(error, Overloaded | TimedOut) else error.status
    return json_reply({"error": str(error)}, status, error_headers(error))


ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


def _tensors(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "shape", "datatype", "data"],
            "properties": {
                "name": {"type": "string", "example": name},
                "shape": {"type": "array", "items": {"type": "integer"}, "example": shape},
                "datatype": {"type": "string", "example": datatype},
                "data": {"type": "array", "example": data},
            },
        },
    }


_REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "priority": {"type": "integer", "minimum": 0},
                "timeout": {"type": "integer", "minimum": 0, "description": "microseconds"},
            },
        },
        "inputs": _tensors(_INPUT, "BYTES", [1], ["What is vector search?"]),
    },
}
_RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": _tensors(_OUTPUT, "FP32", [1, 3], [0.0183, -0.0412, 0.0077]),
    },
}
