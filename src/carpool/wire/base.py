"""What every dialect is made of: a reply, a route, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from carpool.errors import BadInput, CarpoolError, Overloaded, WrongMethod

Value = TypeVar("Value")

JSON = "application/json"

# A result that is JSON already: a worker encoded it, or it is a slice of an upstream's reply.
EncodedJson = bytes | memoryview | msgspec.Raw


class Reply(NamedTuple):
    """An HTTP response before any server has seen it."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Route:
    """A batched POST route as data: how its body becomes an item and how its item's result becomes a body.

    `decode` raises `BadInput`. `encode` takes the result, which is JSON already, and how long the request
    took in seconds. `payload` says which of the body limits holds. The rest is for the documentation.
    """

    path: str
    payload: Literal["text", "data"]
    decode: Callable[[bytes], Any]
    encode: Callable[[EncodedJson, float], bytes]
    encode_error: Callable[[CarpoolError], Reply]
    statuses: tuple[int, ...]
    summary: str
    request_schema: dict[str, Any]
    response_schema: dict[str, Any]
    error_schema: dict[str, Any]


def decode_json(decoder: msgspec.json.Decoder[Value], body: bytes, expected: str) -> Value:
    """Decode a body, or raise `BadInput` that says what is wrong and what was expected."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadInput(f"the body is not what this route takes: {error}", f"expected {expected}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the body is not valid JSON: {error}", f"expected {expected}") from None


def check_text(text: str, field: str) -> str:
    """The text, if there is something in it: a blank one fails many a model, and with it its whole batch."""
    if not text or text.isspace():
        raise BadInput(f"`{field}` is empty", "expected a text with at least one visible character")
    return text


def error_headers(error: CarpoolError) -> tuple[tuple[str, str], ...]:
    """The headers that HTTP asks for beside an error's status."""
    match error:
        case Overloaded():
            return (("retry-after", str(error.retry_after)),)
        case WrongMethod():
            return (("allow", error.allowed),)
        case _:
            return ()
