"""What an item costs to run, where nobody has said it better."""

from __future__ import annotations

_BYTES_PER_TOKEN = 4  # of English text in common tokenizers; what matters is the ratio between texts


def estimated_tokens(item: bytes) -> float:
    """About how many tokens the text in a JSON string has, one at least."""
    return 1 + len(item) / _BYTES_PER_TOKEN
