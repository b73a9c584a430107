"""The dialect of Text Embeddings Inference, from its client's side: what the proxy says to an upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from carpool.core.replica import Capacity
from carpool.wire.base import EncodedJson
from carpool.wire.call import Call, Operation
from carpool.wire.slices import Body, check_count, cut_strictly, cut_vectors, decode_reply, in_order
from carpool.wire.upstream import Description, Dialect, Exchange, cannot, parameters_of

_TRUNCATION = ("truncate", "truncation_direction")
_TEXTS = (*_TRUNCATION, "prompt_name")


class _Route(NamedTuple):
    """An operation as data. `wrap` makes the JSON around the joined items out of the call's parameters."""

    path: str
    takes: tuple[str, ...]
    wrap: Callable[[dict[str, Any]], tuple[bytes, bytes]]
    decode: Callable[[Body, int], list[EncodedJson]]
    join: Callable[[Sequence[bytes]], bytes] = b",".join
    extra: int = 0


def _exchange(call: Call) -> Exchange:
    """How a call is put to TEI, which serves one model: it takes any name for it."""
    route = _ROUTES.get(call.operation)
    if route is None:
        raise cannot(call, "tei", _ROUTES)
    before, after = route.wrap(parameters_of(call, route.takes, {"model": None}))

    def encode(items: Sequence[bytes]) -> bytes:
        return b"".join((before, route.join(items), after))

    return Exchange(route.path, encode, route.decode, route.extra)


def _inputs(parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    return _around("inputs", parameters)


def _texts(parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    return _around("texts", {"query": ""} | parameters)


def _sentences(parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    """`{"inputs": {"source_sentence": ..., "sentences": [...]}, "parameters": {...}}`."""
    source = msgspec.json.encode(parameters.pop("source_sentence", ""))
    before = b'{"inputs":{"source_sentence":' + source + b',"sentences":['
    return before, b']},"parameters":' + msgspec.json.encode(parameters) + b"}"


def _around(field: str, parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    rest = msgspec.json.encode(parameters)[1:]
    return f'{{"{field}":['.encode(), (b"]" if rest == b"}" else b"],") + rest


def _join_pairs(items: Sequence[bytes]) -> bytes:
    """For `/predict`, where a bare list of two texts is one pair: each item in a list of its own."""
    return b",".join([item if item[:1] == b"[" else b"[" + item + b"]" for item in items])


class _Rank(msgspec.Struct):
    index: int


_RANKS = msgspec.json.Decoder(list[_Rank])
_NUMBERS = msgspec.json.Decoder(list[float])


def _decode_ranks(body: Body, count: int) -> list[EncodedJson]:
    """The ranks in the order of the texts; they come sorted by score."""
    ranks = cut_strictly(body, count)
    places = [rank.index for rank in decode_reply(_RANKS, body, "an array of ranks")]
    return in_order(ranks, places, "ranks")


def _decode_numbers(body: Body, count: int) -> list[EncodedJson]:
    check_count(len(decode_reply(_NUMBERS, body, "an array of numbers")), count)
    return cut_strictly(body, count)


def _decode_arrays(body: Body, count: int) -> list[EncodedJson]:
    return cut_strictly(body, count, b"[")


_ROUTES: Mapping[Operation, _Route] = {
    "embed": _Route("/embed", (*_TEXTS, "normalize", "dimensions"), _inputs, cut_vectors),
    "embed_all": _Route("/embed_all", _TEXTS, _inputs, _decode_arrays),
    "embed_sparse": _Route("/embed_sparse", _TEXTS, _inputs, _decode_arrays),
    "predict": _Route("/predict", (*_TRUNCATION, "raw_scores"), _inputs, _decode_arrays, _join_pairs),
    "rerank": _Route("/rerank", (*_TRUNCATION, "raw_scores", "query"), _texts, _decode_ranks),
    "similarity": _Route("/similarity", (*_TEXTS, "source_sentence"), _sentences, _decode_numbers, extra=1),
}

DIALECT = Dialect("tei", main="/embed", health="/health", exchange=_exchange)

ABOUT = "/info"  # where it describes itself


class _Info(msgspec.Struct):
    """What is of use in `GET /info`."""

    model_id: str
    max_client_batch_size: int | None = None
    max_batch_tokens: int | None = None
    max_concurrent_requests: int | None = None


_INFO = msgspec.json.Decoder(_Info)


def describe(body: Body) -> Description:
    """What `GET /info` says. `max_concurrent_requests` counts items since TEI 1.9, and requests before.

    Raises `BackendError` if that is not TEI's.
    """
    info = decode_reply(_INFO, body, "TEI's /info")
    capacity = Capacity(
        batch_size=info.max_client_batch_size or None,
        batch_cost=info.max_batch_tokens or None,
        items=info.max_concurrent_requests or None,
    )
    return Description(DIALECT, capacity, info.model_id)
