"""What an item costs, by the `cost` of a team's own model.

Items are priced before they queue, and a question to the worker would wait there for the batch that runs. So
`cost` is called in the server's process, which loads no model: it must be a function that can be imported by
its name, as a static method can. The worker tells the name, the server imports the function.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from numbers import Real
from typing import Any

import msgspec

from carpool.engines import payloads, results
from carpool.engines.imports import imported
from carpool.errors import BackendError, BadInput, ModelError
from carpool.wire import payload
from carpool.wire.base import Item

# Reading JSON keeps the event loop from everybody else: so many bytes take it 0.1 to 0.5 ms.
_MOST_JSON = 64 * 1024


class Price:
    """Prices one item after the other, as their callers wrote them."""

    def __init__(self, cost: Callable[[Any], float]) -> None:
        self._cost = cost
        self._per_byte = 1.0  # of the JSON that was read last

    def __repr__(self) -> str:
        return f"Price({self._cost!r})"

    def __call__(self, item: Item) -> float:
        """What an item costs. Raises `BadInput`, or `BackendError` where the model is to blame."""
        head, body = payload.unpack(item)
        if head is not None:
            return self._price(body)
        if len(item) > _MOST_JSON:
            return len(item) * self._per_byte
        price = self._price(_json(item))
        self._per_byte = price / len(item)
        return price

    def _price(self, value: Any) -> float:
        try:
            price: Any = self._cost(value)
        except Exception as error:
            if isinstance(blamed := results.blamed(error), BadInput):
                raise blamed from error
            raise _failed(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(price, Real) or not 0 <= float(price) < inf:
            raise _failed(f"returned {price!r}: expected a number, 0 or more")
        return float(price)


def name_of(model: Any) -> str:
    """The "module:name" of a model's `cost`; empty if it has none. Raises `ModelError`."""
    if (cost := getattr(model, "cost", None)) is None:
        return ""
    name = f"{getattr(cost, '__module__', '')}:{getattr(cost, '__qualname__', '')}"
    try:
        found = imported(name)
    except (ModelError, ImportError, ValueError):
        found = None
    if found is not cost:
        raise ModelError(
            f"the `cost` of {type(model).__name__} cannot be called without the model",
            "the server's process calls it, where no model is loaded: make it a @staticmethod of a class at "
            "the top of a module",
        )
    return name


def find(name: str, folder: str = "") -> Price:
    """The price by the function of this name. Raises `ModelError`."""
    try:
        return Price(imported(name, folder))
    except Exception as error:
        raise ModelError(
            f"`cost` ({name}) cannot be imported in the server's process: {type(error).__name__}", str(error)
        ) from error


def _json(item: Item) -> Any:
    """The value: an item of `/predict` is its whole body, of the other routes a text, or token ids."""
    return msgspec.json.decode(item) if item[:1] in (b'"', b"[") else payloads.read(item)


def _failed(what: str) -> BackendError:
    return BackendError("the model failed on this input", f"its cost {what}")
