"""What a dialect is from its client's side: how a call is put to an upstream, and what its refusals mean.

A dialect is data. Nothing here knows how bytes travel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from carpool.core.replica import Capacity
from carpool.errors import (
    BackendError,
    BatchFailed,
    BatchRefused,
    BatchTooLarge,
    CarpoolError,
    NotAllowed,
    NotFound,
    Overloaded,
    Unavailable,
    Unreachable,
    Unsupported,
)
from carpool.wire.base import EncodedJson
from carpool.wire.call import EMBED, Call
from carpool.wire.slices import Body

UpstreamName = Literal["auto", "tei", "openai", "kserve_v2"]

_REFUSAL = msgspec.json.Decoder(dict[str, Any])
_QUOTED = 200  # characters of an upstream's own words in our error: enough to tell, too few to flood a log

# How upstreams say what they would have taken, in the words of TEI, of OpenAI and of Triton.
_LIMITS = re.compile(
    r"batch size \d+ > maximum[a-z ]*(\d+)|array too long.*?maximum length (\d+)|batch-size must be <= (\d+)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call as requests and replies: where it goes, how items become a body and a body their results.

    `decode` raises `BackendError` for a reply that does not pair with as many items as it is told. `extra` is
    what the upstream counts as items beside the items themselves.
    """

    path: str
    encode: Callable[[Sequence[bytes]], bytes]
    decode: Callable[[Body, int], list[EncodedJson]]
    extra: int = 0


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an upstream speaks. `exchange` raises `Unsupported` for a call that cannot be said in it.

    `main` is the path of its embeddings, `health` where to ask whether it is well.
    """

    name: str
    main: str
    health: str
    exchange: Callable[[Call], Exchange]


class Description(msgspec.Struct, frozen=True):
    """What an upstream says of itself: how to speak to it, and the most that it takes."""

    dialect: Dialect
    capacity: Capacity = Capacity()
    model: str = ""


def parameters_of(call: Call, taken: Iterable[str], ignored: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The call's parameters, each of which must be one of `taken`; `ignored` are fine with that value."""
    given = dict(call.parameters)
    for name, value in call.parameters:
        if name in taken:
            continue
        if name not in ignored or ignored[name] not in (None, value):
            raise Unsupported(
                f"{call.operation} at the upstream does not take {name} = {value!r}",
                f"parameters that it takes: {', '.join(taken) or 'none'}",
            )
        del given[name]
    return given


def cannot(call: Call, dialect: str, operations: Iterable[str]) -> Unsupported:
    """The refusal of an operation that a dialect has no word for."""
    return Unsupported(
        f"the upstream has no {call.operation}", f"it speaks {dialect}, which has {', '.join(operations)}"
    )


def decode_refusal(status: int, body: Body, retry_after: int | None = None, call: Call = EMBED) -> CarpoolError:
    """What an upstream's refusal of a call means for the callers in the batch.

    Their credentials and the model that they name are their own affair; all else of a request is carpool's.
    """
    words = words_of(body)
    message, detail = f"the upstream answered {status}", words[:_QUOTED]
    names_model = any(name == "model" for name, _ in call.parameters)
    match status:
        case 401 | 403 if call.credentials:
            return NotAllowed(message, detail, status)
        case 403 if names_model:
            return NotAllowed(message, detail, status)
        case 404 if names_model:
            return NotFound(message, detail)
        case 413 if "Input validation error" in words:  # TEI before 1.9 says so of one text that is too long
            return BatchRefused(message, detail)
        case 413:
            return BatchTooLarge(message, detail)
        case 400 | 422 if named_limit(words):
            return BatchTooLarge(message, detail)
        case 400 | 422:
            return BatchRefused(message, detail)
        case 424 | 500:
            return BatchFailed(message, detail)
        case 429:
            return Overloaded(message, detail, retry_after=retry_after or 0)
        case 503:
            return Unavailable(message, detail, retry_after=retry_after)
        case 408 | 502 | 504:
            return Unreachable(message, detail)
        case _ if status > 500:
            return Unreachable(message, detail)
        case _:
            return BackendError(message, detail)


def words_of(body: Body) -> str:
    """What an upstream says is wrong, in any of the shapes that are in use: `{"error": "..."}` and its kin."""
    try:
        refusal = _REFUSAL.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:_QUOTED].decode(errors="replace")
    words = next((refusal[key] for key in ("error", "message", "detail") if refusal.get(key)), refusal)
    if isinstance(words, dict):
        words = words.get("message", words)
    return str(words)


def named_limit(words: str) -> int | None:
    """The largest batch that the upstream would have taken, if that is what its refusal says."""
    found = _LIMITS.search(words)
    return int(next(filter(None, found.groups()))) or None if found else None
