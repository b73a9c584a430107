"""What a server serves, whichever lane a request came in by: models, health, and the life of both.

It knows routes and batchers and no HTTP library: a lane reads a head and a body and writes a reply, and all
that is between them is here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from carpool.backends.base import Backend
from carpool.core.request import Request
from carpool.errors import CarpoolError, ShuttingDown, TooLarge, WrongType
from carpool.observe.metrics import Metrics
from carpool.observe.observer import ReplicaStatus
from carpool.runtime.batcher import Batcher
from carpool.server.passthrough import PassThrough
from carpool.wire import native, payload
from carpool.wire.base import JSON, Encode, EncodedJson, Reply, Route
from carpool.wire.terms import Terms, read_terms

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The largest body that is read, in bytes, by the kind of payload."""

    text: int
    data: int

    def of(self, route: Route) -> int:
        """The limit for a route."""
        return self.text if route.payload == "text" else self.data


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with its queue. Items and results are JSON.

    `cost` prices an item, where items are not alike. With `dedupe`, equal items that wait or run at the same
    time are computed once. What it `takes` at `/predict` is a text, or any `data`, of which only it knows more.
    """

    name: str
    title: str
    batcher: Batcher[bytes, EncodedJson]
    backends: Sequence[Backend[bytes, EncodedJson]]
    cost: Callable[[bytes], float] | None = None
    dedupe: bool = True
    takes: Literal["text", "data"] = "text"

    def told(self) -> dict[str, Any]:
        """What its backends say of themselves, where they do: the worker process of what it has loaded."""
        for backend in self.backends:
            if info := getattr(backend, "info", None):
                return dict(info)
        return {}

    def names(self) -> list[str]:
        """What callers may call it: its own name, and what its upstreams call it."""
        theirs = [getattr(getattr(backend, "description", None), "model", "") for backend in self.backends]
        return list(dict.fromkeys([self.name, *filter(None, theirs)]))


class Service:
    """The models of one server. `start`, then `enqueue`, then `stop_accepting` and `close`."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        metrics: Metrics,
        limits: BodyLimits,
        passthrough: PassThrough | None = None,
    ) -> None:
        self.models = models
        self.passthrough = passthrough  # for what is not served here
        self.metrics = metrics
        self.limits = limits
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        """Get every model ready; raises what is wrong with one. Harmless when repeated."""
        if not self._started:
            self._started = True
            for model in self.models:
                await model.batcher.start()
                policy = str(model.batcher.policy)
                slots = model.batcher.limits.max_in_flight
                logger.info("serving", extra={"model": model.title, "policy": policy, "slots": slots})

    def stop_accepting(self) -> None:
        """Refuse new requests from now on and say so in `/health`; what is admitted goes on."""
        self._stopping = True

    @property
    def is_idle(self) -> bool:
        """Whether everything admitted has been answered."""
        return all(model.batcher.is_idle for model in self.models)

    async def close(self) -> None:
        """Answer everything admitted, then let the models go."""
        self.stop_accepting()
        for model in self.models:
            await model.batcher.close()
        if self.passthrough is not None:
            await self.passthrough.close()

    def trouble(self) -> str | None:
        """Why nothing can be served right now, in words; `None` when all is well."""
        if self._stopping:
            return "shutting down"
        if not self._started:
            return "starting"
        troubles = [backend.trouble() for model in self.models for backend in model.backends]
        return "; ".join(filter(None, troubles)) if all(troubles) else None

    def health(self) -> Reply:
        """The reply to `GET /health`."""
        states = [_state(each) for model in self.models for each in model.batcher.replicas()]
        now = int(time.time())
        if self.passthrough is not None:
            return native.encode_health(self.trouble(), now, upstreams=states)
        return native.encode_health(self.trouble(), now, replicas=states if len(states) > 1 else ())

    def serves(self, name: str) -> bool:
        """Whether a model's name means what is served here. One local model answers to any name."""
        return self.passthrough is None or name in self.models[0].names()

    def read_head(self, route: Route, headers: Mapping[str, str]) -> Terms:
        """On what terms a request travels, by its headers (lower-case names), before its body is read.

        Raises `WrongType`, `TooLarge` or `BadInput`.
        """
        media_type = headers.get("content-type", JSON).partition(";")[0].strip().lower()
        is_json = media_type == JSON or media_type.endswith("+json")
        if not is_json and media_type not in route.media_types:
            allowed = ", ".join((JSON, *route.media_types))
            raise WrongType(f"content type {media_type} is not read here", f"allowed: {allowed}")
        length = headers.get("content-length", "")
        self.check_length(route, int(length) if length.isdigit() else 0)
        terms = read_terms(headers)
        return terms if is_json else terms._replace(payload=payload.head(media_type, headers))

    def check_length(self, route: Route, length: int) -> None:
        """Refuse a body of this many bytes if it is over the route's limit."""
        limit = self.limits.of(route)
        if length > limit:
            raise TooLarge("the body is too large", f"allowed: {limit} bytes for {route.path}")

    def enqueue(
        self, route: Route, terms: Terms, body: bytes, on_reply: Callable[[Reply], None]
    ) -> Request | None:
        """Admit what a body asks for; `on_reply` is called once, with the answer or what is wrong.

        Gives what `cancel` takes, or `None` if it was refused and `on_reply` has been called already.
        """
        model = self.models[0]
        if route.choose is not None and not terms.payload and not body.startswith(route.opening):
            route = route.choose(body)
        try:
            if self._stopping:
                raise ShuttingDown("shutting down", "no new requests are taken; use another server")
            ask = payload.ask(terms.payload, body) if terms.payload else route.decode(body)
            items = ask.items
            request = Request(
                items,
                partial(_deliver, route, ask.encode or route.encode, on_reply),
                costs=None if model.cost is None else list(map(model.cost, items)),
                tenant=terms.tenant,
                weight=terms.weight if ask.weight is None else ask.weight,
                timeout=terms.timeout if ask.timeout is None else ask.timeout,
                key=items if model.dedupe else None,
                group=ask.group,
            )
            model.batcher.enqueue(request)
        except Exception as error:
            on_reply(_refusal(route, error))
            return None
        return request

    def cancel(self, request: Request) -> None:
        """Give up on a request: its caller has gone. Harmless when it has ended."""
        self.models[0].batcher.cancel(request)


def _state(upstream: ReplicaStatus) -> tuple[str, str | None]:
    """An upstream's name, and why it gets no batches."""
    suspended = None if upstream.is_up else "most of its last batches were lost, or it has asked for a pause"
    return upstream.name, upstream.trouble or suspended


def _deliver(route: Route, encode: Encode, on_reply: Callable[[Reply], None], request: Request) -> None:
    """Reply to a request that has ended."""
    if request.error is not None:
        reply = _refusal(route, request.error)
    else:
        try:
            reply = Reply(200, encode(request.results, time.monotonic() - request.arrived))
        except Exception as error:
            reply = _refusal(route, error)
    on_reply(reply)


def _refusal(route: Route, error: BaseException) -> Reply:
    """An error in the route's dialect; one that is nobody's but carpool's is told to the log alone."""
    if not isinstance(error, CarpoolError):
        logger.error("a request failed inside carpool", exc_info=error)
        error = CarpoolError("internal error", "it is in the server's log")
    return route.encode_error(error)
