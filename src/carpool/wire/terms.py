"""On what terms a request travels, as HTTP headers say it in every dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from carpool.core.request import WEIGHTS
from carpool.errors import BadInput

_LONGEST_TENANT = 256  # characters: a key or a name, not a way to fill the memory
LONGEST_TIMEOUT = 3_600_000  # milliseconds


class Terms(NamedTuple):
    """Whose request it is, how large that one's share is, and within how many seconds it must be answered.

    `authorization` is what the caller proves it with, for whoever asks for that.
    """

    tenant: str = ""
    weight: float = 1.0
    timeout: float | None = None
    authorization: str = ""


def read_terms(headers: Mapping[str, str]) -> Terms:
    """The terms in the headers; `headers` is looked up by lower-case names. Raises `BadInput`.

    The tenant is `X-Tenant`, as a gateway would set it, or else the API key (`Authorization`, `X-API-Key`).
    """
    authorization = headers.get("authorization", "")
    tenant = headers.get("x-tenant") or authorization or headers.get("x-api-key") or ""
    if len(tenant) > _LONGEST_TENANT:
        raise BadInput("the tenant's name is too long", f"allowed: {_LONGEST_TENANT} characters")
    weight, timeout = _weight(headers.get("x-priority")), _timeout(headers.get("x-request-timeout-ms"))
    return Terms(tenant, weight, timeout, authorization)


def _weight(text: str | None) -> float:
    name = (text or "normal").strip().lower()
    for priority, weight in WEIGHTS.items():
        if name == priority:
            return weight
    raise BadInput(f"X-Priority {text!r} is not known", f"allowed: {', '.join(WEIGHTS)}")


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds <= LONGEST_TIMEOUT:
        raise BadInput(
            f"X-Request-Timeout-Ms {text!r} is out of range", f"allowed: more than 0, up to {LONGEST_TIMEOUT}"
        )
    return milliseconds / 1000
