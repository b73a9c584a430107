"""From `package.module:name` to what it names."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from carpool.errors import ModelError


def imported(target: str, folder: str = "") -> Any:
    """What `package.module:name` is; `folder` is where to look for it first. Raises `ModelError`."""
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise ModelError(
            f"there is no module {module!r}", "looked in the current directory and where Python looks"
        ) from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise ModelError(f"{target} does not exist", f"{name!r} is not in {found!r}")
        found = getattr(found, name)
    return found
