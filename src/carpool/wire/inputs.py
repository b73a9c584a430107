"""Inputs as their callers wrote them, and other parts of bodies that several dialects have in common.

An item stays the JSON that it was, and is decoded only to prove what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from carpool.wire.base import EncodedJson, Route

TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


def some(items: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list with at least one of these."""
    return {"type": "array", "minItems": 1, "items": items}


# What an item is, for the documentation.
TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}
IDS_SCHEMA = some({"type": "integer", "minimum": 0, "maximum": 2**32 - 1})

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def elements(array: bytes) -> tuple[bytes, ...]:
    """The elements of an array that is known to be valid JSON, each as it was written."""
    return tuple([bytes(element) for element in _ELEMENTS.decode(array)])


def items_of(inputs: object, written: bytes) -> tuple[bytes, ...]:
    """The items in a text, token ids or a list of such: `inputs` as decoded and as `written`."""
    if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and isinstance(inputs[0], int)):
        return (written,)
    return elements(written)


def is_mixed(inputs: object) -> bool:
    """Whether a list has bare token ids beside something else, so that they belong to nobody."""
    return isinstance(inputs, list) and len({isinstance(one, int) for one in inputs}) > 1


def is_blank(inputs: object) -> bool:
    """Whether there is nothing in it, or an item with nothing in it."""
    return not inputs or (isinstance(inputs, list) and any(one == "" or one == [] for one in inputs))


def array(results: Sequence[EncodedJson]) -> list[EncodedJson]:
    """The pieces of a JSON array of results."""
    pieces: list[EncodedJson] = []
    for result in results:
        pieces += (b",", result)
    pieces[:1] = [b"["]
    pieces.append(b"]")
    return pieces


class _Rank(msgspec.Struct):
    score: float


_RANK = msgspec.json.Decoder(_Rank)


def ranked(ranks: Sequence[EncodedJson]) -> list[tuple[int, float]]:
    """The places of the texts and their scores, best first."""
    scores = [_RANK.decode(rank).score for rank in ranks]
    return sorted(enumerate(scores), key=lambda one: -one[1])


def by_field(usual: Route, opening: bytes, others: dict[str, Route]) -> Route:
    """One route of several dialects: a body with one of the fields in `others` is meant for that one.

    A body that begins with `opening` is not looked at: it is meant for the `usual` one.
    """
    own = opening.decode().strip('{":')
    names = [(name, msgspec.Raw, msgspec.Raw()) for name in (own, *others)]
    fields = msgspec.json.Decoder(msgspec.defstruct("Fields", names))

    def choose(body: bytes) -> Route:
        try:
            found = fields.decode(body)
        except ValueError:  # of which all that msgspec raises are
            return usual
        given = [name for name in (own, *others) if bytes(getattr(found, name))]
        return others.get(given[0], usual) if given else usual

    return _together(usual, opening, [usual, *others.values()], choose)


def _together(usual: Route, opening: bytes, routes: Sequence[Route], choose: Callable[[bytes], Route]) -> Route:
    """The documentation of all of them, with the decoding of whichever is chosen."""
    return Route(
        path=usual.path,
        payload=usual.payload,
        decode=usual.decode,
        encode=usual.encode,
        encode_error=usual.encode_error,
        statuses=tuple(sorted({status for route in routes for status in route.statuses})),
        plain=tuple(sorted({status for route in routes for status in route.plain})),
        summary=" Or: ".join(route.summary for route in routes),
        request_schema={"anyOf": [route.request_schema for route in routes]},
        response_schema={"anyOf": [route.response_schema for route in routes]},
        error_schema={"anyOf": [route.error_schema for route in routes]},
        choose=choose,
        opening=opening,
    )
