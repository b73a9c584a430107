"""The models of a server in this process: one that loads, fails or leaves concerns no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from carpool.errors import ModelError, NotFound
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.models import ServedModel
from carpool.server.routes import batched_routes
from carpool.server.service import BodyLimits, Service
from carpool.wire.base import Reply, Route
from carpool.wire.terms import Terms
from tests.server.in_process import Echo


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run it in a loop of its own."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Loading(Echo):
    """Its start waits until it is told how it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def start(self, on_change: Callable[[], None]) -> None:
        await self.loaded

    async def close(self) -> None:
        self.closed = True

    def trouble(self) -> str | None:
        return None if self.loaded.done() else "not loaded"


def serving(*backends: Echo) -> Service:
    """Models a, b, ... of these backends."""
    metrics, models = Metrics(), []
    for name, backend in zip("abc", backends, strict=False):
        batcher: Batcher[bytes, Any] = Batcher(backend, name=name, observers=(metrics,))
        metrics.watch(name, batcher.statistics, batcher.replicas)
        models.append(ServedModel(name, name, batcher, [backend]))
    return Service(models, metrics, BodyLimits(text=1000, data=1000))


def health(service: Service) -> tuple[int, Any, list[str]]:
    reply = service.health()
    body = json.loads(reply.body)
    return reply.status, body.get("reason"), [model["status"] for model in body["models"]]


def route(service: Service, path: str) -> Route:
    return next(route for route in batched_routes(service) if route.path == path)


async def ask(service: Service, path: str) -> int:
    """The status of the answer to a text."""
    reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    service.enqueue(route(service, path), Terms(), b'{"input":"x"}', reply.set_result)
    return (await reply).status


@in_loop
async def test_while_one_loads_the_other_serves_and_health_waits() -> None:
    """A balancer is told 503 until nothing is loading; callers of the loading one to come back."""
    slow = Loading()
    service = serving(slow, Echo())
    await service.start()
    assert health(service) == (503, "starting: a", ["loading", "healthy"])
    assert await ask(service, "/models/b/embed") == 200
    assert await ask(service, "/embed") == 503
    refusal = service.models.refusal(service.models.default)
    assert refusal is not None
    assert refusal.retry_after == 1
    metrics = service.metrics.prometheus().decode()
    assert 'carpool_replica_up{model="a",replica="0"} 0.0' in metrics
    assert 'carpool_requests_total{model="a",outcome="Unavailable"} 1.0' in metrics
    slow.loaded.set_result(None)
    while service.models.loading():
        await asyncio.sleep(0)
    assert health(service) == (200, None, ["healthy", "healthy"])
    assert await ask(service, "/embed") == 200
    await service.close()


@in_loop
async def test_one_that_fails_to_load_is_released() -> None:
    """The start goes on with the other, which may still be loading when the first has failed."""
    bad, slow = Loading(), Loading()
    service = serving(bad, slow)
    starting = asyncio.create_task(service.start())
    bad.loaded.set_exception(ModelError("bad weights"))
    while not bad.closed:
        await asyncio.sleep(0)
    assert not starting.done()
    slow.loaded.set_result(None)
    await starting
    assert health(service) == (200, None, ["unhealthy", "healthy"])
    assert await ask(service, "/embed") == 503
    await service.close()


@in_loop
async def test_if_all_fail_the_start_raises_what_is_wrong_with_the_default_one() -> None:
    """There is nothing to serve."""
    first, second = Loading(), Loading()
    second.loaded.set_exception(ModelError("the second"))
    first.loaded.set_exception(ModelError("the first"))
    with pytest.raises(ModelError, match="the first"):
        await serving(first, second).start()


@in_loop
async def test_one_may_be_taken_out_while_it_loads_and_even_the_default_one() -> None:
    """Its load is given up; who names nothing is told what there is."""
    slow = Loading()
    service = serving(slow, Echo())
    await service.start()
    await service.drain("a")
    assert slow.closed
    assert slow.loaded.cancelled()
    assert health(service) == (200, None, ["healthy"])
    with pytest.raises(NotFound, match="there is no model 'a': served: b"):
        service.models.find()
    assert await ask(service, "/embed") == 404
    await service.close()


@in_loop
async def test_a_caller_that_gives_up_leaves_the_queue_of_its_own_model() -> None:
    """The model's batcher is idle again; the other one never heard of it."""
    service = serving(Echo(), held := Echo())
    await service.start()
    held.gate.clear()
    admitted = service.enqueue(route(service, "/models/b/embed"), Terms(), b'{"input":"x"}', lambda reply: None)
    assert admitted is not None
    before = service.is_idle
    service.cancel(admitted)
    assert (before, service.is_idle) == (False, True)
    held.gate.set()
    await service.close()
