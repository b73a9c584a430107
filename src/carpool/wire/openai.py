"""The dialect of OpenAI's embeddings API, from its client's side: what the proxy says to an upstream.

POST /v1/embeddings   {"input": [...], "model": "..."}
-> {"data": [{"embedding": [0.1, ...], "index": 0}, ...], "model": "...", "usage": {...}}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from carpool.errors import BackendError
from carpool.wire.base import EncodedJson
from carpool.wire.call import Call
from carpool.wire.counting import CountedBody
from carpool.wire.slices import Body, check_count, decode_reply, in_order, is_flat
from carpool.wire.upstream import Description, Dialect, Exchange, cannot, parameters_of

ABOUT = "/v1/models"  # where it describes itself

_MAIN = "/v1/embeddings"
_AS_EVER = {"normalize": True, "truncate": None}  # it normalizes always; how it truncates is its own affair


def assume(model: str) -> Description:
    """An upstream that has not said which models it has."""
    dialect = Dialect("openai", main=_MAIN, health="/health", exchange=partial(_exchange, model))
    return Description(dialect, model=model)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_MODELS = msgspec.json.Decoder(_Models)


def describe(body: Body, model: str) -> Description:
    """What `GET /v1/models` says: the first model, where none was asked for. Raises `BackendError`."""
    models = decode_reply(_MODELS, body, "a list of models").data
    return assume(model or (models[0].id if models else ""))


def _exchange(model: str, call: Call) -> Exchange:
    if call.operation != "embed":
        raise cannot(call, "openai", ["embed"])
    named = {"model": model} if model else {}
    rest = msgspec.json.encode(named | parameters_of(call, ("dimensions", "model"), _AS_EVER))[1:]
    after = (b"]" if rest == b"}" else b"],") + rest

    def encode(items: Sequence[bytes]) -> bytes:
        return b"".join((b'{"input":[', b",".join(items), after))

    return Exchange(_MAIN, encode, _decode)


class _Place(msgspec.Struct):
    """An element of `data` whose vector has been replaced by its number among the vectors."""

    embedding: int
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None


class _Places(msgspec.Struct):
    data: list[_Place]
    usage: _Usage | None = None


class _Datum(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Data(msgspec.Struct):
    data: list[_Datum]


_PLACES = msgspec.json.Decoder(_Places)
_DATA = msgspec.json.Decoder(_Data)


def _decode(body: Body, count: int) -> list[EncodedJson]:
    """The vectors in the order of their `index`. What a slice is worth is said in `slices.py`."""
    found = _cut(body)
    if found is not None and len(found[0]) == len(found[1].data) == count:
        vectors, places = found[0], found[1].data
        if isinstance(body, CountedBody) and found[1].usage is not None:
            body.tokens = found[1].usage.prompt_tokens or 0
        numbers = [place.embedding for place in places]
        if sorted(numbers) == list(range(count)):
            indices = [place.index for place in places]
            return in_order([vectors[number] for number in numbers], indices, "embeddings")
    data = decode_reply(_DATA, body, "a list of embeddings").data
    embeddings = [memoryview(datum.embedding) for datum in data]
    if not all(bytes(embedding[:1]) == b"[" for embedding in embeddings):
        raise BackendError("the upstream's reply is not a list of embeddings", "expected arrays of numbers")
    check_count(len(embeddings), count)
    return in_order(embeddings, [datum.index for datum in data], "embeddings")


def _cut(body: Body) -> tuple[list[memoryview], _Places] | None:
    """The vectors, and what is around them decoded in full with a number in the place of each."""
    for key in (b'"embedding":', b'"embedding": '):
        view, find = memoryview(body), body.find
        vectors: list[memoryview] = []
        around: list[bytes | memoryview] = []
        done, at = 0, find(b"[")
        while at >= 0:
            if body[at - len(key) : at] == key:
                end = find(b"]", at) + 1
                if not is_flat(body, at, end):
                    return None
                around += (view[done:at], b"%d" % len(vectors))
                vectors.append(view[at:end])
                done = end
            at = find(b"[", at + 1)
        if vectors:
            try:
                return vectors, _PLACES.decode(b"".join((*around, view[done:])))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
    return None
