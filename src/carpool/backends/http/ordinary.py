"""aiohttp, for everything but batches: probes and questions, and batches where the way is through a proxy."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

import aiohttp
from yarl import URL

from carpool.backends.http.pool import CONNECT_SECONDS, CannotConnect, words_of_failure
from carpool.backends.http.reply import Response, too_large
from carpool.backends.http.target import Target
from carpool.errors import Unreachable

_LARGEST_ANSWER = 1024**2  # bytes that an upstream may say of itself
_ANSWER_SECONDS = 1.0  # within which it must say them: with the pause between two looks, less than 2 s

Prepared = tuple[URL, dict[str, str]]


class Questions:
    """Asks an upstream about itself, on new connections: that it still accepts is half the answer."""

    def __init__(self, target: Target, headers: Mapping[str, str]) -> None:
        self._target = target
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
            headers=headers,
            trust_env=True,
        )

    async def ask(self, path: str) -> Response:
        """The reply to a GET of a path that is no dialect's. Raises `Unreachable`."""
        return await self._exchange("GET", self._target.url(path))

    async def ask_exactly(self, path: str, body: bytes | None = None) -> Response:
        """The reply to a GET of a path as `Target.path` gives it, or to a POST of a body."""
        return await self._exchange("GET" if body is None else "POST", f"{self._target.origin}{path}", body)

    async def _exchange(self, method: str, url: str, body: bytes | None = None) -> Response:
        try:
            async with self._session.request(
                method, URL(url, encoded=True), data=body, allow_redirects=body is None
            ) as response:
                return await _whole(response, _LARGEST_ANSWER)
        except (aiohttp.ClientError, OSError) as error:
            reason = words_of_failure(error) or f"no answer within {_ANSWER_SECONDS:g} s"
            raise Unreachable(f"the upstream cannot be reached at {self._target}", reason) from error

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()


class ProxiedPool:
    """What `Pool` is, for an upstream that the environment says is behind a proxy."""

    def __init__(self, target: Target, largest_reply: int) -> None:
        self._target = target
        self._largest = largest_reply
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # batches in flight are limited by the scheduler
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trust_env=True,
        )

    def prepare(self, path: str, headers: Mapping[str, str]) -> Prepared:
        """What all requests of a kind have in common, to `post` with."""
        return URL(f"{self._target.origin}{path}", encoded=True), dict(headers)

    async def post(self, prepared: Prepared, body: bytes) -> Response:
        """Send a request and give its reply. Raises `Unreachable`."""
        url, headers = prepared
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return await _whole(response, self._largest)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            reason = words_of_failure(error)
            raise CannotConnect(f"the upstream cannot be reached at {self._target}", reason) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(
                "the connection to the upstream broke", f"{type(error).__name__}: {error}"
            ) from error

    async def close(self) -> None:
        """Close the session, with what is in flight on it."""
        await self._session.close()


async def _whole(response: aiohttp.ClientResponse, largest: int) -> Response:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > largest:
            raise too_large(largest)
    return Response(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


def is_behind_proxy(target: Target) -> bool:
    """Whether the environment (`http_proxy`, `no_proxy` and their kin) sends requests to it through a proxy."""
    scheme = "https" if target.secure else "http"
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(target.host)
