"""The layers hold: what imports what is checked, and what a light install must not import is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_import_contract_holds() -> None:
    """Layers, sans-IO core, independent backends and dialects: `pyproject.toml` has the list."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (
            "carpool",
            ["aiohttp", "fastapi", "numpy", "openvino", "onnxruntime", "tokenizers", "torch", "uvicorn"],
        ),
        ("carpool.cli", ["numpy", "openvino", "onnxruntime", "tokenizers", "torch"]),
    ],
)
def test_importing_it_does_not_import(module: str, forbidden: list[str]) -> None:
    """An engine is imported where it runs, and a library user pays for no server."""
    code = f"import sys, {module}; print([name for name in {forbidden} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
