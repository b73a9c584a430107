"""The dialect of Text Embeddings Inference, from its client's side: what the proxy says to an upstream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from carpool.errors import BackendError, BatchFailed, BatchTooLarge, CarpoolError, Overloaded, Unavailable

_VECTORS = msgspec.json.Decoder(list[msgspec.Raw])
_ERROR = msgspec.json.Decoder(dict[str, Any])
_QUOTED = 200  # characters of an upstream's own words in our error: enough to tell, too few to flood a log


def encode_embed(texts: Sequence[str]) -> bytes:
    """The body of a `POST /embed` for many texts."""
    return msgspec.json.encode({"inputs": texts})


def decode_embeddings(body: bytes) -> list[msgspec.Raw]:
    """The vectors of a reply, each still the upstream's own JSON: no float is parsed."""
    try:
        vectors = _VECTORS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError("the upstream's reply is not a JSON array", str(error)) from None
    if not all(bytes(memoryview(vector)[:1]) == b"[" for vector in vectors):
        raise BackendError("the upstream's reply is not an array of vectors", "expected [[0.1, ...], ...]")
    return vectors


def decode_error(status: int, body: bytes) -> CarpoolError:
    """What an upstream's refusal means for the callers in the batch."""
    try:
        words = str(_ERROR.decode(body)["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        words = body[:_QUOTED].decode(errors="replace")
    message, detail = f"the upstream answered {status}", words[:_QUOTED]
    match status:
        case 413:
            return BatchTooLarge(message, detail)
        case 422 if "batch size" in words:  # "batch size 33 > maximum allowed batch size 32"
            return BatchTooLarge(message, detail)
        case 400 | 422 | 424 | 500:
            return BatchFailed(message, detail)
        case 429:
            return Overloaded(message, detail)
        case 503:
            return Unavailable(message, detail)
        case _:
            return BackendError(message, detail)
