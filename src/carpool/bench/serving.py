"""`carpool serve` as a user would start it, in a process of its own, for as long as it is to be measured."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from carpool.errors import CarpoolError

_START = 120.0  # seconds: a large model takes its time
_STOP = 10.0
_AGAIN = 0.05  # seconds between two looks at whether it is ready
_LAST_WORDS = 500  # characters of its log that are worth showing
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def subject(model_or_url: str) -> list[str]:
    """The flags that make it serve a model, or stand in front of an inference server."""
    if not model_or_url:
        return []
    return ["--inference-url" if "://" in model_or_url else "--model", model_or_url]


@contextmanager
def serve(arguments: Sequence[str]) -> Iterator[str]:
    """Its URL once it is ready; it ends with the context. Raises `CarpoolError` with its last words."""
    command = [sys.executable, "-m", "carpool", "serve", "--port", "0", *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            url = _read_url(process)
            if url is None or not _gets_ready(url, process):
                log.seek(0)
                words = log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
                raise CarpoolError(f"{' '.join(command[1:])} did not start", words)
            yield url
        finally:
            _stop(process)


def _read_url(process: subprocess.Popen[bytes]) -> str | None:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(rb"where +(http://\S+)", line):
            return found[1].decode()
    return None


def _gets_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _OPENER.open(f"{url}/health", timeout=_STOP).close()
        except OSError:
            time.sleep(_AGAIN)
        else:
            return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
