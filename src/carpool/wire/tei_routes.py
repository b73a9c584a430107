"""The dialect of Text Embeddings Inference, from its server's side: its routes, its errors, its shapes.

Where TEI's versions differ this is 1.9: `Validation` is 422, texts that are too long are cut. Unlike TEI it
takes any number of inputs at once: they are spread over as many batches as they need.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from carpool.errors import (
    BackendError,
    BadInput,
    CarpoolError,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
    Unsupported,
    WrongType,
)
from carpool.wire.base import Ask, Encode, EncodedJson, Reply, Route, Times, error_headers, json_reply
from carpool.wire.call import Call, Operation
from carpool.wire.counting import count_tokens
from carpool.wire.inputs import (
    IDS_SCHEMA,
    TEXT_SCHEMA,
    TokenId,
    array,
    elements,
    is_blank,
    is_mixed,
    items_of,
    ranked,
    some,
)

PLAIN = "text/plain; charset=utf-8"  # what axum answers before TEI has seen the body

Direction = Literal["Left", "Right", "left", "right"]


_COMPUTE = "carpool"  # as `x-compute-type`: what computes is the model's or the upstream's affair


class _NotJson(BadInput):
    """The body cannot be parsed: axum's 400."""


class _WrongShape(BadInput):
    """The body is JSON of another shape: axum's 422."""


class _Empty(BadInput):
    """An input is empty: TEI's 400."""


