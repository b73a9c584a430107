"""What a server serves, whichever lane a request came in by: models, health, and the life of both.

It knows routes and batchers and no HTTP library: a lane reads a head and a body and writes a reply, and all
that is between them is here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from carpool.core.request import Request
from carpool.errors import CarpoolError, NotFound, ShuttingDown, TooLarge, WrongType
from carpool.observe.metrics import Metrics
from carpool.observe.observer import ReplicaStatus, RequestRefused
from carpool.server.models import Models, ServedModel
from carpool.wire import native
from carpool.wire.base import JSON, Ask, Item, Reply, Route, Times, media_type
from carpool.wire.call import EMBED, INFER, Call
from carpool.wire.terms import Terms, read_terms

logger = logging.getLogger(__name__)

_INFER = Ask((), INFER)  # what is asked for an item that needs no decoding


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The largest body that is read, in bytes, by the kind of payload."""

    text: int
    data: int

    def of(self, route: Route) -> int:
        """The limit for a route."""
        return self.text if route.payload == "text" else self.data


class Service:
    """The models of one server. `start`, then `enqueue`, then `stop_accepting` and `close`."""

    def __init__(self, models: Sequence[ServedModel], metrics: Metrics, limits: BodyLimits) -> None:
        self.models = Models(models)
        self.metrics = metrics
        self.limits = limits
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        """Get the models ready, of which one is enough; raises where none can be. Harmless when repeated."""
        if not self._started:
            self._started = True
            await self.models.start()

    def stop_accepting(self) -> None:
        """Refuse new requests from now on and say so in `/health`; what is admitted goes on."""
        self._stopping = True

    @property
    def is_idle(self) -> bool:
        """Whether everything admitted has been answered."""
        return self.models.is_idle

    async def close(self) -> None:
        """Answer everything admitted, then let the models go."""
        self.stop_accepting()
        await self.models.close()

    async def drain(self, name: str) -> None:
        """Take a model out of service: nothing new is for it, and what it has is answered."""
        await self.models.drain(name)
        self.metrics.forget(name)

    def trouble(self) -> str | None:
        """Why nothing can be served right now, in words; `None` when one model can, and none is loading."""
        if self._stopping:
            return "shutting down"
        if not self._started:
            return "starting"
        if self.models.only is not None:
            return self.models.trouble(self.models.only)
        if loading := self.models.loading():
            return f"starting: {', '.join(loading)}"
        troubles = [(model.name, self.models.trouble(model)) for model in self.models]
        if any(trouble is None for _, trouble in troubles):
            return None
        return "; ".join(f"{name}: {trouble}" for name, trouble in troubles)

    def model_trouble(self, name: str) -> str | None:
        """Why a model cannot serve right now, in words. Raises `NotFound`."""
        model = self.models.find(name)
        return "shutting down" if self._stopping else self.models.trouble(model)

    def health(self) -> Reply:
        """The reply to `GET /health`: with several models, each of them is in it."""
        if self.models.only is not None:
            return _health(self.models.only, self.trouble())
        loading = self.models.loading()
        models = [
            native.ModelHealth(
                model.name,
                self.models.trouble(model),
                upstreams=_upstreams(model),
                replicas=_replicas(model),
                is_loading=model.name in loading,
            )
            for model in self.models
        ]
        return native.encode_health(self.trouble(), int(time.time()), models=models)

    def model_health(self, name: str) -> Reply:
        """The same for one model."""
        return _health(self.models.find(name), self.model_trouble(name))

    def serves(self, name: str) -> bool:
        """Whether a name means what is served here. Where it chooses among several, that is seen later."""
        return self.models.only is None or self.models.only.serves(name)

    def read_head(self, route: Route, headers: Mapping[str, str]) -> tuple[Route, Terms]:
        """By which route and on what terms a request travels, by its headers, before its body is read.

        Their names are in lower case. Raises `WrongType`, `TooLarge` or `BadInput`.
        """
        if route.by_head is not None:
            route = route.by_head(route, headers)
        given = media_type(headers)
        if given != JSON and given not in route.media_types and not given.endswith("+json"):
            allowed = ", ".join((JSON, *route.media_types))
            raise WrongType(f"content type {given} is not read here", f"allowed: {allowed}")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise WrongType(f"Content-Encoding {encoding} is not read here", "allowed: identity, so none")
        length = headers.get("content-length", "")
        self.check_length(route, int(length) if length.isdigit() else 0)
        return route, read_terms(headers)

    def check_length(self, route: Route, length: int) -> None:
        """Refuse a body of this many bytes if it is over the route's limit."""
        limit = self.limits.of(route)
        if length > limit:
            raise TooLarge("the body is too large", f"allowed: {limit} bytes for {route.path}")

    def lend(self, route: Route, length: int) -> memoryview | None:
        """Where to receive a body of this many bytes, so that a worker can read it there.

        `enqueue` takes it in the place of the body. It is longer by what the route has before a body, which is
        there already. `None` where a body is received as any other: most are too small, or are read here.
        """
        if route.beginning is None:
            return None
        try:
            model = self.models.only or self.models.find(route.model)
        except NotFound:
            return None  # it has left meanwhile
        if model.lend is None or (item := model.lend(len(route.beginning) + length)) is None:
            return None
        item[: len(route.beginning)] = route.beginning
        return item

    def enqueue(
        self, route: Route, terms: Terms, body: Item, on_reply: Callable[[Reply], None]
    ) -> Request | None:
        """Admit what a body asks for; `on_reply` is called once, with the answer or what is wrong.

        What was lent for the body, and is full now, is the item that it asks for.

        Gives what `cancel` takes, or `None` if it was refused and `on_reply` has been called already.
        """
        asked = route
        if route.choose is not None and isinstance(body, bytes) and not body.startswith(route.opening):
            route = route.choose(body)
        try:
            if self._stopping:
                raise ShuttingDown("shutting down", "no new requests are taken; use another server")
            items: Sequence[Item]
            if isinstance(body, bytes):
                ask = route.decode(body)
                items = ask.items
            else:
                ask, items = _INFER, (body,)
            model = self.models.only or self._choose(asked.model or ask.model)
            request = Request(
                items,
                partial(_deliver, route, ask, on_reply),
                costs=None if model.cost is None else [model.cost(item) for item in items],
                tenant=terms.tenant,
                weight=terms.weight if ask.weight is None else ask.weight,
                timeout=terms.timeout if ask.timeout is None else ask.timeout,
                key=items if model.dedupe else None,
                group=_with_credentials(ask.group, terms) if model.tells_callers_apart else ask.group,
            )
            request.owner = model.batcher
            model.batcher.enqueue(request)
        except Exception as error:
            on_reply(_refusal(route, error))
            return None
        return request

    def _choose(self, name: str) -> ServedModel:
        """The model that a name means. Raises `NotFound`, or `Unavailable` if it has not started."""
        model = self.models.find(name)
        if (refusal := self.models.refusal(model)) is not None:
            self.metrics.observe(RequestRefused(model.name, refusal))
            raise refusal
        return model

    def cancel(self, request: Request) -> None:
        """Give up on a request: its caller has gone. Harmless when it has ended."""
        request.owner.cancel(request)


