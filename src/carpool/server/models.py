"""The models of one server: which of them a request is for, and the life of each, which is its own.

A model that is loading, has failed or leaves concerns no other. It knows no HTTP and no dialect.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from carpool.backends.base import Backend
from carpool.engines import pricing
from carpool.errors import NotFound, Unavailable
from carpool.runtime.batcher import Batcher
from carpool.server.passthrough import PassThrough
from carpool.wire.base import EncodedJson, Payload

logger = logging.getLogger(__name__)

OWN = "/models/"  # on which paths a model has what is its own: all under its name

_LOADING = "it is loading"

# A load that fails takes as long as one that does not, and mostly waits for an operator.
_FIRST_PAUSE = 1.0  # seconds until it is tried again; doubled each time
_LONGEST_PAUSE = 60.0


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model with its queue. Items and results are JSON.

    `cost` prices an item, where items are not alike; a model may bring its own, known once it is loaded. With
    `dedupe`, equal items that wait or run at the same time are computed once. What it `takes` at `/predict` is
    a text, or any data, of which only it knows more. `alias` is what its settings call it, where they give it
    no name. `passthrough` is there in front of an upstream, for what is not served here. With
    `tells_callers_apart`, only those with the same credentials travel together, and the upstream gets to see
    them. `lend` is there where workers can read an item where it was received: it gives room for so many bytes,
    if there is any and they are enough to be worth it.
    """

    name: str
    title: str
    batcher: Batcher[bytes, EncodedJson]
    backends: Sequence[Backend[bytes, EncodedJson]]
    cost: Callable[[Any], float] | None = None
    dedupe: bool = True
    takes: Payload = "text"
    alias: str = ""
    passthrough: PassThrough | None = None
    tells_callers_apart: bool = False
    lend: Callable[[int], memoryview | None] | None = None

    def told(self) -> dict[str, Any]:
        """What its backends say of themselves, where they do: the worker process of what it has loaded."""
        for backend in self.backends:
            if info := getattr(backend, "info", None):
                return dict(info)
        return {}

    async def load(self) -> None:
        """Get it ready, prices included; it may be tried again where it raises."""
        try:
            await self.batcher.start()
            if name := self.told().get("cost"):
                self.cost = await asyncio.to_thread(pricing.find, name, os.getcwd())  # others are served
        except Exception:
            for backend in self.backends:
                await backend.close()
            raise

    def names(self) -> list[str]:
        """What callers may call it: its own name, and what its settings or its upstreams call it."""
        theirs = [getattr(getattr(backend, "description", None), "model", "") for backend in self.backends]
        return list(dict.fromkeys(filter(None, [self.name, self.alias, *theirs])))

    def serves(self, name: str) -> bool:
        """Whether a name means it where it is the only one. A local model answers to any."""
        return self.passthrough is None or name == self.name or name in self.names()

    def trouble(self) -> str | None:
        """Why it cannot serve right now, in words; one backend that is well is enough."""
        troubles = [backend.trouble() for backend in self.backends]
        return "; ".join(filter(None, troubles)) if all(troubles) else None


