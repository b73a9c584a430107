"""What an upstream is: asked for where it may say so, and assumed where it does not say."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from carpool.backends.http.reply import Response
from carpool.errors import BackendError
from carpool.wire import kserve_v2, openai, tei
from carpool.wire.upstream import Description

Ask = Callable[[str], Awaitable[Response]]

logger = logging.getLogger(__name__)


def assumed(dialect: str, model: str) -> Description:
    """What an upstream is taken to be before it has been asked, or where it does not answer."""
    match dialect:
        case "openai":
            return openai.assume(model)
        case "kserve_v2":
            return kserve_v2.assume(model)
        case _:
            return Description(tei.DIALECT)


async def discover(ask: Ask, dialect: str, model: str) -> Description:
    """What the upstream says that it is; `dialect` is empty where that is to be found out as well."""
    asks = _ASKS if dialect == "" else {dialect: _ASKS[dialect]}
    for describe in asks.values():
        try:
            if (description := await describe(ask, model)) is not None:
                return description
        except BackendError as error:  # it does not know the route, or says something else there
            logger.debug("the upstream does not describe itself so", extra={"reason": str(error)})
    return assumed(dialect, model)


async def _ask_tei(ask: Ask, model: str) -> Description | None:
    return tei.describe(await _body(ask, tei.ABOUT))


async def _ask_openai(ask: Ask, model: str) -> Description | None:
    return openai.describe(await _body(ask, openai.ABOUT), model)


async def _ask_kserve(ask: Ask, model: str) -> Description | None:
    """First whether it is one at all, since a model may not be there yet."""
    kserve_v2.check(await _body(ask, kserve_v2.ABOUT))
    if not model:
        return None
    metadata = await _body(ask, kserve_v2.about(model))
    limits = await ask(kserve_v2.about_limits(model))  # Triton's own; others do not have it
    return kserve_v2.describe(model, metadata, limits.body if limits.status == 200 else b"{}")


_ASKS = {"tei": _ask_tei, "openai": _ask_openai, "kserve_v2": _ask_kserve}


async def _body(ask: Ask, path: str) -> bytes | bytearray:
    response = await ask(path)
    if response.status != 200:
        raise BackendError(f"the upstream answered {response.status} to GET {path}")
    return response.body
