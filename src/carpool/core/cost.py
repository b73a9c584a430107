"""What an item costs to run, where nobody has said it better."""

from __future__ import annotations

_BYTES_PER_TOKEN = 4  # of English text in common tokenizers; what matters is the ratio between texts


def estimated_tokens(text: str) -> float:
    """About how many tokens a text has, one at least."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return 1 + size / _BYTES_PER_TOKEN
