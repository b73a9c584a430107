"""What an upstream's refusals mean, whatever it speaks."""

from __future__ import annotations

import pytest

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
)
from carpool.wire.call import Call
from carpool.wire.upstream import decode_refusal, named_limit


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, Overloaded),
        (503, Unavailable),
        (500, BatchFailed),
        (424, BatchFailed),
        (422, BatchRefused),
        (400, BatchRefused),
        (413, BatchTooLarge),
        (408, Unreachable),
        (502, Unreachable),
        (504, Unreachable),
        (520, Unreachable),
        (401, BackendError),
        (404, BackendError),
        (302, BackendError),
        (204, BackendError),
    ],
)
def test_an_upstreams_refusal_keeps_its_words_and_its_meaning(status: int, kind: type[CarpoolError]) -> None:
    """Overload, unavailability, failure on what is in the batch and failure of the way are told apart."""
    error = decode_refusal(status, b'{"error": "Model is overloaded", "error_type": "Overloaded"}')
    assert type(error) is kind
    assert str(error) == f"the upstream answered {status}: Model is overloaded"


@pytest.mark.parametrize(
    ("status", "call", "kind"),
    [
        (404, Call.of("embed", model="no"), NotFound),
        (403, Call.of("embed", model="no"), NotAllowed),
        (401, Call.of("embed", model="no"), BackendError),
        (401, Call.of("embed", credentials="Bearer theirs"), NotAllowed),
        (403, Call.of("embed", credentials="Bearer theirs"), NotAllowed),
        (404, Call.of("embed", dimensions=3), BackendError),
        (404, Call.of("embed", credentials="Bearer theirs"), BackendError),
    ],
)
def test_what_a_caller_has_said_is_the_callers_affair(
    status: int, call: Call, kind: type[CarpoolError]
) -> None:
    """A model that is not there, or credentials; the rest of a request carpool makes."""
    error = decode_refusal(status, b'{"message": "The model `no` does not exist."}', call=call)
    assert type(error) is kind
    assert "`no` does not exist" in str(error)
    assert error.status == (502 if kind is BackendError else status)


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[1]", b"\xff" * 10, b"x" * 10_000])
def test_a_refusal_in_any_shape_is_quoted_in_short(body: bytes) -> None:
    """Another server's error page must not flood a caller."""
    assert len(decode_refusal(502, body).detail) <= 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "too hot"}',
        b'{"error": {"message": "too hot", "type": "server_error"}}',
        b'{"message": "too hot", "code": 500}',
        b'{"detail": "too hot"}',
        b"too hot",
    ],
)
def test_the_words_are_found_in_every_dialect(body: bytes) -> None:
    """TEI, OpenAI, KServe, FastAPI and plain text."""
    assert decode_refusal(500, body).detail == "too hot"


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("batch size 33 > maximum allowed batch size 32", 32),
        ("Invalid 'input': array too long. Expected an array with maximum length 2048, but got 3000", 2048),
        ("[request id: 1] inference request batch-size must be <= 8 for 'model'", 8),
        ("Input validation error: `inputs` must have less than 512 tokens. Given: 600", None),
        ("", None),
    ],
)
def test_the_limit_that_a_refusal_names(words: str, limit: int | None) -> None:
    """In the words of those who name one; then it was the size, whatever the status."""
    assert named_limit(words) == limit
    kind = BatchRefused if limit is None else BatchTooLarge
    assert type(decode_refusal(422, words.encode())) is kind


def test_one_text_that_is_too_long_is_not_a_batch_that_is_too_large() -> None:
    """TEI before 1.9 gave both the status 413."""
    words = b'{"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600"}'
    assert type(decode_refusal(413, words)) is BatchRefused
    assert type(decode_refusal(413, b"")) is BatchTooLarge


def test_retry_after_goes_with_overload_and_unavailability() -> None:
    """Where the upstream gave one."""
    overloaded, unavailable = decode_refusal(429, b"", 7), decode_refusal(503, b"", 9)
    assert isinstance(overloaded, Overloaded)
    assert isinstance(unavailable, Unavailable)
    assert (overloaded.retry_after, unavailable.retry_after) == (7, 9)
    assert getattr(decode_refusal(503, b""), "retry_after", 0) is None
    assert getattr(decode_refusal(429, b""), "retry_after", None) == 0
