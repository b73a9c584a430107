"""The model server's dialect."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from carpool.errors import (
    BackendError,
    BadInput,
    CarpoolError,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
    WrongMethod,
)
from carpool.wire import predict


def test_data_in_result_out() -> None:
    """The result is the model's own JSON; every reply has an id of its own and the time in seconds."""
    assert predict.decode_text(b'{"data": "a text"}').items == (b'"a text"',)
    first, second = (json.loads(b"".join(predict.encode_prediction([b"[1, 2]"], 0.25))) for _ in range(2))
    assert first["result"] == [1, 2]
    assert first["processing_time"] == 0.25
    assert UUID(first["request_id"]) != UUID(second["request_id"])


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": [1.0]}', b'{"data": ""}'])
def test_bad_input(body: bytes) -> None:
    """What the model does not take is the caller's fault."""
    with pytest.raises(BadInput, match="expected"):
        predict.decode_text(body)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInput("a"), 422),
        (TooLarge("a"), 413),
        (WrongMethod("a"), 405),
        (Overloaded("a"), 429),
        (TimedOut("a"), 503),
        (Unavailable("a"), 503),
        (BackendError("a"), 500),
        (CarpoolError("a"), 500),
    ],
)
def test_errors_are_a_detail_with_this_dialects_statuses(error: CarpoolError, status: int) -> None:
    """422, 429, 503 and 500 stand for what other dialects spread over more."""
    reply = predict.encode_error(error)
    assert reply.status == status
    assert json.loads(reply.body) == {"detail": "a"}
    assert ("retry-after" in dict(reply.headers)) == (status in (429, 503))
