"""From settings to objects: the only place that wires concrete classes together."""

from __future__ import annotations

import os
from collections.abc import Sequence

from carpool.backends.base import Backend
from carpool.backends.http import HttpBackend
from carpool.backends.process.parent import ProcessBackend
from carpool.backends.process.placement import places
from carpool.config import Config, ModelSettings
from carpool.core.cost import estimated_tokens
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.models import spec
from carpool.models.spec import LocalModel
from carpool.observe.log import LogObserver
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.passthrough import PassThrough
from carpool.server.service import BodyLimits, ServedModel, Service
from carpool.wire.base import EncodedJson

# Seconds for which what waits outlives a worker process that has died: it is being replaced, which takes as
# long as loading its model.
_WORKER_PATIENCE = 30.0


def assemble(config: Config) -> Service:
    """A service that is ready to start. Raises `ConfigError` for what can be known to be wrong by now."""
    return assemble_both(config)[0]


def assemble_both(config: Config) -> tuple[Service, Upstreams]:
    """The same, and the means to change its upstreams while it serves."""
    metrics = Metrics()
    ((name, settings),) = config.models.items()  # one model in a server, so far
    backends = [_upstream(url, settings) for url in settings.inference_url]
    model = _serve(name, settings, backends, metrics)
    limits = BodyLimits(text=config.server.max_text_bytes, data=config.server.max_predict_bytes)
    passthrough = PassThrough(backends, settings.batch_timeout_ms / 1000) if backends else None
    return Service([model], metrics, limits, passthrough), Upstreams(settings, backends, model.batcher)


class Upstreams:
    """The upstreams of a service, by their URLs, which may come and go while it serves.

    `backends` is the list that the service looks at too.
    """

    def __init__(
        self, settings: ModelSettings, backends: list[HttpBackend], batcher: Batcher[bytes, EncodedJson]
    ) -> None:
        self._settings = settings
        self._backends = backends
        self._batcher = batcher
        self._by_url = dict(zip(settings.inference_url, backends, strict=True))

    @property
    def urls(self) -> tuple[str, ...]:
        """Where they are; nowhere, if a model is served from here."""
        return tuple(self._by_url)

    async def add(self, url: str) -> HttpBackend:
        """Another one, from now on."""
        backend = self._by_url[url] = _upstream(url, self._settings)
        self._backends.append(backend)
        await self._batcher.add(backend)
        return backend

    def take(self, url: str) -> HttpBackend:
        """Forget one, which is then to be released; nothing is passed through to it from now on."""
        backend = self._by_url.pop(url)
        self._backends.remove(backend)
        return backend

    async def release(self, backend: HttpBackend) -> None:
        """Send it no batches any more, and let go of it once what is in flight there has ended."""
        await self._batcher.remove(backend)


def _serve(
    name: str, settings: ModelSettings, upstreams: Sequence[HttpBackend], metrics: Metrics
) -> ServedModel:
    local = None if upstreams else spec.resolve(settings.model, settings.engine)
    backends: Sequence[Backend[bytes, EncodedJson]] = upstreams
    if local is not None:
        backends = _workers(local, settings)
    policy = BatchPolicy(
        settings.policy,
        settings.max_batch_size,
        settings.max_wait_time_ms / 1000,
        max_batch_cost=settings.max_batch_tokens or None,
        objective=settings.latency_objective_ms / 1000 or None,
        isolate=settings.isolate,
        hedge=settings.hedge,
    )
    limits = Limits(
        max_in_flight=settings.max_concurrent_workers,
        max_queue_size=settings.max_queue_size,
        queue_timeout=settings.queue_timeout_ms / 1000,
        # A worker process sees to that itself, from when it has the batch, and not while it is being replaced.
        batch_timeout=settings.batch_timeout_ms / 1000 if settings.inference_url else None,
        patience=settings.upstream_patience_ms / 1000 if settings.inference_url else _WORKER_PATIENCE,
    )
    batcher = Batcher(
        backends,
        policy,
        limits,
        name=name,
        observers=(metrics, LogObserver()),
    )
    metrics.watch(name, batcher.statistics, batcher.replicas)
    if local is not None and local.takes == "data":
        # How long an item of unknown kind takes cannot be told by its bytes, and to compare megabytes is dear.
        return ServedModel(name, local.title, batcher, backends, dedupe=False, takes="data")
    title = _title(upstreams) if local is None else local.title
    return ServedModel(name, title, batcher, backends, cost=estimated_tokens, dedupe=settings.dedupe)


def _upstream(url: str, settings: ModelSettings) -> HttpBackend:
    """How long a batch may take is the batcher's business."""
    return HttpBackend(
        url, upstream=settings.upstream, model=settings.upstream_model, api_key=settings.upstream_api_key
    )


def _title(upstreams: Sequence[HttpBackend]) -> str:
    return f"proxy to {', '.join(str(upstream.target) for upstream in upstreams)}"


def _workers(model: LocalModel, settings: ModelSettings) -> list[ProcessBackend]:
    """A worker process for each replica."""
    cores = sorted(os.sched_getaffinity(0)) if settings.pin_cores and hasattr(os, "sched_getaffinity") else []
    return [
        ProcessBackend(
            model.loader,
            model.arguments,
            place,
            batch_timeout=settings.batch_timeout_ms / 1000,
            max_memory=settings.max_memory_mb << 20 or None,
        )
        for place in places(settings.replicas, settings.devices, cores)
    ]
