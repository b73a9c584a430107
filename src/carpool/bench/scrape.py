"""What a server tells of its batches at `/metrics`, if it is one that has carpool's names there."""

from __future__ import annotations

import urllib.request
from collections import Counter
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_NAME = "carpool_batch_items"
_PATIENCE = 5.0  # seconds
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight there, as the load goes


class Batches(NamedTuple):
    """All batches so far: how many up to each size, how many in all, and how many items were in them."""

    upto: Counter[str]
    batches: float
    items: float


def scrape(base: str) -> Batches | None:
    """Ask; `None` if it has nothing of the kind to tell."""
    try:
        with _OPENER.open(f"{base}/metrics", timeout=_PATIENCE) as reply:
            return parse(reply.read().decode())
    except (OSError, ValueError):
        return None


def parse(text: str) -> Batches | None:
    """The batches of all models in a page of metrics."""
    upto: Counter[str] = Counter()
    sums = {f"{_NAME}_count": 0.0, f"{_NAME}_sum": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == _NAME else ():
            if sample.name in sums:
                sums[sample.name] += sample.value
            elif "le" in sample.labels:
                upto[sample.labels["le"]] += int(sample.value)
    return Batches(upto, *sums.values()) if upto else None


def between(before: Batches | None, after: Batches | None) -> tuple[dict[str, int], float | None]:
    """How many batches of each size ran in between, by the upper bound of the bucket, and their mean size."""
    if after is None:
        return {}, None
    before = before or Batches(Counter(), 0, 0)
    sizes, below = {}, 0
    for bound in after.upto:  # ascending, as the server wrote them
        up_to = after.upto[bound] - before.upto[bound]
        sizes[bound] = up_to - below
        below = up_to
    count = after.batches - before.batches
    return sizes, (after.items - before.items) / count if count else None
