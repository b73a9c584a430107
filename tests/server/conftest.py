"""What the tests of the server share: a folder with models in Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import own_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `carpool serve` finds `own_models`, as a team's own models are in the current folder."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(own_models.__file__, folder)
    return folder
