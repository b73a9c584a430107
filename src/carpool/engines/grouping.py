"""Which texts of a batch are run together, so that little is spent on padding and no stream is idle.

All texts of one inference are padded to the longest of them. A batch in arrival order holds short and long
texts, so most of its tokens would be padding: twice to three times the text itself, in prose. This is
arithmetic on lengths; it knows no text, no tensor and no library.
"""

from __future__ import annotations

from collections.abc import Sequence

# Lengths are rounded up to this. The matrix units of current CPUs work on tiles of 16 rows; and an engine
# prepares (10 ms, 2.5 MB) for each number of tokens that it first sees, so there must not be many of them.
WIDTH_STEP = 16

# What one more inference costs, in tokens that could have been computed instead. Measured on MiniLM with
# OpenVINO, two streams of a thread: 2.9 ms an inference whose shape differs from the last, 0.06 ms a token.
INFERENCE_TOKENS = 48

# No inference gets more tokens, unless it is a single text. Measured: most tokens per second at 256 to 512;
# beyond, the activations leave the core's cache (2 MB) and memory grows.
MAX_TOKENS = 512

# The largest groups that are tried, as parts of an equal share of the batch for each stream. The best of them
# differs with the lengths: large groups waste less on starting, small ones balance better.
_SHARES = (2.2, 1.2, 1.0, 0.8, 0.6, 0.5, 0.35)


def padded(length: int) -> int:
    """The width that a text of this many tokens takes when it is the longest of its group."""
    return max(1, -(-length // WIDTH_STEP)) * WIDTH_STEP


def plan(lengths: Sequence[int], streams: int, are_more: bool = False) -> list[list[int]]:
    """Groups of indices, heaviest first, for streams that each take the next group when they are free.

    The streams end together. Where `are_more` groups of other batches, none is idle when this one ends, so the
    least work is all that counts. Measured with 64 users on two cores: 3.7 % more texts a second.
    """
    if len(lengths) < 2:
        return [[index] for index in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    widths = [padded(lengths[index]) for index in order]
    share = sum(widths) / streams
    limits = {min(MAX_TOKENS, part * share) for part in ((1.0,) if are_more else _SHARES)}
    best = min(
        (_cut(widths, limit) for limit in sorted(limits)),
        key=lambda groups: _makespan(groups, widths, streams),
    )
    best.sort(key=lambda group: _cost(group, widths), reverse=True)
    return [[order[place] for place in group] for group in best]


def _cut(widths: Sequence[int], limit: float) -> list[range]:
    """Cut descending widths into runs of the least total cost, none with more than `limit` padded tokens.

    Dynamic programming from the end: `cost[i]` is the least cost of the texts from i on, `ends[i]` where the
    first run of that cut ends.
    """
    count = len(widths)
    cost = [0.0] * (count + 1)
    ends = [0] * count
    for start in range(count - 1, -1, -1):
        width = widths[start]
        longest = min(count - start, max(1, int(limit // width)))
        cost[start], ends[start] = min(
            (INFERENCE_TOKENS + width * (end - start) + cost[end], end)
            for end in range(start + 1, start + longest + 1)
        )
    groups = []
    start = 0
    while start < count:
        groups.append(range(start, ends[start]))
        start = ends[start]
    return groups


def _cost(group: range, widths: Sequence[int]) -> int:
    return INFERENCE_TOKENS + widths[group.start] * len(group)


def _makespan(groups: Sequence[range], widths: Sequence[int], streams: int) -> int:
    """How long the busiest stream works when each takes the heaviest group left."""
    busy = [0] * streams
    for cost in sorted((_cost(group, widths) for group in groups), reverse=True):
        busy[busy.index(min(busy))] += cost
    return max(busy)
