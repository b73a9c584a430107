"""An inference server as a backend: a batch is one HTTP request.

It knows how to reach the server and what its silence means; what is said is the dialect's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence

import aiohttp
from yarl import URL

from carpool.core.replica import Capacity
from carpool.errors import BackendError, Unreachable
from carpool.wire import tei

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0  # a host that does not accept within this is down, whatever the batch may take
_PROBE_SECONDS = 0.5  # how often a server that cannot be reached is looked for


def embed_url(inference_url: str) -> URL:
    """Where texts go: a base URL means `/embed` under it, a URL with a path is used as it is."""
    url = URL(inference_url)
    return url if url.path not in ("", "/") else url.with_path("/embed")


class TeiBackend:
    """Text Embeddings Inference, or whatever speaks its `POST /embed`. Results are its own JSON, unparsed.

    `timeout` (seconds) bounds a call.
    """

    def __init__(self, inference_url: str, timeout: float | None = None) -> None:
        self.capacity = Capacity()
        self.url = embed_url(inference_url)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_SECONDS)
        self._session: aiohttp.ClientSession | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._unreachable: str | None = "the upstream has not answered yet"
        self._probing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<TeiBackend {self.url}: {self._unreachable or 'well'}>"

    async def start(self, on_change: Callable[[], None]) -> None:
        """Open the session. The server need not be up yet: it is looked for until it answers."""
        connector = aiohttp.TCPConnector(limit=0)  # batches in flight are limited by the scheduler
        self._on_change = on_change
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, connector=connector, auto_decompress=True, trust_env=True
        )
        self._look_for_upstream()

    async def run(self, items: Sequence[bytes], group: Hashable = None) -> Sequence[memoryview]:
        """Send the texts, JSON strings, as one request; the vectors as the server wrote them."""
        if self._session is None:
            raise BackendError("the upstream client is not started", "call start() first")
        body = b'{"inputs":[' + b",".join(items) + b"]}"
        headers = {"content-type": "application/json"}
        try:
            async with self._session.post(self.url, data=body, headers=headers) as response:
                reply = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._failure(error) from error
        self._tell(None)
        if response.status != 200:
            raise tei.decode_error(response.status, reply)
        return [memoryview(vector) for vector in tei.decode_embeddings(reply)]

    async def close(self) -> None:
        """Stop looking and close the connections."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        if self._session is not None:
            await self._session.close()

    def trouble(self) -> str | None:
        """Why the upstream cannot be reached, since when it was last tried."""
        return self._unreachable

    def _tell(self, trouble: str | None) -> None:
        if trouble != self._unreachable:
            self._unreachable = trouble
            self._on_change()

    def _failure(self, error: Exception) -> BackendError:
        """What a call that got no answer means. A server that cannot be reached is looked for from now on."""
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return BackendError("the upstream did not answer in time", f"POST {self.url}")
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            self._tell(f"the upstream cannot be reached at {self.url}")
            self._look_for_upstream()
            return Unreachable("the upstream cannot be reached", reason)
        return Unreachable("the connection to the upstream broke", reason)

    def _look_for_upstream(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_until_reached())

    async def _probe_until_reached(self) -> None:
        """Ask for `/health` until there is an answer that does not say "not me, not now"."""
        if self._session is None:
            return
        health = self.url.with_path("/health")
        while self._unreachable:
            try:
                timeout = aiohttp.ClientTimeout(total=_CONNECT_SECONDS)
                async with self._session.get(health, timeout=timeout) as response:
                    if response.status < 500:
                        self._tell(None)
                        logger.info("the upstream answers", extra={"url": str(self.url)})
                        return
                    self._tell(f"the upstream answered {response.status} to GET {health}")
            except (aiohttp.ClientError, OSError, TimeoutError):
                self._tell(f"the upstream cannot be reached at {self.url}")
            await asyncio.sleep(_PROBE_SECONDS)
