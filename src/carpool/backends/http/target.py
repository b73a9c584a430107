"""What an upstream's URL says: where it is, what lies under it, and in which dialect its path is written."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import NamedTuple, Self
from urllib.parse import unquote

from yarl import URL

from carpool.errors import BadInput

_OPENAI_BASE = re.compile(r"/v1/?$")  # as OpenAI's own clients are given it
_OPENAI = re.compile(r"(?:/v1)?/embeddings/?$")
_KSERVE = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/[^/]+)?/infer/?$")
_TEI = re.compile(r"/embed/?$")


class Target(NamedTuple):
    """An upstream as its URL names it.

    A base URL has no `exact` path: embeddings are under it, where its dialect has them. A URL with a path is
    used as it is, but for OpenAI's usual `.../v1`; what is not embeddings is beside it, under `base`.
    """

    host: str
    port: int
    secure: bool
    authority: str  # as the Host header has it
    credentials: str  # an Authorization header, if the URL names a user
    base: str
    exact: str
    query: str
    dialect: str  # that the path is written in, if it has one
    model: str  # that the path names

    @classmethod
    def of(cls, text: str) -> Self:
        """What a URL says; that it is one has been checked."""
        url = URL(text)
        path = url.raw_path if url.path not in ("", "/") else ""
        if _OPENAI_BASE.search(path):
            path = f"{path.rstrip('/')}/embeddings"
        dialect, model, base = _read_path(path)
        host, port = url.raw_host or "", f":{url.explicit_port}" if url.explicit_port else ""
        user = f"{url.user or ''}:{url.password or ''}".encode()
        return cls(
            host=host,
            port=url.port or 80,
            secure=url.scheme == "https",
            authority=f"[{host}]{port}" if ":" in host else f"{host}{port}",
            credentials=f"Basic {b64encode(user).decode()}" if url.user or url.password else "",
            base=base,
            exact=path,
            query=f"?{url.raw_query_string}" if url.raw_query_string else "",
            dialect=dialect,
            model=model,
        )

    def __str__(self) -> str:
        return f"{self.origin}{self.exact}"

    @property
    def origin(self) -> str:
        """Its URL without path, user and password."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"

    def url(self, path: str, query: str = "") -> str:
        """Where a path is that is no dialect's. Raises `BadInput` for what is none: it may name a host."""
        if not path.startswith("/"):
            raise BadInput(f"the request's target {path!r} is not a path", "allowed: what begins with /")
        queries = "&".join(filter(None, (query, self.query[1:])))
        return f"{self.origin}{self.base}{path}" + (f"?{queries}" if queries else "")

    def path(self, path: str, main: str) -> str:
        """Where a dialect's path is; `main` is the one that a URL with a path stands for."""
        if self.exact and path == main:
            return self.exact + self.query
        return self.base + path + self.query


def _read_path(path: str) -> tuple[str, str, str]:
    """The dialect of a path, the model that it names, and what it lies under."""
    for dialect, pattern in (("openai", _OPENAI), ("kserve_v2", _KSERVE), ("tei", _TEI)):
        if found := pattern.search(path):
            return dialect, unquote(found.groupdict().get("model", "")), path[: found.start()]
    return ("tei" if path else ""), "", ""
