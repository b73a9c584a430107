"""The process that listens: uvicorn, with a shutdown that answers everything it has admitted."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Protocol

import uvicorn

from carpool import memory
from carpool.errors import ConfigError
from carpool.server.app import create_app
from carpool.server.fast_lane import fast_lane
from carpool.server.routes import batched_routes
from carpool.server.service import Service

_KEEP_ALIVE_SECONDS = 75  # longer than the 60 s after which common load balancers drop an idle connection
_LINGER_SECONDS = 5  # at shutdown, for clients that are in the middle of sending or reading
_BACKLOG = 2048
_YOUNG_OBJECTS = 20_000  # after which garbage is searched for: a few ms of work, and some 10 MB


class Server(uvicorn.Server):
    """uvicorn's server. The first signal drains it, the second ends the process at once."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready
        self._stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come. While what was admitted is answered, the port stays open for `/health`."""
        if self._stopping:
            os._exit(128 + sig)  # what a shell expects of a process that a signal ended
        self._stopping = True
        self._service.stop_accepting()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn asks ten times a second: whether to stop."""
        if self._stopping and self._service.is_idle:
            self.should_exit = True
        return await super().on_tick(counter)


@asynccontextmanager
async def _followed(follower: Follower) -> AsyncIterator[None]:
    following = asyncio.create_task(follower.follow())
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@contextmanager
def _cancelled_by(number: int) -> Iterator[None]:
    """Where this signal comes, what the task does meanwhile is ended in good order."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises `ConfigError` where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}", "choose another --host or --port"
        ) from None
    return listener


def _collect_less_garbage() -> None:
    """Leave out of each search for garbage what has been loaded by now, and search less often.

    Requests and batches are freed by their reference counts; what the searches cost, 7 to 10 % of the CPU of a
    small request, is nearly all for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


class Follower(Protocol):
    """Keeps the service to its settings while they change."""

    def ask(self) -> None:
        """SIGHUP has come: look at them now."""
        ...

    async def follow(self) -> None:
        """Look after them until cancelled."""
        ...


def serve(service: Service, listener: socket.socket, on_ready: Callable[[], None], follower: Follower) -> None:
    """Serve until a signal; returns when everything admitted has been answered.

    Raises `ConfigError` if a model cannot be started.
    """
    config = uvicorn.Config(
        create_app(service),
        http=fast_lane(service, batched_routes(service)),
        ws="none",  # none are served, whichever library for them happens to be installed
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LINGER_SECONDS,
    )

    async def main() -> None:
        with suppress(AttributeError, NotImplementedError):  # Windows has no such signal
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, follower.ask)
        with _cancelled_by(signal.SIGTERM):
            await service.start()  # before uvicorn does, which would hide in a traceback what is wrong
            _collect_less_garbage()
            memory.keep()  # of large bodies: to map it anew was a third of the CPU time of one of 3 MB
        async with _followed(follower):
            await Server(config, service, on_ready).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        try:
            runner.run(main())
        except asyncio.CancelledError:  # there was nothing to drain yet
            sys.exit(128 + signal.SIGTERM)
