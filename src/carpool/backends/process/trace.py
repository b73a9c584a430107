"""An exception as the text that goes to where it is logged: where in a model's own code it came from."""

from __future__ import annotations

import importlib
import os
import traceback
from pathlib import Path

from carpool.errors import Raised

_FRAMES = 30  # the innermost: of a recursion without end, more would say nothing new
_MOST = 4096  # characters

# Above every model's frames are carpool's and those of the import system; which file failed is not in them.
_NOISE = (f"{Path(__file__).parents[2]}{os.sep}", importlib.__file__, "<frozen importlib")


def raised(error: BaseException) -> Raised:
    """What there is to tell of an exception in another place."""
    return Raised(type(error).__name__, str(error), formatted(error))


def formatted(error: BaseException) -> str:
    """Its traceback, without frames of carpool's if there are others; empty if it was never raised.

    A long one loses its middle: the end names the line that raised, unless the message alone is that long.
    """
    if error.__traceback__ is None:
        return ""
    try:
        text = _formatted(error).encode(errors="replace").decode()  # a message may be no Unicode
    except Exception as failure:  # it reads what a model may have put into its exception
        return f"the traceback cannot be had: {type(failure).__name__}"
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]}\n...\n{text[-_MOST // 2 :]}"


def _formatted(error: BaseException) -> str:
    whole = traceback.TracebackException.from_exception(error, limit=-_FRAMES)
    each: traceback.TracebackException | None = whole
    while each is not None:
        own = [frame for frame in each.stack if not frame.filename.startswith(_NOISE)]
        each.stack = traceback.StackSummary.from_list(own or each.stack)
        each = each.__cause__ or each.__context__
    return "".join(whole.format()).rstrip()
