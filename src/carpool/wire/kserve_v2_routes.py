"""The dialect of KServe V2, from its server's side: a tensor in, a tensor of FP32 out, in JSON or binary.

Texts (BYTES) become vectors. A model that takes any data takes tensors of numbers as well: `n` inputs where the
shape is [n, ...], batched like those of `/predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec.structs import replace as replace_fields

from carpool.core.request import WEIGHTS
from carpool.errors import BadInput, CarpoolError, Overloaded, TimedOut
from carpool.wire import kserve_v2_binary as binary
from carpool.wire import kserve_v2_tensors as tensors
from carpool.wire.base import Ask, EncodedJson, Reply, Route, Times, decode_json, error_headers, json_reply
from carpool.wire.call import INFER
from carpool.wire.terms import LONGEST_TIMEOUT

_BYTES = "BYTES"
_DEEPEST = 8  # dimensions of a tensor
_EXPECTED = '{"inputs": [{"name": NAME, "shape": [n, ...], "datatype": TYPE, "data": [...]}]}'
_NUMERIC = list(dict.fromkeys(["FP32", *tensors.TYPES]))  # the usual one first
_NOTHING = (b"", b"null")
# So many heads of bodies are known by their bytes, and of answers by what they tell, as clients repeat them.
_MOST_AGAIN = 1024
_LONGEST_AGAIN = 1024  # bytes
_SHARES = {1: WEIGHTS["high"], 2: WEIGHTS["normal"]}  # by Triton's `priority`, of which 1 is the highest


_LOWEST_PRIORITY = 2**32 - 1  # as Triton has it
_LONGEST_TIMEOUT = LONGEST_TIMEOUT * 1000  # microseconds, as by the header


class _Parameters(msgspec.Struct):
    priority: Annotated[int, msgspec.Meta(ge=0, le=_LOWEST_PRIORITY)] = 0  # 0: the usual one
    timeout: Annotated[int, msgspec.Meta(ge=0, le=_LONGEST_TIMEOUT)] = 0  # microseconds; 0: none
    binary_data_output: bool = False


_USUAL = _Parameters()


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=_DEEPEST)]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
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
_LIST = msgspec.json.Decoder(list[Any])


# Rows of numbers, and the shape that each has.
_Rows = tuple[Sequence[EncodedJson], tuple[int, ...]]


class _Form(NamedTuple):
    """What goes in and what comes out: their names, and how results become rows of numbers of one shape.

    `cut` leaves them in JSON, with commas between; `pack` makes FP32 of them.
    """

    input: str
    output: str
    cut: Callable[[Sequence[EncodedJson]], _Rows]
    pack: Callable[[Sequence[EncodedJson]], _Rows]


def _cut_vectors(results: Sequence[EncodedJson]) -> _Rows:
    """Each without its brackets; they are known to be lists of numbers."""
    rows = [result[1:-1] for result in results]
    return rows, (bytes(rows[0]).count(b",") + 1,)


def _pack_vectors(results: Sequence[EncodedJson]) -> _Rows:
    rows = binary.pack_rows(results)
    return rows, (len(rows[0]) // binary.FLOAT_BYTES,)


def _pack_tensors(results: Sequence[EncodedJson]) -> _Rows:
    rows, shape = tensors.cut(results)
    return binary.pack_rows([b"[%b]" % row for row in rows]), shape


_TEXTS = _Form("text", "embedding", _cut_vectors, _pack_vectors)
_NUMBERS = _Form("input", "output", tensors.cut, _pack_tensors)


def infer(model: str, version: str = "", takes_numbers: bool = False) -> Route:
    """The route of a model by its name, and of one version of it where that is in the path."""
    usual = Route(
        path=f"/v2/models/{model}{version}/infer",
        payload="data",
        decode=partial(_decode, model, takes_numbers),
        encode=partial(_encode, model, None, _TEXTS),
        encode_error=encode_error,
        statuses=(400, 401, 403, 413, 415, 500, 502, 503),
        summary="Texts in, vectors out, as KServe's V2 protocol has it.",
        request_schema=_request_schema(_TEXTS, [_BYTES], ["What is vector search?"], {"type": "string"}),
        response_schema=_response_schema(_TEXTS),
        error_schema=ERROR_SCHEMA,
        by_head=partial(_by_head, model, takes_numbers),
    )
    if not takes_numbers:
        return usual
    return replace(
        usual,
        summary="A tensor in, a tensor out, as KServe's V2 protocol has it: n inputs of shape [n, ...].",
        request_schema=_request_schema(_NUMBERS, _NUMERIC, [0.5, 1.5], {}),
        response_schema=_response_schema(_NUMBERS),
    )


def _by_head(model: str, takes_numbers: bool, route: Route, headers: Mapping[str, str]) -> Route:
    """A body that has tensors behind its JSON says in its head where they begin."""
    header = headers.get(binary.HEADER)
    if header is None:
        return route
    decode = partial(_decode_binary, model, takes_numbers, binary.read_length(header))
    return replace(route, decode=decode, media_types=(binary.MEDIA_TYPE,))


def _decode(model: str, takes_numbers: bool, body: bytes) -> Ask:
    return _read(_understand(model, takes_numbers, body), b"")


def _decode_binary(model: str, takes_numbers: bool, length: int, body: bytes) -> Ask:
    """Without any JSON the whole body is one text, and the vector comes back in binary as well."""
    if not length:
        text = msgspec.json.encode(binary.read_text(body))
        return Ask((text,), answer=partial(_answer_binary, model, None, _TEXTS))
    written, behind = binary.split(body, length)
    understand = _understand_again if length <= _LONGEST_AGAIN else _understand
    return _read(understand(model, takes_numbers, written), behind)


class _Question(NamedTuple):
    """What a body asks for: `ask` has no items yet, `read` finds them.

    They are in the `size` bytes behind the JSON, or in it, where there is none: `behind` is what they are in.
    """

    tensor: _Input
    size: int | None
    read: Callable[[_Input, bytes | None], tuple[bytes, ...]]
    ask: Ask


def _read(question: _Question, behind: bytes) -> Ask:
    """The question with its items."""
    size = question.size
    if (size or 0) != len(behind):
        raise BadInput(
            f"{len(behind)} bytes follow the JSON", f"expected the binary_data_size of the input: {size or 0}"
        )
    items = question.read(question.tensor, None if size is None else behind)
    return replace_fields(question.ask, items=items)


def _understand(model: str, takes_numbers: bool, written: bytes) -> _Question:
    """What a body's JSON asks for."""
    asked = decode_json(_BODY, written, _EXPECTED)
    if len(asked.inputs) != 1:
        raise BadInput(f"expected 1 input, got {len(asked.inputs)}", f"expected {_EXPECTED}")
    tensor = asked.inputs[0]
    is_numbers = takes_numbers and tensor.datatype != _BYTES
    form, read = (_NUMBERS, _numbers) if is_numbers else (_TEXTS, _texts)
    given = asked.parameters or _USUAL
    is_binary = _wants_binary(asked.outputs, given.binary_data_output, form)
    ask = Ask(
        (),
        group=INFER if is_numbers else None,
        encode=partial(_encode, model, asked.id, form),
        answer=partial(_answer_binary, model, asked.id, form) if is_binary else None,
        weight=_SHARES.get(given.priority, WEIGHTS["low"]) if given.priority else None,
        timeout=given.timeout / 1e6 if given.timeout else None,
    )
    return _Question(tensor, _size_behind(tensor), read, ask)


