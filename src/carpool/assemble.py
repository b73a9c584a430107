"""From settings to objects: the only place that wires concrete classes together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from carpool.backends.base import Backend
from carpool.backends.http import HttpBackend
from carpool.backends.missing import Missing
from carpool.backends.process.parent import ProcessBackend
from carpool.backends.process.placement import places
from carpool.backends.process.shared import Intake
from carpool.config import DEFAULT_NAME, Config, ModelSettings
from carpool.core.cost import estimated_tokens
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import MissingExtra, ModelError
from carpool.models import spec
from carpool.models.spec import LocalModel
from carpool.observe.log import LogObserver
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.models import ServedModel
from carpool.server.passthrough import PassThrough
from carpool.server.service import BodyLimits, Service
from carpool.wire import floats
from carpool.wire.base import EncodedJson, Payload

# Seconds for which what waits outlives a worker process that has died: it is being replaced, which takes as
# long as loading its model.
_WORKER_PATIENCE = 30.0

_NAME = re.compile(r"\w[\w.:-]*", re.ASCII)  # what can be one in a URL, as it is


def assemble(config: Config) -> Service:
    """A service that is ready to start. Raises `ConfigError` for what can be known to be wrong by now."""
    return assemble_both(config)[0]


def assemble_both(config: Config) -> tuple[Service, Mapping[str, Upstreams]]:
    """The same, and the means to change the upstreams of each proxied model while it serves."""
    metrics = Metrics()
    models, upstreams = [], {}
    for name, settings in config.models.items():
        backends = [_upstream(url, settings) for url in settings.inference_url]
        model = _serve(name, settings, backends, metrics, is_only=len(config.models) == 1)
        models.append(model)
        if backends:
            floats.reader()  # so that no request waits for its import
            upstreams[name] = Upstreams(settings, backends, model.batcher)
    limits = BodyLimits(text=config.server.max_text_bytes, data=config.server.max_predict_bytes)
    return Service(models, metrics, limits), upstreams


class Upstreams:
    """The upstreams of a model, by their URLs, which may come and go while it serves.

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
        """Where they are."""
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
    name: str, settings: ModelSettings, upstreams: Sequence[HttpBackend], metrics: Metrics, is_only: bool
) -> ServedModel:
    """A model with its queue. That it cannot be had is raised here only if it is the only one."""
    backends: Sequence[Backend[bytes, EncodedJson]]
    takes: Payload = "text"
    intake: Intake | None = None
    if upstreams:
        backends, title = upstreams, f"proxy to {', '.join(str(upstream.target) for upstream in upstreams)}"
    else:
        try:
            local = spec.resolve(settings.model, settings.engine)
            intake = Intake()
            backends, title, takes = _workers(local, settings, intake), local.title, local.takes
        except (ModelError, MissingExtra) as error:
            if is_only:
                raise
            backends, title = [Missing(error)], settings.model
    passthrough = PassThrough(upstreams, settings.batch_timeout_ms / 1000) if upstreams else None
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
    # How long an item of unknown kind takes cannot be told by its bytes, unless its model says, and to compare
    # megabytes is dear.
    of_text = takes == "text"
    return ServedModel(
        name,
        title,
        batcher,
        backends,
        cost=estimated_tokens if of_text else None,
        dedupe=settings.dedupe and of_text,
        takes=takes,
        alias=_alias(settings.model) if name == DEFAULT_NAME and not upstreams else "",
        passthrough=passthrough,
        tells_callers_apart=settings.forward_authorization,
        lend=None if intake is None else intake.lend,
    )


def _alias(spec: str) -> str:
    """What callers may call a local model that has been given no name: as its SPEC does, without a path."""
    name = Path(spec.partition("?")[0]).name
    return name if _NAME.fullmatch(name) else ""


def _upstream(url: str, settings: ModelSettings) -> HttpBackend:
    """How long a batch may take is the batcher's business."""
    return HttpBackend(
        url, upstream=settings.upstream, model=settings.upstream_model, api_key=settings.upstream_api_key
    )


def _workers(model: LocalModel, settings: ModelSettings, intake: Intake) -> list[ProcessBackend]:
    """A worker process for each replica."""
    cores = sorted(os.sched_getaffinity(0)) if settings.pin_cores and hasattr(os, "sched_getaffinity") else []
    return [
        ProcessBackend(
            model.loader,
            model.arguments,
            place,
            load_timeout=settings.load_timeout_ms / 1000,
            batch_timeout=settings.batch_timeout_ms / 1000,
            max_memory=settings.max_memory_mb << 20 or None,
            intake=intake,
        )
        for place in places(settings.replicas, settings.devices, cores)
    ]
