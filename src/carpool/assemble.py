"""From settings to objects: the only place that wires concrete classes together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carpool.backends.base import Backend
from carpool.backends.http import HttpBackend
from carpool.backends.process.parent import ProcessBackend
from carpool.backends.process.placement import places
from carpool.config import Config, ModelSettings
from carpool.core.cost import estimated_tokens
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import ModelError
from carpool.models import pull
from carpool.models.catalog import CATALOG
from carpool.observe.log import LogObserver
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.passthrough import PassThrough
from carpool.server.service import BodyLimits, ServedModel, Service
from carpool.wire.base import EncodedJson

_LOADER = "carpool.engines.text_embedding:load"  # by name: only the worker process imports an engine

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


def model_directory(settings: ModelSettings, progress: pull.Progress = lambda done: None) -> Path:
    """Where the model's files are; a catalogue model is pulled if it is not here yet."""
    if settings.model in CATALOG:
        return pull.pull(CATALOG[settings.model], progress)
    path = Path(settings.model).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"model {settings.model!r} is neither a catalogue name nor a directory",
            f"allowed: {', '.join(CATALOG)}, or a directory with model.onnx and tokenizer.json",
        )
    return path.resolve()


def _serve(
    name: str, settings: ModelSettings, upstreams: Sequence[HttpBackend], metrics: Metrics
) -> ServedModel:
    backends, title = (upstreams, _title(upstreams)) if upstreams else _local(settings)
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
    return ServedModel(name, title, batcher, backends, cost=estimated_tokens, dedupe=settings.dedupe)


def _upstream(url: str, settings: ModelSettings) -> HttpBackend:
    """How long a batch may take is the batcher's business."""
    return HttpBackend(
        url, upstream=settings.upstream, model=settings.upstream_model, api_key=settings.upstream_api_key
    )


def _title(upstreams: Sequence[HttpBackend]) -> str:
    return f"proxy to {', '.join(str(upstream.target) for upstream in upstreams)}"


def _local(settings: ModelSettings) -> tuple[Sequence[Backend[bytes, EncodedJson]], str]:
    directory = model_directory(settings)
    title = CATALOG[settings.model].title if settings.model in CATALOG else str(directory)
    return _workers(_LOADER, {"directory": str(directory), "engine": settings.engine}, settings), title


def _workers(loader: str, arguments: dict[str, Any], settings: ModelSettings) -> list[ProcessBackend]:
    """A worker process for each replica."""
    cores = sorted(os.sched_getaffinity(0)) if settings.pin_cores and hasattr(os, "sched_getaffinity") else []
    return [
        ProcessBackend(
            loader,
            arguments,
            place,
            batch_timeout=settings.batch_timeout_ms / 1000,
            max_memory=settings.max_memory_mb << 20 or None,
        )
        for place in places(settings.replicas, settings.devices, cores)
    ]
