"""However a server ends, nothing of it is left behind: its workers hold memory, and a GPU."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.support.servers import carpool_serve, environment, is_running, until

MODEL = """
import os, pathlib, subprocess, threading

class Hangs:
    def predict(self, inputs):
        program = subprocess.Popen(["sleep", "1000"])
        pathlib.Path("pids").write_text(f"{os.getpid()} {program.pid} ")
        threading.Event().wait()

class Loads(Hangs):
    def load(self, device):
        self.predict([])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def pids(folder: Path) -> list[int]:
    """Those of a worker that hangs, and of what it has started."""
    file = folder / "pids"
    until(lambda: file.exists() and file.read_text().endswith(" "))
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_worker_that_hangs_does_not_outlive_its_server(folder: Path, is_killed: bool) -> None:
    """Neither one that is killed, nor one that is told twice to stop."""
    with carpool_serve(folder, ["--model", "model:Hangs"]) as server:
        asking = Thread(target=_ask, args=(server.url,))
        asking.start()
        left = pids(folder)
        if not is_killed:
            server.process.send_signal(signal.SIGINT)
            until(lambda: server.client.get("/health").status_code == 503)
        server.process.send_signal(signal.SIGKILL if is_killed else signal.SIGINT)
        server.process.wait(10)
        until(lambda: not any(map(is_running, left)), 20)
        asking.join()


def _ask(url: str) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{url}/predict", json={"data": 1}, timeout=60, trust_env=False)


def test_a_server_that_is_stopped_while_it_loads_ends_its_workers_first(folder: Path) -> None:
    """At once; SIGHUP does not stop it, now or later."""
    command: list[Any] = [sys.executable, "-m", "carpool", "serve", "--port", "0", "--model", "model:Loads"]
    with subprocess.Popen(command, cwd=folder, env=environment()) as server:
        try:
            left = pids(folder)
            server.send_signal(signal.SIGHUP)
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 128 + signal.SIGTERM
            until(lambda: not any(map(is_running, left)), 1)
        finally:
            server.kill()
