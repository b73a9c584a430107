"""What is asked of a model, beside the items themselves: what all the items of one batch have in common.

The server's dialects make a `Call` of a request and give it to the batcher as the request's `group`; only
requests whose calls are equal travel together, and an upstream's dialect says the call in its own words. It
knows no dialect: the names here are the ones that Text Embeddings Inference gave them.

    operation        an item is                    a result is
    embed            a text, or its token ids      a vector: [0.1, ...]
    embed_all        a text, or its token ids      a vector for each token: [[0.1, ...], ...]
    embed_sparse     a text, or its token ids      [{"index": 7, "value": 0.1}, ...]
    predict          a text, or a pair of texts    [{"score": 0.9, "label": "good"}, ...]
    rerank           a text                        {"index": 3, "score": 0.9}: how well it answers `query`;
                                                   the index is its place in the batch, of no use to a caller
    similarity       a text                        a number: how similar it is to `source_sentence`
    tokenize         a text                        [{"id": 7, "text": "a", "special": false, ...}, ...]
    decode           token ids                     a text
    infer            a body: see `payload.py`      whatever the model returns for it

Items and results are JSON: a text is `b'"text"'`, token ids are `b"[101, 102]"`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

Operation = Literal[
    "embed", "embed_all", "embed_sparse", "predict", "rerank", "similarity", "tokenize", "decode", "infer"
]
Scalar = str | int | float | bool


class Call(NamedTuple):
    """An operation, its parameters, and on whose behalf it is called.

    Make one with `Call.of`, which gives equal calls for the same parameters in any order. Leave out what the
    caller left out: `normalize=True` and no `normalize` are different calls, since only the upstream knows its
    defaults. `credentials` is an `Authorization` header to forward, where callers are to be told apart there.
    """

    operation: Operation = "embed"
    parameters: tuple[tuple[str, Scalar], ...] = ()
    credentials: str = ""

    @classmethod
    def of(cls, operation: Operation, credentials: str = "", **parameters: Scalar | None) -> Self:
        """The call with these parameters; those that are `None` are left out."""
        given = ((name, value) for name, value in parameters.items() if value is not None)
        return cls(operation, tuple(sorted(given)), credentials)


EMBED = Call()
INFER = Call("infer")


class Vector(bytes):
    """A vector in JSON, and what its maker knows beside: the `tokens` that were run, the numbers as `floats`.

    Those are little-endian float32. Empty, or 0, is what the maker has not said.
    """

    tokens: int = 0
    floats: bytes = b""