class _Sequence(msgspec.Struct):
    """What the routes that take `inputs` have in common."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None


class _Embed(_Sequence, kw_only=True):
    inputs: str | list[str | list[TokenId] | TokenId]
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Embeds(_Sequence, kw_only=True):
    inputs: str | list[str | list[TokenId] | TokenId]
    prompt_name: str | None = None


class _Predict(_Sequence, kw_only=True):
    inputs: str | list[str | list[str]]
    raw_scores: bool | None = None


class _Rerank(_Sequence, kw_only=True):
    query: str
    texts: list[str]
    raw_scores: bool | None = None
    return_text: bool = False


class _Sentences(msgspec.Struct):
    source_sentence: str
    sentences: list[str]


class _Parameters(_Sequence, kw_only=True):
    prompt_name: str | None = None


class _Similarity(msgspec.Struct):
    inputs: _Sentences
    parameters: _Parameters | None = None


class _Tokenize(msgspec.Struct):
    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class _Decode(msgspec.Struct):
    ids: list[TokenId | list[TokenId]]
    skip_special_tokens: bool = True


class _WrittenInputs(msgspec.Struct):
    inputs: msgspec.Raw


class _WrittenTexts(msgspec.Struct):
    texts: msgspec.Raw


class _WrittenSentences(msgspec.Struct):
    sentences: msgspec.Raw


class _WrittenSimilarity(msgspec.Struct):
    inputs: _WrittenSentences


class _WrittenIds(msgspec.Struct):
    ids: msgspec.Raw


_INPUTS = msgspec.json.Decoder(_WrittenInputs)
_TEXTS = msgspec.json.Decoder(_WrittenTexts)
_SENTENCES = msgspec.json.Decoder(_WrittenSimilarity)
_IDS = msgspec.json.Decoder(_WrittenIds)
_JSON = msgspec.json.Decoder()
_encode_json = msgspec.json.Encoder().encode


def _wrong_shape(what: str) -> _WrongShape:
    return _WrongShape(f"Failed to deserialize the JSON body into the target type: {what}")


def _empty(field: str) -> _Empty:
    return _Empty(f"Input validation error: `{field}` cannot be empty")


def _read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _NotJson(f"Failed to parse the request body as JSON: {error}") from None


def _group(operation: Operation, asked: Any, names: Sequence[str], **more: str) -> Call | None:
    """The call with the parameters that were given; `None`, as everywhere, for embeddings without any."""
    given: dict[str, Any] = {name: getattr(asked, name) for name in ("truncate", *names)}
    direction = asked.truncation_direction
    if operation == "embed" and direction is None and {*given.values()} == {None}:
        return None
    given["truncation_direction"] = direction.capitalize() if direction else None
    return Call.of(operation, **given, **more)


def _ask_inputs(
    decoder: msgspec.json.Decoder[Any], operation: Operation, names: Sequence[str], body: bytes
) -> Ask:
    asked = _read(decoder, body)
    inputs = asked.inputs
    if is_mixed(inputs):
        raise _wrong_shape("`inputs` has bare token ids")
    if is_blank(inputs):
        raise _empty("inputs")
    return Ask(items_of(inputs, bytes(_INPUTS.decode(body).inputs)), _group(operation, asked, names))


def _ask_predict(decoder: msgspec.json.Decoder[Any], body: bytes) -> Ask:
    """A text, or a pair of texts; a batch is a list of lists of one or two."""
    asked = _read(decoder, body)
    inputs = asked.inputs
    is_one = isinstance(inputs, str) or any(isinstance(one, str) for one in inputs)
    batch = [[inputs] if isinstance(inputs, str) else inputs] if is_one else inputs
    if not all(1 <= len(one) <= 2 and all(isinstance(text, str) for text in one) for one in batch):
        raise _wrong_shape(
            "`inputs` must be a string, a pair of strings or a batch [[string], [string, string]]"
        )
    if is_blank(inputs) or any("" in one for one in batch):
        raise _empty("inputs")
    written = bytes(_INPUTS.decode(body).inputs)
    items = (written,) if is_one else elements(written)
    return Ask(items, _group("predict", asked, ("raw_scores",)), _encode_one if is_one else None)


def _ask_rerank(decoder: msgspec.json.Decoder[Any], body: bytes) -> Ask:
    asked = _read(decoder, body)
    if not asked.query or is_blank(asked.texts):
        raise _empty("inputs")
    texts = elements(bytes(_TEXTS.decode(body).texts))
    encode = partial(_encode_ranks, texts if asked.return_text else ())
    return Ask(texts, _group("rerank", asked, ("raw_scores", "query")), encode)


def _ask_similarity(decoder: msgspec.json.Decoder[Any], body: bytes) -> Ask:
    asked = _read(decoder, body)
    source = asked.inputs.source_sentence
    if not source or is_blank(asked.inputs.sentences):
        raise _empty("inputs")
    parameters = asked.parameters or _Parameters()
    call = _group("similarity", parameters, ("prompt_name",), source_sentence=source)
    return Ask(elements(bytes(_SENTENCES.decode(body).inputs.sentences)), call)


def _ask_tokenize(decoder: msgspec.json.Decoder[Any], body: bytes) -> Ask:
    asked = _read(decoder, body)
    if is_blank(asked.inputs):
        raise _empty("inputs")
    call = Call.of("tokenize", add_special_tokens=asked.add_special_tokens, prompt_name=asked.prompt_name)
    return Ask(items_of(asked.inputs, bytes(_INPUTS.decode(body).inputs)), call)


def _ask_decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Ask:
    asked = _read(decoder, body)
    if is_mixed(asked.ids):
        raise _wrong_shape("`ids` has bare token ids")
    if is_blank(asked.ids):
        raise _empty("ids")
    call = Call.of("decode", skip_special_tokens=asked.skip_special_tokens)
    return Ask(items_of(asked.ids, bytes(_IDS.decode(body).ids)), call)


def _encode_all(results: Sequence[EncodedJson], seconds: float) -> Sequence[EncodedJson]:
    return array(results)


def _encode_one(results: Sequence[EncodedJson], seconds: float) -> Sequence[EncodedJson]:
    return results


def _ask_and_tell(decode: Callable[[bytes], Ask], body: bytes) -> Ask:
    """What a body asks for, to be answered with the headers that tell what it took."""
    ask = decode(body)
    return Ask(ask.items, ask.group, ask.encode, answer=partial(_answer, ask, ask.encode or _encode_all))


def _answer(ask: Ask, encode: Encode, results: Sequence[EncodedJson], times: Times) -> Reply:
    """In milliseconds; tokenization is a part of the inference, or the upstream's."""
    questions = _questions(ask.group)
    asked = (*ask.items, *questions)
    total, queued = round(times.total * 1000), round(times.queued * 1000)
    took = str(total)
    headers = (
        ("x-compute-type", _COMPUTE),
        ("x-compute-time", took),
        ("x-compute-characters", str(sum([_characters(_JSON.decode(item)) for item in asked]))),
        ("x-compute-tokens", str(count_tokens(asked, (*results, *questions)))),
        ("x-total-time", took),
        ("x-tokenization-time", "0"),
        ("x-queue-time", str(queued)),
        ("x-inference-time", str(max(0, total - queued))),
    )
    return Reply(200, encode(results, times.total), headers)


def _questions(call: Hashable) -> Sequence[bytes]:
    """What is run beside the items: a rerank's query, the source of a similarity."""
    if not isinstance(call, Call):
        return ()
    return [_encode_json(value) for name, value in call.parameters if name in ("query", "source_sentence")]


def _characters(item: Any) -> int:
    """Those of a text or a pair of texts; a token id counts as one."""
    if isinstance(item, list):
        return sum(map(_characters, item))
    return len(item) if isinstance(item, str) else 1


