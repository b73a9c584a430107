"""What is not installed: said with the line that installs it, whether it is installed here or not."""

from __future__ import annotations

import importlib
import sys

import pytest

from carpool.errors import MissingExtra


@pytest.mark.parametrize("module", ["torch", "torch_files", "torch_text", "vision"])
def test_without_torch_its_engines_name_the_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Classifiers by name too, before torchvision is looked for."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, f"carpool.engines.{module}", raising=False)
    with pytest.raises(MissingExtra, match=r"torch is not installed: pip install 'carpool\[torch\]'"):
        importlib.import_module(f"carpool.engines.{module}")
