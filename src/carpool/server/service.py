"""What a server serves, whichever lane a request came in by: models, health, and the life of both.

It knows routes and batchers and no HTTP library: a lane reads the bytes, this answers them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carpool.backends.base import Backend
from carpool.errors import CarpoolError, ShuttingDown, TooLarge, WrongType
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.passthrough import PassThrough
from carpool.wire import native
from carpool.wire.base import JSON, EncodedJson, Reply, Route
from carpool.wire.terms import read_terms

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
    """A model with its queue. Its results are JSON already."""

    name: str
    title: str
    batcher: Batcher[str, EncodedJson]
    backends: Sequence[Backend[str, EncodedJson]]


class Service:
    """The models of one server. `start`, then `answer`, then `stop_accepting` and `close`."""

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
        return native.encode_health(self.trouble(), int(time.time()))

    async def answer(self, route: Route, headers: Mapping[str, str], body: bytes) -> Reply:
        """The reply to a batched route, errors included; `headers` has lower-case names."""
        started = time.perf_counter()
        try:
            if self._stopping:
                raise ShuttingDown("shutting down", "no new requests are taken; use another server")
            item, terms = route.decode(body), read_terms(headers)
            result = await self.models[0].batcher.submit(item, **terms._asdict())
            return Reply(200, route.encode(result, time.perf_counter() - started))
        except CarpoolError as error:
            return route.encode_error(error)
        except Exception:
            logger.exception("a request failed inside carpool")
            return route.encode_error(CarpoolError("internal error", "it is in the server's log"))

    def check_head(self, route: Route, content_type: str | None, length: int | None) -> None:
        """Refuse by its headers a body that would be refused anyway. Raises `WrongType` or `TooLarge`."""
        media_type = (content_type or JSON).partition(";")[0].strip().lower()
        if media_type != JSON and not media_type.endswith("+json"):
            raise WrongType(f"content type {media_type} is not read here", f"allowed: {JSON}")
        self.check_length(route, length or 0)

    def check_length(self, route: Route, length: int) -> None:
        """Refuse a body of this many bytes if it is over the route's limit."""
        limit = self.limits.of(route)
        if length > limit:
            raise TooLarge("the body is too large", f"allowed: {limit} bytes for {route.path}")