def _encode_ranks(
    texts: Sequence[bytes], results: Sequence[EncodedJson], seconds: float
) -> Sequence[EncodedJson]:
    """Best first; `index` is the place among the caller's own texts, not in the batch."""
    encode = msgspec.json.encode
    return array(
        [
            b'{"index":%d,%s"score":%s}'
            % (place, b'"text":%s,' % texts[place] if texts else b"", encode(score))
            for place, score in ranked(results)
        ]
    )


def encode_health(trouble: str | None) -> Reply:
    """The reply to `GET /` and `GET /ping`: 200 or 503, without a body."""
    return Reply(200 if trouble is None else 503, (), content_type=PLAIN)


def encode_info(
    model: str,
    max_tokens: int,
    max_batch_size: int,
    max_batch_tokens: float | None,
    max_queue_size: int | None,
    version: str,
) -> Reply:
    """The reply to `GET /info`.

    As `max_client_batch_size` it says what fills a batch, for clients that cut their inputs by it: more are
    taken all the same.
    """
    return json_reply(
        {
            "model_id": model,
            "model_sha": None,
            "model_dtype": "float32",
            "served_model_name": model,
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": max_queue_size or 2**31 - 1,
            "max_input_length": max_tokens,
            "max_batch_tokens": int(max_batch_tokens or max_tokens * max_batch_size),
            "max_batch_requests": max_batch_size,
            "max_client_batch_size": max_batch_size,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": version,
            "sha": None,
            "docker_label": None,
        },
    )


def encode_error(error: CarpoolError) -> Reply:
    """`{"error", "error_type"}`, or plain text where TEI's framework answers in its place."""
    message, headers = error.message, error_headers(error)
    match error:
        case _NotJson():
            return Reply(400, (message.encode(),), headers, PLAIN)
        case _WrongShape():
            return Reply(422, (message.encode(),), headers, PLAIN)
        case TooLarge():
            return Reply(413, (b"Failed to buffer the request body: length limit exceeded",), headers, PLAIN)
        case WrongType():
            return Reply(415, (b"Expected request with `Content-Type: application/json`",), headers, PLAIN)
        case _Empty():
            status, kind = 400, "Empty"
        case Unsupported():
            status, kind, message = 424, "Backend", str(error)
        case BadInput():
            status, kind = 422, "Validation"
            message = f"Input validation error: {message.removeprefix('Input validation error: ')}"
        case Overloaded() | TimedOut():
            status, kind, message = 429, "Overloaded", "Model is overloaded"
            headers = headers or (("retry-after", "1"),)
        case Unavailable():
            status, kind, message = 503, "Unhealthy", str(error)
        case BackendError():
            status, kind, message = 424, "Backend", str(error)
        case _:
            status, kind, message = error.status, "Backend", str(error)
    return json_reply({"error": message, "error_type": kind}, status, headers)


_STATUSES = (400, 401, 403, 413, 415, 422, 424, 429, 500, 503)
_PLAIN_STATUSES = (400, 413, 415, 422)
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {
        "error": {"type": "string", "example": "Input validation error: `inputs` cannot be empty"},
        "error_type": {
            "type": "string",
            "enum": ["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"],
        },
    },
}
_INPUTS_SCHEMA = {
    "description": "a text, its token ids, or a list of either",
    "anyOf": [TEXT_SCHEMA, IDS_SCHEMA, some({"anyOf": [TEXT_SCHEMA, IDS_SCHEMA]})],
    "example": ["What is vector search?", "What is a batch?"],
}
_TEXTS_SCHEMA = some(TEXT_SCHEMA)
_ONE_OR_TWO_SCHEMA = _TEXTS_SCHEMA | {"maxItems": 2}
_PAIR_SCHEMA = _ONE_OR_TWO_SCHEMA | {"minItems": 2}
_VECTOR = {"type": "array", "items": {"type": "number"}, "example": [0.0183, -0.0412, 0.0077]}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "example": [0.91, 0.13]}
_OPTIONS: dict[str, Any] = {
    "truncate": {"type": "boolean"},
    "truncation_direction": {"type": "string", "enum": ["Left", "Right"]},
}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _route(
    path: str,
    summary: str,
    decode: Callable[[bytes], Ask],
    request_schema: dict[str, Any],
    response_schema: dict[str, Any],
    tells: bool = True,
) -> Route:
    """A route, which `tells` in headers what its answer took."""
    return Route(
        path=path,
        payload="text",
        decode=partial(_ask_and_tell, decode) if tells else decode,
        encode=_encode_all,
        encode_error=encode_error,
        statuses=_STATUSES,
        plain=_PLAIN_STATUSES,
        summary=summary,
        request_schema=request_schema,
        response_schema=response_schema,
        error_schema=_ERROR_SCHEMA,
    )


