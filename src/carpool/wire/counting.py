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
    if isinstance(result, Vector) and result.tokens:
        return result.tokens
    reply = result.obj if isinstance(result, memoryview) else None
    weight = _weigh(item)
    return reply.share(weight) if isinstance(reply, CountedBody) and reply.tokens else weight


def _weigh(item: bytes) -> float:
    """Token ids are as many as they are."""
    return item.count(b",") + 1 if item[:1] == b"[" and b'"' not in item else estimated_tokens(item)