# The JSON in front of binary tensors is the same for every text of one length.
_understand_again = lru_cache(_MOST_AGAIN)(_understand)


def _wants_binary(outputs: Sequence[_Output] | None, is_usual: bool, form: _Form) -> bool:
    for output in outputs or ():
        if output.name != form.output:
            raise BadInput(f"unexpected inference output '{output.name}'", f"allowed: {form.output}")
        if output.parameters is not None and output.parameters.binary_data is not None:
            is_usual = output.parameters.binary_data
    return is_usual


def _size_behind(tensor: _Input) -> int | None:
    """How many of the bytes behind the JSON are this tensor, as its `binary_data_size` says."""
    size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
    has_data = bytes(tensor.data) not in _NOTHING
    if size is not None and has_data:
        raise BadInput(f"input '{tensor.name}' has both data and binary_data_size", "allowed: one of them")
    if size is None and not has_data:
        raise BadInput(f"input '{tensor.name}' has no data", f"expected {_EXPECTED}")
    return size


def _texts(tensor: _Input, behind: bytes | None) -> tuple[bytes, ...]:
    """Each text, as JSON."""
    if tensor.datatype != _BYTES:
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype}", "this model takes texts: BYTES")
    texts = _flat_texts(tensor) if behind is None else binary.unpack_texts(behind)
    if prod(tensor.shape) != len(texts) or not texts:
        raise BadInput(
            f"input '{tensor.name}' has {len(texts)} texts",
            f"expected one at least, and the shape {tensor.shape}",
        )
    return tuple([msgspec.json.encode(text) for text in texts])


def _numbers(tensor: _Input, behind: bytes | None) -> tuple[bytes, ...]:
    """Each row, as bytes that say how to read them."""
    written = bytes(tensor.data) if behind is None else behind
    return tensors.rows(written, behind is not None, tensor.datatype, tensor.shape)


def _flat_texts(tensor: _Input) -> list[Any]:
    """Row by row; they may be nested as deep as the shape is long."""
    data = decode_json(_LIST, bytes(tensor.data), _EXPECTED)
    for _ in tensor.shape[1:]:
        data = [one for row in data for one in (row if isinstance(row, list) else (row,))]
    if not all([isinstance(text, str) and text for text in data]):  # noqa: C419 - in half the time
        raise BadInput(f"input '{tensor.name}' is no list of texts", "expected strings, none of them empty")
    return data


