"""Inputs to requests, byte for byte, in what the usual servers speak.

A target is encoded once for every input before a run, so that sending is one write.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from carpool.bench.inputs import Image
from carpool.errors import ConfigError

Body = Callable[[Sequence[str], str], Any]


def _only(texts: Sequence[str]) -> str:
    if len(texts) != 1:
        raise ConfigError("this dialect takes one text in a request", "several: tei, openai, kserve")
    return texts[0]


def _kserve(texts: Sequence[str], model: str) -> Any:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]}


@dataclass(frozen=True)
class _Dialect:
    path: str
    body: Body


_DIALECTS: Mapping[str, _Dialect] = {
    "native": _Dialect("/embed", lambda texts, model: {"input": _only(texts)}),
    "predict": _Dialect("/predict", lambda texts, model: {"data": _only(texts)}),
    "tei": _Dialect("/embed", lambda texts, model: {"inputs": list(texts)}),
    "openai": _Dialect("/v1/embeddings", lambda texts, model: {"input": list(texts), "model": model}),
    "kserve": _Dialect("/v2/models/{model}/infer", _kserve),
}
DIALECTS = tuple(_DIALECTS)


@dataclass(frozen=True)
class Target:
    """Where requests go and what is spoken there. A URL with a path is used as it is."""

    url: str
    dialect: str = "native"
    model: str = "default"
    headers: tuple[str, ...] = ()  # whole lines

    def __post_init__(self) -> None:
        if self.dialect not in _DIALECTS:
            raise ConfigError(f'dialect "{self.dialect}" is not known', f"allowed: {', '.join(DIALECTS)}")
        try:
            parts = urlsplit(self.url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            raise ConfigError(f'"{self.url}" is not a URL', "allowed: http:// or https://, with a host")
        for header in self.headers:
            if ":" not in header or not header.isprintable():
                raise ConfigError(f'"{header}" is not a header', "as in: Authorization: Bearer KEY")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme == "https"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.tls else 80)

    @property
    def path(self) -> str:
        """The URL's own path and query, or the dialect's."""
        parts = urlsplit(self.url)
        if parts.path.strip("/"):
            return parts.path + (f"?{parts.query}" if parts.query else "")
        return _DIALECTS[self.dialect].path.format(model=self.model)

    @property
    def base(self) -> str:
        """The server's root."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def encode(self, *texts: str) -> bytes:
        """The request for a text, or for several at once."""
        body = _DIALECTS[self.dialect].body(texts, self.model)
        return self.request(json.dumps(body).encode(), "application/json")

    def encode_image(self, image: Image) -> bytes:
        """The request for a picture: its bytes as they are."""
        if self.dialect != "predict":
            raise ConfigError(f"pictures cannot be sent as {self.dialect}", "pass --dialect predict")
        return self.request(image.content, image.content_type)

    def request(self, body: bytes, content_type: str) -> bytes:
        """The request with a body that is there already."""
        parts = urlsplit(self.url)
        lines = [f"POST {self.path} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", *self.headers]
        if parts.username:
            credentials = f"{parts.username}:{parts.password or ''}"
            lines.append(f"authorization: Basic {base64.b64encode(credentials.encode()).decode()}")
        lines += [f"content-type: {content_type}", f"content-length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body