_EMBED_SCHEMA = _object(("inputs",), inputs=_INPUTS_SCHEMA, **_OPTIONS, prompt_name={"type": "string"})
_EMBED = msgspec.json.Decoder(_Embed)
_EMBEDS = msgspec.json.Decoder(_Embeds)
_TOKENS = _object(
    ("id", "text", "special"),
    id={"type": "integer", "example": 7592},
    text={"type": "string", "example": "hello"},
    special={"type": "boolean"},
    start={"type": ["integer", "null"]},
    stop={"type": ["integer", "null"]},
)
_SPARSE = _object(("index", "value"), index={"type": "integer", "example": 7}, value={"type": "number"})
_LABEL = _object(("score", "label"), score={"type": "number", "example": 0.98}, label={"type": "string"})
_RANKED = _object(
    ("index", "score"),
    index={"type": "integer"},
    text={"type": "string"},
    score={"type": "number", "example": 0.9},
)

EMBED = _route(
    "/embed",
    "Texts in, vectors out, as Text Embeddings Inference has it.",
    partial(_ask_inputs, _EMBED, "embed", ("prompt_name", "normalize", "dimensions")),
    _object(
        ("inputs",),
        inputs=_INPUTS_SCHEMA,
        **_OPTIONS,
        prompt_name={"type": "string"},
        normalize={"type": "boolean"},
        dimensions={"type": "integer", "minimum": 1},
    ),
    _array(_VECTOR),
)
EMBED_ALL = _route(
    "/embed_all",
    "Texts in, a vector for each of their tokens out.",
    partial(_ask_inputs, _EMBEDS, "embed_all", ("prompt_name",)),
    _EMBED_SCHEMA,
    _array(_array(_VECTOR)),
)
EMBED_SPARSE = _route(
    "/embed_sparse",
    "Texts in, sparse vectors out, where the model has them.",
    partial(_ask_inputs, _EMBEDS, "embed_sparse", ("prompt_name",)),
    _EMBED_SCHEMA,
    _array(_array(_SPARSE)),
)
PREDICT = _route(
    "/predict",
    "A text, a pair of texts or a batch of such in, labels with their scores out.",
    partial(_ask_predict, msgspec.json.Decoder(_Predict)),
    _object(
        ("inputs",),
        inputs={
            "description": "a text, a pair, or a list of [text] and pairs",
            "anyOf": [TEXT_SCHEMA, _PAIR_SCHEMA, some(_ONE_OR_TWO_SCHEMA)],
            "example": "I like this.",
        },
        **_OPTIONS,
        raw_scores={"type": "boolean"},
    ),
    {"anyOf": [_array(_LABEL), _array(_array(_LABEL))]},
)
RERANK = _route(
    "/rerank",
    "Texts in the order of how well they answer a query.",
    partial(_ask_rerank, msgspec.json.Decoder(_Rerank)),
    _object(
        ("query", "texts"),
        query={"type": "string", "minLength": 1, "example": "What is vector search?"},
        texts=_TEXTS_SCHEMA | {"example": ["Finding near vectors.", "A fruit."]},
        **_OPTIONS,
        raw_scores={"type": "boolean"},
        return_text={"type": "boolean"},
    ),
    _array(_RANKED),
)
SIMILARITY = _route(
    "/similarity",
    "How similar sentences are to one.",
    partial(_ask_similarity, msgspec.json.Decoder(_Similarity)),
    _object(
        ("inputs",),
        inputs=_object(
            ("source_sentence", "sentences"),
            source_sentence={"type": "string", "minLength": 1, "example": "What is vector search?"},
            sentences=_TEXTS_SCHEMA | {"example": ["Near vectors.", "A fruit."]},
        ),
        parameters=_object((), **_OPTIONS, prompt_name={"type": "string"}),
    ),
    _NUMBERS,
)
TOKENIZE = _route(
    "/tokenize",
    "The tokens of texts.",
    partial(_ask_tokenize, msgspec.json.Decoder(_Tokenize)),
    _object(
        ("inputs",),
        inputs={
            "description": "a text or a list of texts",
            "anyOf": [TEXT_SCHEMA, _TEXTS_SCHEMA],
            "example": "What is vector search?",
        },
        add_special_tokens={"type": "boolean", "default": True},
    ),
    _array(_array(_TOKENS)),
    tells=False,
)
DECODE = _route(
    "/decode",
    "The texts of token ids.",
    partial(_ask_decode, msgspec.json.Decoder(_Decode)),
    _object(
        ("ids",),
        ids={
            "description": "token ids or a list of such",
            "anyOf": [IDS_SCHEMA, some(IDS_SCHEMA)],
            "example": [101, 7592, 102],
        },
        skip_special_tokens={"type": "boolean", "default": True},
    ),
    _array({"type": "string", "example": "hello"}),
    tells=False,
)
