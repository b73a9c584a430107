"""The dialect of KServe V2, from its server's side: texts (BYTES) in, vectors (FP32) out, in JSON or binary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Annotated, Any

import msgspec

from carpool.core.request import WEIGHTS
from carpool.errors import BadInput, CarpoolError, Overloaded, TimedOut
from carpool.wire import kserve_v2_binary as binary
from carpool.wire.base import Ask, EncodedJson, Reply, Route, Times, decode_json, error_headers, json_reply

_INPUT, _OUTPUT = "text", "embedding"
_DEEPEST = 8  # dimensions of a tensor
_EXPECTED = '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a text"]}]}'
_SHARES = {1: WEIGHTS["high"], 2: WEIGHTS["normal"]}  # by Triton's `priority`, of which 1 is the highest


class _Parameters(msgspec.Struct):
    priority: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: the usual one
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0  # microseconds; 0: none
    binary_data_output: bool = False


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=_DEEPEST)]
    datatype: str
    data: list[Any] | None = None
    parameters: _InputParameters | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


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
        by_head=partial(_by_head, model),
    )


def _by_head(model: str, route: Route, headers: Mapping[str, str]) -> Route:
    """A body that has tensors behind its JSON says in its head where they begin."""
    header = headers.get(binary.HEADER)
    if header is None:
        return route
    decode = partial(_decode_binary, model, binary.read_length(header))
    return replace(route, decode=decode, media_types=(binary.MEDIA_TYPE,))


def _decode(model: str, body: bytes) -> Ask:
    return _ask(model, decode_json(_BODY, body, _EXPECTED), b"")


def _decode_binary(model: str, length: int, body: bytes) -> Ask:
    """Without any JSON the whole body is one text, and the vector comes back in binary as well."""
    if not length:
        text = msgspec.json.encode(binary.read_text(body))
        return Ask((text,), answer=partial(_answer_binary, model, None))
    written, tensors = binary.split(body, length)
    return _ask(model, decode_json(_BODY, written, _EXPECTED), tensors)


def _ask(model: str, asked: _Body, tensors: bytes) -> Ask:
    """What a body asks for, with the bytes of its binary tensors."""
    if len(asked.inputs) != 1:
        raise BadInput(f"expected 1 input, got {len(asked.inputs)}", f"expected {_EXPECTED}")
    given = asked.parameters or _Parameters()
    is_binary = given.binary_data_output
    for output in asked.outputs or ():
        if output.name != _OUTPUT:
            raise BadInput(f"unexpected inference output '{output.name}'", f"allowed: {_OUTPUT}")
        if output.parameters is not None and output.parameters.binary_data is not None:
            is_binary = output.parameters.binary_data
    items = tuple([msgspec.json.encode(text) for text in _texts(asked.inputs[0], tensors)])
    return Ask(
        items,
        encode=partial(_encode, model, asked.id),
        answer=partial(_answer_binary, model, asked.id) if is_binary else None,
        weight=_SHARES.get(given.priority, WEIGHTS["low"]) if given.priority else None,
        timeout=given.timeout / 1e6 if given.timeout else None,
    )


def _texts(tensor: _Input, tensors: bytes) -> list[str]:
    if tensor.datatype != "BYTES":
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype}", "this model takes texts: BYTES")
    texts = _elements(tensor, tensors)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise BadInput(
            f"input '{tensor.name}' is no list of texts", "expected at least one, none of them empty"
        )
    if prod(tensor.shape) != len(texts):
        raise BadInput(f"input '{tensor.name}' has {len(texts)} elements", f"expected the shape {tensor.shape}")
    return texts


def _elements(tensor: _Input, tensors: bytes) -> list[Any]:
    """From behind the JSON, where `binary_data_size` says that they are there; there is no other tensor."""
    size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
    if size is not None and tensor.data is not None:
        raise BadInput(f"input '{tensor.name}' has both data and binary_data_size", "allowed: one of them")
    if (size or 0) != len(tensors):
        raise BadInput(
            f"{len(tensors)} bytes follow the JSON", f"expected the binary_data_size of the input: {size or 0}"
        )
    return _flat(tensor) if size is None else binary.unpack_texts(tensors)


def _flat(tensor: _Input) -> list[Any]:
    """Row by row; it may be nested as deep as its shape is long."""
    data = tensor.data or []
    for _ in tensor.shape[1:]:
        data = [one for row in data for one in (row if isinstance(row, list) else (row,))]
    return data


def _encode(
    model: str, number: str | None, results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    """All the rows in one flat array: each vector without its brackets."""
    rows = [bytes(result)[1:-1] for result in results]
    head = _encode_head(model, number, len(rows), rows[0].count(b",") + 1)
    return (head, b',"data":[', b",".join(rows), b"]}]}")


def _answer_binary(model: str, number: str | None, results: Sequence[EncodedJson], times: Times) -> Reply:
    """The vectors as float32 behind the JSON."""
    rows, width = binary.pack_vectors(results)
    size = b',"parameters":{"binary_data_size":%d}}]}' % sum(map(len, rows))
    head = _encode_head(model, number, len(rows), width) + size
    return Reply(200, (head, *rows), ((binary.HEADER, str(len(head))),), binary.MEDIA_TYPE)


def _encode_head(model: str, number: str | None, rows: int, width: int) -> bytes:
    """All that is in front of the output's data, or of where they are."""
    head = {"model_name": model, "model_version": "1"} | ({} if number is None else {"id": number})
    output = b',"outputs":[{"name":"embedding","datatype":"FP32","shape":[%d,%d]' % (rows, width)
    return msgspec.json.encode(head)[:-1] + output


def encode_server(version: str) -> Reply:
    """The reply to `GET /v2`."""
    return json_reply({"name": "carpool", "version": version, "extensions": ["binary_tensor_data"]})


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


def _tensor(
    name: str, datatype: str, shape: list[int], data: list[Any], element: dict[str, Any]
) -> dict[str, Any]:
    """An array of one tensor."""
    sizes = {"type": "array", "minItems": 1, "maxItems": _DEEPEST, "items": {"type": "integer", "minimum": 1}}
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "shape", "datatype", "data"],
            "properties": {
                "name": {"type": "string", "example": name},
                "shape": sizes | {"example": shape},
                "datatype": {"const": datatype, "example": datatype},
                "data": {"type": "array", "minItems": 1, "items": element, "example": data},
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
        "inputs": _tensor(_INPUT, "BYTES", [1], ["What is vector search?"], {"type": "string"}),
    },
}
_RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": _tensor(_OUTPUT, "FP32", [1, 3], [0.0183, -0.0412, 0.0077], {"type": "number"}),
    },
}
