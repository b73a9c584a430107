"""What a model returns, as the JSON that its caller gets. It knows arrays by what they offer, and not torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from carpool.errors import BadInput, CarpoolError

_orjson: Any = None
with suppress(ImportError):  # a model that returns no arrays does without
    import orjson as _orjson


def rows(returned: Any) -> list[Any]:
    """The results of a batch in order: a list, or the rows of an array or a tensor."""
    returned = as_array(returned)
    if isinstance(returned, (str, bytes, dict, set)) or not hasattr(returned, "__iter__"):
        raise TypeError(f"the model returned {type(returned).__name__}: expected one result for each input")
    return list(returned)


def as_array(value: Any) -> Any:
    """A tensor as a numpy array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def encoded(result: Any, what: Callable[[Any], bytes]) -> bytes | Exception:
    """One result as `what` writes it, or what was wrong with it: an exception in its place is that item's."""
    if isinstance(result, Exception):
        return blamed(result)
    try:
        return what(result)
    except FloatingPointError as error:
        return error
    except Exception as error:
        return TypeError(f"the result cannot be written as JSON: {error}")


def blamed(error: Exception) -> Exception:
    """What an exception says of an item: of these kinds it is the input's fault, which its caller is told.

    Carpool's own errors say themselves whose fault they are: that Pillow is missing is no caller's.
    """
    kinds = (ValueError, TypeError, LookupError, AttributeError)
    if isinstance(error, CarpoolError) or not isinstance(error, kinds):
        return error
    return BadInput(f"the model does not take this input: {type(error).__name__}", str(error))


def not_finite() -> Exception:
    """What is wrong with numbers that no dialect has a word for, and that break a client's arithmetic."""
    return FloatingPointError("the model returned NaN or infinity")


def to_json(value: Any) -> bytes:
    """Any JSON value, with arrays, tensors and numpy's numbers in it."""
    if _orjson is None:
        return msgspec.json.encode(value, enc_hook=_plain)
    written: bytes = _orjson.dumps(value, _plain, _orjson.OPT_SERIALIZE_NUMPY | _orjson.OPT_NON_STR_KEYS)
    return written


def to_finite_json(value: Any) -> bytes:
    """The same, but NaN and infinity are an error and not null. It takes several times as long."""
    written = to_json(value)
    try:
        json.dumps(value, allow_nan=False, default=_plain, skipkeys=True)
    except ValueError:
        raise not_finite() from None
    except TypeError:  # it knows fewer types than the other
        pass
    return written


def _plain(value: Any) -> Any:
    value = as_array(value)  # a tensor; or an array that is not contiguous, or of an odd type
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return value.tolist()