def _encode(
    model: str, number: str | None, form: _Form, results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    """All the rows in one flat array."""
    rows, shape = form.cut(results)
    pieces: list[EncodedJson] = [_encode_head(model, number, form, (len(rows), *shape)), b',"data":[']
    for row in rows:
        pieces += (row, b",")
    pieces[-1] = b"]}]}"
    return pieces


def _answer_binary(
    model: str, number: str | None, form: _Form, results: Sequence[EncodedJson], times: Times
) -> Reply:
    """The rows as float32 behind the JSON."""
    rows, shape = form.pack(results)
    encode = _encode_in_front_again if number is None else _encode_in_front
    head, headers = encode(model, number, form, (len(rows), *shape))
    return Reply(200, (head, *rows), headers, binary.MEDIA_TYPE)


def _encode_in_front(
    model: str, number: str | None, form: _Form, shape: tuple[int, ...]
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """The JSON in front of float32 of this shape, and the header that says how long it is."""
    size = b',"parameters":{"binary_data_size":%d}}]}' % (prod(shape) * binary.FLOAT_BYTES)
    head = _encode_head(model, number, form, shape) + size
    return head, ((binary.HEADER, str(len(head))),)


_encode_in_front_again = lru_cache(_MOST_AGAIN)(_encode_in_front)


def _encode_head(model: str, number: str | None, form: _Form, shape: tuple[int, ...]) -> bytes:
    """All that is in front of the output's data, or of where they are."""
    before, after = _encode_around(model, form, shape)
    return before + after if number is None else b'%b,"id":%b%b' % (before, msgspec.json.encode(number), after)


@lru_cache(_MOST_AGAIN)
def _encode_around(model: str, form: _Form, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What is in front of the `id` that the caller gave, and what is behind it."""
    encode = msgspec.json.encode
    before = b'{"model_name":%b,"model_version":"1"' % encode(model)
    after = b',"outputs":[{"name":%b,"datatype":"FP32","shape":%b' % (encode(form.output), encode(shape))
    return before, after


def encode_server(version: str) -> Reply:
    """The reply to `GET /v2`."""
    return json_reply({"name": "carpool", "version": version, "extensions": ["binary_tensor_data"]})


def encode_health(trouble: str | None, name: str) -> Reply:
    """The reply to the health routes; `name` says which of them. Not ready is 400, as it is with Triton."""
    return json_reply({name: trouble is None}, 200 if trouble is None else 400)


def encode_model_ready(model: str, trouble: str | None) -> Reply:
    """The reply to `GET /v2/models/M/ready`."""
    return json_reply({"name": model, "ready": trouble is None}, 200 if trouble is None else 400)


def encode_model(model: str, takes_numbers: bool, told: Mapping[str, Any]) -> Reply:
    """The reply to `GET /v2/models/M`; -1 is any number. `told` is what the model says of itself."""
    form, datatype, sizes, made = _TEXTS, _BYTES, [], [told.get("dimensions", -1)]
    if takes_numbers and (told.get("input_dtype") or "embed" not in told.get("can", ())):
        form, datatype, made = _NUMBERS, tensors.datatype_of(told.get("input_dtype") or "float32"), []
        sizes = [-1 if size is None else size for size in told.get("input_shape") or ()]
    return json_reply(
        {
            "name": model,
            "versions": ["1"],
            "platform": "carpool",
            "inputs": [{"name": form.input, "datatype": datatype, "shape": [-1, *sizes]}],
            "outputs": [{"name": form.output, "datatype": "FP32", "shape": [-1, *made]}],
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
    name: str, datatypes: Sequence[str], shape: list[int], data: list[Any], element: dict[str, Any]
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
                "datatype": {"enum": datatypes, "example": datatypes[0]},
                "data": {"type": "array", "minItems": 1, "items": element, "example": data},
            },
        },
    }


def _request_schema(
    form: _Form, datatypes: Sequence[str], example: list[Any], element: dict[str, Any]
) -> dict[str, Any]:
    shape = [1] if form is _TEXTS else [1, len(example)]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "priority": {"type": "integer", "minimum": 0, "maximum": _LOWEST_PRIORITY},
                    "timeout": {
                        "type": "integer",
                        "minimum": 0,
                        "maximum": _LONGEST_TIMEOUT,
                        "description": "microseconds",
                    },
                },
            },
            "inputs": _tensor(form.input, datatypes, shape, example, element),
        },
    }


def _response_schema(form: _Form) -> dict[str, Any]:
    example = [0.0183, -0.0412, 0.0077]
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": _tensor(form.output, ["FP32"], [1, 3], example, {"type": "number"}),
        },
    }
