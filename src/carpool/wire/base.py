"""What every dialect is made of: a reply, a route, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from carpool.errors import BadInput, CarpoolError, Overloaded, Unavailable, WrongMethod

Value = TypeVar("Value")

Payload = Literal["text", "data"]  # what a body holds: texts, or anything else

JSON = "application/json"

# What a backend takes: a JSON value, or a body that only a worker reads, perhaps where the worker finds it.
Item = bytes | memoryview

# A result that is JSON already: a worker encoded it, or it is a slice of an upstream's reply.
EncodedJson = bytes | memoryview

Encode = Callable[[Sequence[EncodedJson], float], Sequence[EncodedJson]]

_TEXT = msgspec.json.Decoder(str)


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An HTTP response before any server has seen it.

    `pieces` make its body, in order: it is joined once, by whoever sends it.
    """

    status: int
    pieces: Sequence[EncodedJson]
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)


def json_reply(body: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """A reply whose body is not JSON yet."""
    return Reply(status, (msgspec.json.encode(body),), headers)


class Times(NamedTuple):
    """How long a request took, in seconds: all in all, and until the last of it left the queue."""

    total: float
    queued: float


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a body asks for: `items` to run, each the JSON that the caller wrote, or the same written again.

    Only items of the same `group` travel together: it holds whatever must be equal within a batch. `encode`
    takes the place of the route's own where the shape of the answer depends on the question; `answer` takes the
    place of both where the answer has headers of its own. `weight` and `timeout` (seconds) take the place of
    what the headers say, where a dialect has them in the body. `model` names one of several models, for a route
    that has none of its own.
    """

    items: Sequence[bytes]
    group: Hashable = None
    encode: Encode | None = None
    weight: float | None = None
    timeout: float | None = None
    answer: Callable[[Sequence[EncodedJson], Times], Reply] | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A batched POST route as data: how its body becomes items and how their results become a body.

    `decode` raises `BadInput`. `encode` takes the results, which are JSON already, and how long the request
    took in seconds. `payload` says which of the body limits holds. `choose` is there where a path speaks
    several dialects: it gives the route, of the same path, that a body is meant for; it need not be asked of a
    body that begins with `opening`. `by_head` is there where the headers (lower-case names) say how a body is
    to be read: it makes of this route the one that reads it, and raises `BadInput`. `media_types` are those it
    reads beside JSON. `beginning` is there where a body, as it came, is the one item to `infer`: it stands
    before it there, and such an item need not be decoded. `model` is there where the path is one model's own.
    The rest is for the documentation: `plain` are the statuses whose body may be plain text.
    """

    path: str
    payload: Payload
    decode: Callable[[bytes], Ask]
    encode: Encode
    encode_error: Callable[[CarpoolError], Reply]
    statuses: tuple[int, ...]
    summary: str
    request_schema: dict[str, Any]
    response_schema: dict[str, Any]
    error_schema: dict[str, Any]
    choose: Callable[[bytes], Route] | None = None
    opening: bytes = b""
    by_head: Callable[[Route, Mapping[str, str]], Route] | None = None
    media_types: tuple[str, ...] = ()
    beginning: bytes | None = None
    model: str = ""
    plain: tuple[int, ...] = ()


class TextField:
    """Reads a body that is an object with one text in `field`; what else is in it is ignored.

    The text stays the JSON string that the caller wrote. It is decoded only to prove that it is one: an escape
    or a byte that is no UTF-8 would otherwise fail the batch that it is joined into.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._expected = f'{{"{field}": "<one text>"}}'
        self._opening = f'{{"{field}":'.encode()
        self._text = msgspec.json.Decoder(msgspec.defstruct("Body", [(field, str)]))
        self._slice = msgspec.json.Decoder(msgspec.defstruct("Body", [(field, msgspec.Raw)]))

    def ask(self, body: bytes) -> Ask:
        """What a body asks for: the one text, as a JSON string. Raises `BadInput`."""
        # What nearly every body is, in half the time: nothing but the field, so that all between the opening
        # and the brace is one JSON string or the body is something else.
        if body.startswith(self._opening) and body.endswith(b"}"):
            item = body[len(self._opening) : -1]
            try:
                text = _TEXT.decode(item)
            except ValueError:  # of which all that msgspec raises are
                pass
            else:
                if text and not text.isspace():
                    return Ask((item.strip(),))
        return Ask((self._read(body),))

    def _read(self, body: bytes) -> bytes:
        text = getattr(decode_json(self._text, body, self._expected), self._field)
        # A blank text fails many a model, and with it its whole batch.
        if not text or text.isspace():
            raise BadInput(f"`{self._field}` is empty", "expected a text with at least one visible character")
        return bytes(getattr(self._slice.decode(body), self._field))


def decode_json(decoder: msgspec.json.Decoder[Value], body: bytes, expected: str) -> Value:
    """Decode a body, or raise `BadInput` that says what is wrong and what was expected."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadInput(f"the body is not what this route takes: {error}", f"expected {expected}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the body is not valid JSON: {error}", f"expected {expected}") from None


def media_type(headers: Mapping[str, str]) -> str:
    """What a body is said to be, by its headers (lower-case names): JSON, where they do not say."""
    return headers.get("content-type", JSON).partition(";")[0].strip().lower()


def error_headers(error: CarpoolError) -> tuple[tuple[str, str], ...]:
    """The headers that HTTP asks for beside an error's status."""
    match error:
        case Overloaded() | Unavailable() if error.retry_after is not None:
            return (("retry-after", str(max(1, error.retry_after))),)  # 0 is as good as "at once, and again"
        case WrongMethod():
            return (("allow", error.allowed),)
        case _:
            return ()
