"""How many tokens a caller is told that its own inputs were."""

from __future__ import annotations

import json

from carpool.wire import openai
from carpool.wire.call import EMBED, Vector
from carpool.wire.counting import CountedBody, count_tokens

ITEMS = [b'"ten bytes!"', b'"ten bytes?"', b"[1,2,3,4]"]


def told(body: bytes, tokens: int) -> CountedBody:
    """An upstream's reply to the items."""
    reply = CountedBody(len(body))
    reply[:] = body
    reply.items, reply.tokens = ITEMS, tokens
    return reply


def test_what_a_model_has_counted_is_what_is_told() -> None:
    """Item by item."""
    one, two = Vector(b"[1]"), Vector(b"[2]")
    one.tokens, two.tokens = 3, 4
    assert count_tokens(ITEMS[:2], [one, two]) == 7


def test_callers_share_what_an_upstream_has_counted() -> None:
    """By length; whoever had the batch for itself gets the upstream's own figure."""
    view = memoryview(told(b"[[1],[2],[3]]", 24))
    results = [view[1:4], view[5:8], view[9:12]]
    assert count_tokens(ITEMS, results) == 24
    assert count_tokens(ITEMS[:1], results[:1]) == count_tokens(ITEMS[1:2], results[1:2]) == 8


def test_what_nobody_has_counted_is_estimated() -> None:
    """Token ids are as many as they are."""
    assert count_tokens(ITEMS[2:], [b"[3]"]) == 4
    assert count_tokens(ITEMS[:1], [b"[1]"]) == 4
    assert count_tokens(ITEMS[:1], [memoryview(told(b"[[1]]", 0))[1:4]]) == 4


def test_an_openai_upstream_tells_its_tokens_in_its_body() -> None:
    """And is believed."""
    data = [{"embedding": [number], "index": number} for number in range(3)]
    for usage, tokens in (({"prompt_tokens": 48}, 48), ({"prompt_tokens": None}, 12), ({}, 12), (None, 12)):
        reply = told(json.dumps({"data": data, "usage": usage}).encode(), 0)
        results = openai.assume("m").dialect.exchange(EMBED).decode(reply, 3)
        assert [json.loads(bytes(result)) for result in results] == [[0], [1], [2]]
        assert count_tokens(ITEMS, results) == tokens
