"""What a SPEC means."""

from __future__ import annotations

from pathlib import Path

import pytest

from carpool.errors import ModelError
from carpool.models.spec import resolve


def test_a_directory_holds_a_text_model(tmp_path: Path) -> None:
    """As before."""
    local = resolve(str(tmp_path), "onnxruntime")
    assert local.arguments == {"directory": str(tmp_path), "engine": "onnxruntime"}
    assert local.takes == "text"


def test_a_python_name_is_looked_for_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told where that was."""
    monkeypatch.chdir(tmp_path)
    local = resolve("package.module:Model")
    assert local.arguments == {"target": "package.module:Model", "folder": str(tmp_path)}
    assert local.takes == "data"


@pytest.mark.parametrize("spec", ["no-such", "a b:c", "module:", "/no/such/folder"])
def test_anything_else_is_refused_with_what_is_allowed(spec: str) -> None:
    """Nothing is imported to find out."""
    with pytest.raises(
        ModelError, match=r"is no name, directory, file or Python .*allowed: minilm, a directory"
    ):
        resolve(spec)
