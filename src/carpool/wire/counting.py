"""How many tokens a caller's own inputs were: counted, shared out, or estimated.

A local model counts each item (`Vector`). An upstream tells the sum of a batch, with inputs of several
callers in it: each has its share by length, which is exact for whoever was alone in the batch. Where nobody
has counted anything, a text's tokens are estimated from its length.
"""

from __future__ import annotations

from collections.abc import Sequence

from carpool.core.cost import estimated_tokens
from carpool.wire.base import EncodedJson
from carpool.wire.call import Vector


class CountedBody(bytearray):
    """An upstream's reply, of which results are slices: `tokens` is what it says it ran for all `items`."""

    tokens = 0  # it has not said
    items: Sequence[bytes] = ()
    _weight = 0.0

    def forget(self) -> None:
        """It is about to be another reply."""
        self.tokens, self.items, self._weight = 0, (), 0.0

    def share(self, weight: float) -> float:
        """The tokens of an item of this weight."""
        self._weight = self._weight or sum(map(_weigh, self.items))
        return self.tokens * weight / self._weight if self._weight else weight


def count_tokens(items: Sequence[bytes], results: Sequence[EncodedJson]) -> int:
    """The tokens of one caller's items, to which these are the results."""
    return round(sum(map(_tokens, items, results)))


def _tokens(item: bytes, result: EncodedJson) -> float:
    weight = _weigh(item)
    if isinstance(result, memoryview):
        reply = result.obj
        return reply.share(weight) if isinstance(reply, CountedBody) and reply.tokens else weight
    return (result.tokens if isinstance(result, Vector) else 0) or weight


def _weigh(item: bytes) -> float:
    """Token ids are as many as they are."""
    is_ids = item.startswith(b"[") and b'"' not in item
    return item.count(b",") + 1 if is_ids else estimated_tokens(item)
