"""What the proxy says to a TEI upstream, and what it makes of the reply."""

from __future__ import annotations

import json

import pytest

from carpool.errors import BackendError, BatchFailed, BatchTooLarge, CarpoolError, Overloaded, Unavailable
from carpool.wire import tei


def test_texts_become_inputs() -> None:
    """One request for many texts, in order."""
    assert json.loads(tei.encode_embed(["a", '"b"\n', "日本"])) == {"inputs": ["a", '"b"\n', "日本"]}


def test_vectors_keep_their_bytes() -> None:
    """Digits, exponents and spaces come back as the upstream wrote them."""
    body = b" [ [0.10000000000000001, 1e-9] ,[1],\n[ ] ] "
    assert [bytes(vector) for vector in tei.decode_embeddings(body)] == [
        b"[0.10000000000000001, 1e-9]",
        b"[1]",
        b"[ ]",
    ]


@pytest.mark.parametrize(
    "body",
    [b"", b"[[1]", b"[[1], 2]", b'{"error": "x"}', b'["a"]', b"null", b"<html>", b"[" * 100_000, b"\xff"],
)
def test_a_reply_that_is_not_an_array_of_vectors_is_refused(body: bytes) -> None:
    """Garbage is everyone's error and no one's answer."""
    with pytest.raises(BackendError, match="the upstream's reply is not"):
        tei.decode_embeddings(body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, Overloaded),
        (503, Unavailable),
        (500, BatchFailed),
        (422, BatchFailed),
        (413, BatchTooLarge),
        (502, BackendError),
    ],
)
def test_an_upstreams_refusal_keeps_its_words_and_its_meaning(status: int, kind: type[CarpoolError]) -> None:
    """Overload and unavailability are told apart from failure."""
    error = tei.decode_error(status, b'{"error": "Model is overloaded", "error_type": "Overloaded"}')
    assert type(error) is kind
    assert str(error) == f"the upstream answered {status}: Model is overloaded"


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[1]", b"\xff" * 10, b"x" * 10_000])
def test_a_refusal_in_any_shape_is_quoted_in_short(body: bytes) -> None:
    """Another server's error page must not flood a caller."""
    assert len(tei.decode_error(502, body).detail) <= 200
