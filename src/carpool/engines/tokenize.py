"""Texts to token ids, by a model's tokenizer.json. The only module that imports tokenizers.

It knows no tensor: how texts are grouped and padded is decided by who has all their lengths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carpool.errors import BadInput, MissingExtra, ModelError

try:
    import tokenizers
except ImportError as error:
    raise MissingExtra("tokenizers", "local") from error

# Where no sentence_bert_config.json says otherwise: what the all-MiniLM models are used with. It is also
# within what every common text encoder takes, so it may cut a long text but never breaks a model.
_DEFAULT_MAX_TOKENS = 256


class TextTokenizer:
    """A tokenizer that cuts a text after `max_tokens`, the special ones included, and never pads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.pad_id = _pad_id(tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer = tokenizer
        self._known = tokenizer.get_vocab_size(with_added_tokens=True)
        self._around = _around(tokenizer)

    def __repr__(self) -> str:
        return f"TextTokenizer(max_tokens={self.max_tokens}, pad_id={self.pad_id})"

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        # "fast" leaves out the offsets, which nothing here reads.
        encodings = self._tokenizer.encode_batch_fast([_well_formed(text) for text in texts])
        return [encoding.ids for encoding in encodings]

    def rows(
        self, items: Sequence[str | Sequence[int]], truncate: bool = True, left: bool = False
    ) -> list[list[int] | BadInput]:
        """The token ids of texts, and of token ids with the special tokens around them where they have none.

        They are cut on the `left` or the right; without `truncate` what is too long is an error.
        """
        texts = [item for item in items if isinstance(item, str)]
        with self._uncut():
            encoded = iter(self.ids(texts))
        return [
            self._fit(next(encoded) if isinstance(item, str) else list(item), truncate, left) for item in items
        ]

    def tokens(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[dict[str, Any]]]:
        """What each text is cut into. Places are in characters; special tokens have none."""
        texts = [_well_formed(text) for text in texts]
        with self._uncut():
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return [_described(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """The text of each row of token ids; ids that the model does not know are left out."""
        return self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens)

    @contextmanager
    def _uncut(self) -> Iterator[None]:
        """Texts are not cut meanwhile."""
        self._tokenizer.no_truncation()
        try:
            yield
        finally:
            self._tokenizer.enable_truncation(self.max_tokens)

    def _fit(self, ids: list[int], truncate: bool, left: bool) -> list[int] | BadInput:
        unknown = next((one for one in ids if one >= self._known), None)
        if unknown is not None:
            return BadInput(f"token id {unknown} is not in the vocabulary of {self._known}")
        before, after = self._around
        inner = ids[len(before) :] if ids[: len(before)] == before else ids
        if after and inner[-len(after) :] == after:
            inner = inner[: -len(after)]
        room = self.max_tokens - len(before) - len(after)
        if len(inner) > room and not truncate:
            given = len(inner) + len(before) + len(after)
            return BadInput(f"`inputs` must have less than {self.max_tokens} tokens. Given: {given}")
        return before + (inner[-room:] if left else inner[:room]) + after


def read_tokenizer(directory: Path) -> TextTokenizer:
    """The tokenizer of the model in this directory."""
    path = directory / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise ModelError(f"{path} is not a tokenizer that can be read", str(error)) from error
    return TextTokenizer(tokenizer, _max_tokens(directory))


def _max_tokens(directory: Path) -> int:
    # Not tokenizer.json's own truncation: it is a remnant of how the file was saved (all-MiniLM-L6-v2's says
    # 128, the model takes 256), and sentence-transformers and Text Embeddings Inference both overrule it.
    path = directory / "sentence_bert_config.json"
    if not path.exists():
        return _DEFAULT_MAX_TOKENS
    limit = read_json(path).get("max_seq_length", _DEFAULT_MAX_TOKENS)
    if not isinstance(limit, int) or limit < 1:
        raise ModelError(f"{path}: max_seq_length is {limit!r}", "expected: a number of tokens, 1 or more")
    return limit


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object that describes a model."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read", str(error)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}", "expected: a JSON object")
    return value


def _around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after every text, learned from a first one."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _described(text: str, encoding: tokenizers.Encoding) -> list[dict[str, Any]]:
    described = []
    for number, token, (start, stop), special in zip(
        encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        place = {"start": None, "stop": None} if special else {"start": start, "stop": stop}
        written = token if special else text[start:stop]
        described.append({"id": number, "text": written, "special": bool(special)} | place)
    return described


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    padding = tokenizer.padding
    # Padding is masked, so any id that the model has an embedding for will do where none is named.
    return int(padding["pad_id"]) if padding else tokenizer.token_to_id("[PAD]") or 0


def _well_formed(text: str) -> str:
    # Half a surrogate pair can arrive in JSON ("\ud83d") and has no UTF-8, which the library needs. One such
    # text must not fail the batch it shares.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