class Models:
    """Those that are served, the default one first. `start`, then `find`, then `close`."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._default = models[0]
        self._served = {model.name: model for model in models}
        self.only = models[0] if len(models) == 1 else None
        self._unready: dict[str, str] = {}  # why a model has not started, by its name
        self._loading: set[str] = set()  # the names of those whose first try has not ended
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._leaving: list[ServedModel] = []
        self._passthroughs = [model.passthrough for model in models if model.passthrough is not None]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(list(self._served.values()))

    @property
    def default(self) -> ServedModel:
        """The one for requests that name none."""
        return self._default

    def find(self, name: str = "") -> ServedModel:
        """The model that a name means, its own before an upstream's; the default one where there is no name.

        Raises `NotFound`.
        """
        name = name or self._default.name
        found = self._served.get(name) or next((model for model in self if name in model.names()), None)
        if found is None:
            raise self.not_found(f"there is no model '{name}'")
        return found

    def not_found(self, message: str) -> NotFound:
        """What a caller is told who names a model that is not served."""
        return NotFound(message, f"served: {', '.join(self._served)}")

    def names(self) -> list[str]:
        """All that callers may call one of them."""
        return list(dict.fromkeys(name for model in self for name in model.names()))

    def under(self, path: str) -> ServedModel | None:
        """The model whose name a path has behind `/models/`, or `/v2/models/`."""
        rest = path.removeprefix("/v2").removeprefix(OWN) + "/"
        return next((model for model in self if rest.startswith(f"{model.name}/")), None)

    def refusal(self, model: ServedModel) -> Unavailable | None:
        """What callers of a model that has not started are told."""
        if model.name in self._loading:
            return Unavailable(f"the model '{model.name}' is loading", "come back in a moment", retry_after=1)
        if model.name in self._unready:
            why = f"{OWN}{model.name}/health says why"  # an operator's paths, for instance: nothing for callers
            return Unavailable(f"the model '{model.name}' could not be loaded", why)
        return None

    def behind(self, path: str) -> tuple[PassThrough | None, str]:
        """Who answers a path that no route does, if anybody, and what of its beginning is not for them.

        A model's upstreams have all that is under its `/models/NAME/`; those of the default one have the rest,
        but for the paths that name a model when there are several.
        """
        named = self.under(path) if path.startswith(OWN) else None
        if named is not None:
            return named.passthrough, f"{OWN}{named.name}"
        if self.only is None and path.startswith((OWN, f"/v2{OWN}")):
            return None, ""
        is_served = self._default.name in self._served
        return self._default.passthrough if is_served else None, ""

    async def start(self) -> None:
        """Get all of them ready; returns once one is, and raises what is wrong with the first if none can be.

        The others go on to load in the background; what fails is tried again, with growing pauses.
        """
        errors: dict[str, BaseException] = {}
        settled = asyncio.Event()
        for model in self:
            self._unready[model.name] = _LOADING
            self._loading.add(model.name)
            self._loads[model.name] = asyncio.create_task(self._load(model, errors, settled))
        await settled.wait()
        if len(errors) == len(self._served):
            raise errors[self._default.name]

    def loading(self) -> list[str]:
        """The names of those that are loading for the first time."""
        return [model.name for model in self if model.name in self._loading]

    def unready(self, name: str) -> str | None:
        """Why a model has not started, if it has not."""
        return self._unready.get(name)

    def trouble(self, model: ServedModel) -> str | None:
        """Why a model cannot serve right now, in words."""
        return self.unready(model.name) or model.trouble()

    @property
    def is_idle(self) -> bool:
        """Whether everything admitted has been answered."""
        return all(model.batcher.is_idle for model in (*self, *self._leaving))

    async def drain(self, name: str) -> None:
        """Take a model out of service: nothing new is for it, and what it has is answered."""
        model = self._served.pop(name)
        self._leaving.append(model)
        await self._end(model)
        self._leaving.remove(model)

    async def close(self) -> None:
        """Answer everything admitted, then let them go."""
        await asyncio.gather(*(self._end(model) for model in (*self, *self._leaving)))
        for passthrough in self._passthroughs:
            await passthrough.close()

    async def _load(self, model: ServedModel, errors: dict[str, BaseException], settled: asyncio.Event) -> None:
        """Load a model; where there are others to be served meanwhile, until it can be loaded."""
        pause = _FIRST_PAUSE
        while not await self._is_loaded(model, errors, settled) and self.only is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _is_loaded(
        self, model: ServedModel, errors: dict[str, BaseException], settled: asyncio.Event
    ) -> bool:
        """Try it once."""
        try:
            await model.load()
        except Exception as error:
            errors[model.name] = error
            if self.only is None and self._unready[model.name] != str(error):
                logger.error("a model cannot be loaded", extra={"model": model.name, "reason": str(error)})
            self._unready[model.name] = str(error)
        else:
            errors.pop(model.name, None)
            del self._unready[model.name]
            policy, slots = str(model.batcher.policy), model.batcher.statistics().slots
            shown = model.title if self.only else f"{model.name}: {model.title}"
            logger.info("serving", extra={"model": shown, "policy": policy, "slots": slots})
        finally:
            self._loading.discard(model.name)
            if model.name not in errors or len(errors) == len(self._served):
                settled.set()
        return model.name not in errors

    async def _end(self, model: ServedModel) -> None:
        if (load := self._loads.pop(model.name, None)) is not None:
            load.cancel()
            await asyncio.wait([load])
        await model.batcher.close()
