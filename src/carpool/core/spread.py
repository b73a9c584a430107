"""Numbers that vary where randomness would, without any: the core must give the same answers each time."""

from __future__ import annotations

_GOLDEN = 0.618034  # its multiples modulo 1 are evenly spread, in any number


def spread(ordinal: int) -> float:
    """From 0 to 1, far from those of the ordinals before and after."""
    return ordinal * _GOLDEN % 1
