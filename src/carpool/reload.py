"""Settings that change while the server runs: upstreams come and go, models go, the rest needs a restart.

It reads the settings as at the start when it is asked to, or when the settings file has changed, and knows
neither signals nor HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from carpool.assemble import Upstreams
from carpool.backends.http import HttpBackend
from carpool.config import Config, differences
from carpool.errors import ConfigError
from carpool.server.service import Service

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two looks at the file; one that is being written has changed again by then

Stamp = tuple[int, int, int] | None


class Reload:
    """Follows the settings. `read` gives those that hold now, and raises `ConfigError`.

    `upstreams` are those of each proxied model of the service.
    """

    def __init__(
        self,
        config: Config,
        file: Path,
        read: Callable[[], Config],
        service: Service,
        upstreams: Mapping[str, Upstreams],
    ) -> None:
        self._config = config  # what the server was started with
        self._file = file
        self._read = read
        self._service = service
        self._upstreams = upstreams
        self._asked = asyncio.Event()
        self._known = self._seen = _stamp(file)

    def ask(self) -> None:
        """Read the settings again, whether or not the file has changed."""
        self._asked.set()

    async def follow(self) -> None:
        """Do so whenever there is reason to, until cancelled."""
        async with asyncio.TaskGroup() as drains:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), _LOOK_SECONDS)
                if self._asked.is_set() or self._has_changed():
                    self._asked.clear()
                    self._known = self._seen = _stamp(self._file)
                    try:
                        await self._apply(drains)
                    except ConfigError as error:
                        logger.error("the settings were not reloaded", extra={"error": str(error)})
                    except Exception:  # the server goes on as it is
                        logger.exception("the settings were not reloaded")

    def _has_changed(self) -> bool:
        """Whether the file is another than the one that was read, and nobody is writing it any more."""
        before, self._seen = self._seen, _stamp(self._file)
        return self._seen == before != self._known

    async def _apply(self, drains: asyncio.TaskGroup) -> None:
        config = self._read()
        served = {model.name for model in self._service.models}
        kept = served & config.models.keys()
        changed = differences(self._config, config)
        changed |= {(name, "") for name in config.models.keys() - served}
        for name in kept & self._upstreams.keys():
            if urls := config.models[name].inference_url:
                changed.discard((name, "inference_url"))
                await self._change_upstreams(self._upstreams[name], urls, drains)
        for name in served - kept if kept else ():
            drains.create_task(self._drain_model(name))
        if changed:
            shown = sorted(_shown(table, key, len(config.models) > 1) for table, key in changed)
            logger.warning("changed settings need a restart", extra={"settings": shown})

    async def _drain_model(self, name: str) -> None:
        with _told("model", "a model could not be let go", model=name):
            await self._service.drain(name)

    async def _change_upstreams(
        self, upstreams: Upstreams, urls: tuple[str, ...], drains: asyncio.TaskGroup
    ) -> None:
        """First those that come, then those that go: there is one at every moment."""
        before = upstreams.urls
        for url in urls:
            if url not in before:
                upstream = await upstreams.add(url)
                logger.info("upstream added", extra={"url": upstream.name})
        for url in before:
            if url not in urls:
                drains.create_task(self._drain(upstreams, upstreams.take(url)))

    async def _drain(self, upstreams: Upstreams, upstream: HttpBackend) -> None:
        with _told("upstream", "an upstream could not be released", url=upstream.name):
            await upstreams.release(upstream)


@contextlib.contextmanager
def _told(what: str, failure: str, **about: str) -> Iterator[None]:
    """Tell the log of something that leaves. If that fails it is told too, and must not end the others."""
    logger.info("%s leaves", what, extra=about)
    try:
        yield
    except Exception:
        logger.exception(failure, extra=about)
    else:
        logger.info("%s removed", what, extra=about)


def _shown(table: str, key: str, has_several: bool) -> str:
    """A setting as the log names it: with its model where there are several."""
    if not key or (has_several and table != "server"):
        return f"models.{table}.{key}".rstrip(".")
    return key


def _stamp(file: Path) -> Stamp:
    """What changes when a file does; a mounted one is another file then, behind a link."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