def _with_credentials(group: Hashable, terms: Terms) -> Hashable:
    """The group of those who ask the same with the same credentials; embeddings have no group of their own."""
    call = EMBED if group is None else group
    assert isinstance(call, Call)
    return call._replace(credentials=terms.authorization)


def _health(model: ServedModel, trouble: str | None) -> Reply:
    """The reply to `GET /health` where one model is asked for."""
    return native.encode_health(trouble, int(time.time()), _upstreams(model), _replicas(model))


def _upstreams(model: ServedModel) -> list[tuple[str, str | None]]:
    """The upstreams of a proxied model."""
    return [] if model.passthrough is None else [_state(each) for each in model.batcher.replicas()]


def _replicas(model: ServedModel) -> list[tuple[str, str | None]]:
    """The worker processes of a local model, where it has several."""
    states = [] if model.passthrough is not None else [_state(each) for each in model.batcher.replicas()]
    return states if len(states) > 1 else []


def _state(upstream: ReplicaStatus) -> tuple[str, str | None]:
    """An upstream's name, and why it gets no batches."""
    suspended = None if upstream.is_up else "most of its last batches were lost, or it has asked for a pause"
    return upstream.name, upstream.trouble or suspended


def _deliver(route: Route, ask: Ask, on_reply: Callable[[Reply], None], request: Request) -> None:
    """Reply to a request that has ended."""
    if request.error is not None:
        reply = _refusal(route, request.error)
    else:
        try:
            seconds = time.monotonic() - request.arrived
            if ask.answer is None:
                reply = Reply(200, (ask.encode or route.encode)(request.results, seconds))
            else:
                reply = ask.answer(request.results, Times(seconds, max(0.0, request.left - request.arrived)))
        except Exception as error:
            reply = _refusal(route, error)
    on_reply(reply)


def _refusal(route: Route, error: BaseException) -> Reply:
    """An error in the route's dialect; one that is nobody's but carpool's is told to the log alone."""
    if not isinstance(error, CarpoolError):
        logger.error("a request failed inside carpool", exc_info=error)
        error = CarpoolError("internal error", "it is in the server's log")
    return route.encode_error(error)
