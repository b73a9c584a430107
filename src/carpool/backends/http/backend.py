"""One upstream as a backend: puts calls to it, learns what it takes, and keeps an eye on it.

It neither retries nor chooses: whoever has several upstreams does. What it raises says by its type what may
help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple, cast

from carpool.backends.http.discovery import assumed, discover
from carpool.backends.http.ordinary import ProxiedPool, Questions, is_behind_proxy
from carpool.backends.http.pool import CannotConnect, Pool
from carpool.backends.http.reply import TOKENS, Response
from carpool.backends.http.target import Target
from carpool.core.replica import Capacity
from carpool.errors import BackendError, BadInput, BatchTooLarge, CarpoolError, Unavailable, Unreachable
from carpool.wire.base import JSON, EncodedJson
from carpool.wire.call import EMBED, Call
from carpool.wire.counting import CountedBody
from carpool.wire.upstream import (
    Description,
    Exchange,
    UpstreamName,
    decode_refusal,
    named_limit,
    words_of,
)

logger = logging.getLogger(__name__)

_TROUBLED_SECONDS = 0.5  # between two looks at an upstream that is in trouble
_WELL_SECONDS = 10.0  # and at one that was well and has nothing to do
_LONGEST_RETRY_AFTER = 86_400  # seconds: who says more does not know
_MOST_DIGITS = 18  # of a number of tokens: more than that is none
_LARGEST_REPLY = 256 * 1024**2  # bytes: 1000 vectors of 4096 numbers are a fifth of that
_KINDS_OF_CALLS = 256  # whose requests are kept prepared; a rerank's query makes a kind of its own
_LONGEST_KIND = 1024  # characters of their parameters, which callers choose


class Prepared(NamedTuple):
    """What all requests of one kind have in common."""

    call: Call
    exchange: Exchange
    head: Any  # as the pool has it


class HttpBackend:
    """An inference server at a URL: Text Embeddings Inference, an OpenAI-compatible API, or KServe V2.

    `upstream` names its dialect, or leaves that to its URL and to what it says of itself. `model` is the one to
    ask for where it has several. `api_key` is sent as a bearer token. `timeout` (seconds) bounds a call.

    Items are JSON; a group is a `Call`, or `None` for plain embeddings. Results are the upstream's own bytes.
    """

    sends_at_once = True
    gives_up = True  # it hangs up, and the upstream may stop

    def __init__(
        self,
        url: str,
        *,
        upstream: UpstreamName = "auto",
        model: str = "",
        api_key: str = "",
        timeout: float | None = None,
    ) -> None:
        self.target = Target.of(url)
        self.name = str(self.target)
        self._dialect = self.target.dialect if upstream == "auto" else upstream
        self._model = model or self.target.model
        self.authorization = f"Bearer {api_key}" if api_key else self.target.credentials
        self._headers = _headers(self.authorization)
        self._timeout = timeout
        self._pool: Pool | ProxiedPool | None = None
        self._questions: Questions
        self._watching: asyncio.Task[None] | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._trouble: str | None = "the upstream has not answered yet"
        self._is_in_doubt = bool(self.target.exact)  # whether embeddings are where the URL says
        self._lacks_embeddings = False  # which is its trouble: it answers
        self._is_described = False
        self._in_flight = 0
        self._was_heard = False  # since it was last looked at
        self._look_now = asyncio.Event()
        self._has_looked = asyncio.Event()
        self.description: Description
        self.capacity: Capacity
        self._describe(assumed(self._dialect, self._model))

    def __repr__(self) -> str:
        return f"<HttpBackend {self.target}, {self.description.dialect.name}: {self._trouble or 'well'}>"

    def url(self, path: str, query: str) -> str:
        """Where a path of the upstream is, under the same base as its embeddings."""
        return self.target.url(path, query)

    async def start(self, on_change: Callable[[], None]) -> None:
        """Begin to look for the upstream, which need not be up yet."""
        self._on_change = on_change
        make = ProxiedPool if is_behind_proxy(self.target) else Pool
        self._pool = make(self.target, _LARGEST_REPLY)
        self._questions = Questions(self.target, self._headers)
        self._watching = asyncio.create_task(self._watch())

    async def run(self, items: Sequence[bytes], group: Hashable = None) -> Sequence[EncodedJson]:
        """Send the items as one request; in pieces where the upstream takes fewer at once."""
        if self._pool is None:
            raise BackendError("the upstream client is not started", "call start() first")
        if not self._dialect and not self._has_looked.is_set():
            await self._has_looked.wait()  # which of the dialects it speaks is about to be known
        prepared = self._prepared(cast("Call", EMBED if group is None else group))
        most = self.capacity.batch_size
        if most is None or len(items) + prepared.exchange.extra <= most:
            return await self._within_time(prepared, items)
        results: list[EncodedJson] = []
        piece = max(1, most - prepared.exchange.extra)
        for start in range(0, len(items), piece):
            results += await self._within_time(prepared, items[start : start + piece])
        return results

    async def close(self) -> None:
        """Stop looking and close the connections."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._pool is not None:
            await self._pool.close()
            await self._questions.close()

    def trouble(self) -> str | None:
        """Why the upstream cannot be reached or cannot serve, since it was last looked at."""
        return self._trouble

    def unreachable(self) -> str | None:
        """Why nothing else can be forwarded to it: it may serve other things than embeddings."""
        return None if self._lacks_embeddings else self._trouble

    async def _within_time(self, prepared: Prepared, items: Sequence[bytes]) -> Sequence[EncodedJson]:
        if self._timeout is None:
            return await self._exchange(prepared, items)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(prepared, items)
        except TimeoutError:
            limit = f"POST {self.target} may take {self._timeout:g} s"
            raise BackendError("the upstream did not answer in time", limit) from None

    async def _exchange(self, prepared: Prepared, items: Sequence[bytes]) -> Sequence[EncodedJson]:
        body = prepared.exchange.encode(items)
        self._in_flight += 1
        try:
            response: Response = await self._pool.post(prepared.head, body)  # type: ignore[union-attr]
        except CannotConnect as error:
            self._set_trouble(str(error))
            raise
        except (Unreachable, asyncio.CancelledError):
            self._look_now.set()
            raise
        finally:
            self._in_flight -= 1
        if response.status != 200:
            raise self._refusal(response, prepared)
        if isinstance(response.body, CountedBody):
            response.body.items = items
            response.body.tokens = _count(response.headers.get(TOKENS, ""))
        results = prepared.exchange.decode(response.body, len(items))
        self._was_heard = True
        if self._trouble is not None:
            self._set_trouble(None)
            self._look_now.set()  # it may be another version than before
        return results

    def _prepared(self, call: Call) -> Prepared:
        texts = (value for _, value in call.parameters if isinstance(value, str))
        size = len(call.credentials) + sum(map(len, texts))
        return self._prepare_again(call) if size <= _LONGEST_KIND else self._prepare(call)

    def _prepare(self, call: Call) -> Prepared:
        """What the requests of one kind of call have in common. Raises `BadInput`."""
        headers = dict(self._headers)
        if call.credentials:
            if not call.credentials.isascii() or not call.credentials.isprintable():
                raise BadInput("the credentials are not a header", "allowed: printable ASCII")
            headers["authorization"] = call.credentials
        exchange = self.description.dialect.exchange(call)
        path = self.target.path(exchange.path, self.description.dialect.main)
        head = self._pool.prepare(path, headers)  # type: ignore[union-attr]  # see run
        return Prepared(call, exchange, head)

    def _refusal(self, response: Response, prepared: Prepared) -> CarpoolError:
        """The error of a reply that is not 200, from which something may be learned."""
        retry_after = _seconds(response.headers.get("retry-after"))
        error = decode_refusal(response.status, response.body, retry_after, prepared.call)
        if isinstance(error, BatchTooLarge):
            self._learn_limit(named_limit(words_of(response.body)))
        if isinstance(error, Unreachable | Unavailable):
            self._look_now.set()
        if self._is_unknown(response) and prepared.exchange.path == self.description.dialect.main:
            self._is_in_doubt, self._is_described = True, False
            self._look_now.set()
        return error

    def _is_unknown(self, response: Response) -> bool:
        """Whether a reply says that there is nothing at a path; a model that is not there is another matter."""
        return response.status == 404 and "model" not in words_of(response.body).lower()

    def _learn_limit(self, most: int | None) -> None:
        if most is not None and most < (self.capacity.batch_size or most + 1):
            logger.info("the upstream takes fewer at once", extra={"url": str(self.target), "batch_size": most})
            capacity = self.capacity._replace(batch_size=most)
            self._describe(Description(self.description.dialect, capacity, self.description.model))
            self._on_change()

    def _describe(self, description: Description) -> None:
        self.description = description
        self.capacity = description.capacity
        self._prepare_again = lru_cache(_KINDS_OF_CALLS)(self._prepare)

    def _set_trouble(self, trouble: str | None) -> None:
        before, self._trouble = self._trouble, trouble
        self._lacks_embeddings = False
        if trouble is not None:
            self._is_described = False  # whoever comes back may be another version
            self._look_now.set()
        if trouble == before:
            return
        if trouble is None:
            known = self.description.dialect.name, self.description.model
            logger.info(
                "the upstream answers",
                extra={"url": str(self.target), "upstream": " ".join(filter(None, known))},
            )
        elif before is None:
            logger.warning("the upstream is in trouble", extra={"url": str(self.target), "reason": trouble})
        self._on_change()

    async def _watch(self) -> None:
        """Look at the upstream: often while it is in trouble, at once if it failed, now and then if silent."""
        while True:
            # It may be too busy with a batch to say that it is well.
            was_silent = not self._was_heard and not self._in_flight
            if self._look_now.is_set() or self._trouble is not None or not self._is_described or was_silent:
                self._look_now.clear()
                try:
                    await self._look()
                except Exception:  # whatever it is, the next look may tell
                    logger.exception("the upstream cannot be looked at")
            self._was_heard = False
            self._has_looked.set()
            await asyncio.sleep(_TROUBLED_SECONDS)
            if self._trouble is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look_now.wait(), _WELL_SECONDS - _TROUBLED_SECONDS)

    async def _look(self) -> None:
        path = self.description.dialect.health
        try:
            status = (await self._questions.ask(path)).status
        except BackendError as error:
            self._set_trouble(str(error))
            return
        if status >= 500 or status == 400:  # 400 is how Triton says that it is not ready
            self._set_trouble(f"the upstream answered {status} to GET {path}")
            return
        if not self._is_described:
            self._describe(await discover(self._questions.ask, self._dialect, self._model))
            if self._is_in_doubt and await self._is_without_embeddings():
                self._set_trouble(
                    f"the upstream answered 404 to POST {self._main()}: it has no embeddings there"
                )
                self._lacks_embeddings = True
                return
            self._is_described = True
            self._on_change()
        self._set_trouble(None)

    def _main(self) -> str:
        main = self.description.dialect.main
        return self.target.path(main, main)

    async def _is_without_embeddings(self) -> bool:
        """Whether it says that there is nothing where embeddings should be: the URL is wrong, most likely.

        To a GET there most say 405. Some say 404 to that as well, and are asked for no embeddings at all.
        """
        path, nothing = self._main(), self.description.dialect.exchange(EMBED).encode([])
        try:
            return self._is_unknown(await self._questions.ask_exactly(path)) and self._is_unknown(
                await self._questions.ask_exactly(path, nothing)
            )
        except BackendError:  # it is busy, or does not like to be asked for nothing
            return False


def _count(tokens: str) -> int:
    """What a header says that is a count, or 0."""
    return int(tokens) if tokens.isdecimal() and len(tokens) < _MOST_DIGITS else 0


def _seconds(retry_after: str | None) -> int | None:
    """What a `Retry-After` says, in seconds from now; it is a number or a date."""
    if retry_after is None:
        return None
    try:
        if retry_after.isdecimal():
            seconds = int(retry_after)
        else:
            seconds = ceil(parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
    return min(max(0, seconds), _LONGEST_RETRY_AFTER)


def _headers(authorization: str) -> dict[str, str]:
    """What every request says beside its body."""
    credentials = {"authorization": authorization} if authorization else {}
    return {"content-type": JSON, "accept": JSON, "user-agent": "carpool"} | credentials
