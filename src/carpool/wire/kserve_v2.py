"""The dialect of KServe V2, the Open Inference Protocol, from its client's side: texts in, vectors out.

    POST /v2/models/M/infer   {"inputs": [{"name": "text", "shape": [n], "datatype": "BYTES", "data": [...]}]}
    -> {"outputs": [{"name": "embedding", "shape": [n, d], "datatype": "FP32", "data": [0.1, ...]}, ...]}

`data` may be flat, in rows one after the other, or nested.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from urllib.parse import quote

import msgspec

from carpool.core.replica import Capacity
from carpool.errors import BackendError, BadInput
from carpool.wire.base import EncodedJson
from carpool.wire.call import Call
from carpool.wire.slices import Body, cut_strictly, decode_reply
from carpool.wire.upstream import Description, Dialect, Exchange, cannot, parameters_of

ABOUT = "/v2"  # where the server describes itself

_INPUT = "text"  # what the input is called where the model does not say


def about(model: str) -> str:
    """Where a model describes itself."""
    return f"/v2/models/{quote(model, safe='')}"


def about_limits(model: str) -> str:
    """Where Triton says how large a batch may be."""
    return f"{about(model)}/config"


def assume(model: str, name: str = _INPUT, rank: int = 1, batch_size: int | None = None) -> Description:
    """A model whose input of texts is called `name` and has so many dimensions."""
    main = f"{about(model)}/infer"
    exchange = partial(_exchange, main, name, rank)
    dialect = Dialect("kserve_v2", main=main, health="/v2/health/ready", exchange=exchange)
    return Description(dialect, Capacity(batch_size=batch_size), model)


class _Server(msgspec.Struct):
    name: str
    extensions: list[str]


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Model(msgspec.Struct):
    inputs: list[_Input]


class _Limits(msgspec.Struct):
    max_batch_size: int = 0


_SERVER = msgspec.json.Decoder(_Server)
_MODEL = msgspec.json.Decoder(_Model)
_LIMITS = msgspec.json.Decoder(_Limits)


def check(body: Body) -> None:
    """Raise `BackendError` if this is not what a server of this protocol says of itself."""
    decode_reply(_SERVER, body, "a server's metadata")


def describe(model: str, metadata: Body, limits: Body) -> Description:
    """What a model says of itself. Raises `BackendError`, also if it takes no texts."""
    texts = [
        one for one in decode_reply(_MODEL, metadata, "a model's metadata").inputs if one.datatype == "BYTES"
    ]
    if not texts:
        raise BackendError(
            f"the upstream's model {model} takes no texts", "it needs an input of datatype BYTES"
        )
    most = decode_reply(_LIMITS, limits, "a model's configuration").max_batch_size
    return assume(model, texts[0].name, len(texts[0].shape), most if most > 0 else None)


def _exchange(path: str, name: str, rank: int, call: Call) -> Exchange:
    if call.operation != "embed":
        raise cannot(call, "kserve_v2", ["embed"])
    parameters_of(call, (), {"model": None})
    before = b'{"inputs":[{"name":' + msgspec.json.encode(name) + b',"datatype":"BYTES","shape":'

    def encode(items: Sequence[bytes]) -> bytes:
        if any(item[:1] == b"[" for item in items):
            raise BadInput("the upstream takes texts, not token ids", "it speaks kserve_v2")
        shape = [len(items), *[1] * (rank - 1)]
        return b"".join((before, msgspec.json.encode(shape), b',"data":[', b",".join(items), b"]}]}"))

    return Exchange(path, encode, _decode)


class _Output(msgspec.Struct):
    shape: list[int]
    datatype: str
    data: msgspec.Raw


class _Outputs(msgspec.Struct):
    outputs: list[_Output]


_OUTPUTS = msgspec.json.Decoder(_Outputs)


def _decode(body: Body, count: int) -> list[EncodedJson]:
    """The rows of the first output that has a row of numbers for each item."""
    outputs = decode_reply(_OUTPUTS, body, "a list of outputs").outputs
    for output in outputs:
        if (
            len(output.shape) == 2
            and output.shape[0] == count
            and output.datatype.startswith(("FP", "BF", "INT"))
        ):
            return _rows(bytes(output.data), count, output.shape[1])
    shapes = ", ".join(f"{output.datatype} {output.shape}" for output in outputs[:8]) or "none"
    raise BackendError(f"the upstream gave no vectors for {count} inputs", f"its outputs: {shapes}")


def _rows(data: bytes, count: int, width: int) -> list[EncodedJson]:
    """`count` rows of `width` numbers. The data has been decoded, so it is JSON."""
    if data[1:].lstrip()[:1] == b"[":
        return cut_strictly(data, count, b"[")
    numbers = data[1:-1]
    rows: list[bytes] = _row(width).findall(numbers) if width >= 1 and not set(b'["{') & set(data[1:]) else []
    if len(rows) != count or sum(map(len, rows)) + count - 1 != len(numbers):
        raise BackendError("the upstream's output is not as long as its shape", f"shape [{count}, {width}]")
    return [b"[" + row + b"]" for row in rows]


@lru_cache(maxsize=64)
def _row(width: int) -> re.Pattern[bytes]:
    """So many values between commas: the end of a row is found without parsing a number."""
    return re.compile(rb"[^,]+(?:,[^,]+){%d}" % (width - 1))
