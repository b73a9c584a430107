"""The servers that are compared: what each needs, how it is started, and which processes are it.

It knows nothing of loads and figures. Each peer has a virtual environment of its own under build/peers/, made
when it is first needed. All servers run at the same time, but only one is awake, as some poll while
they have nothing to do.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
LAST_WORDS = 800  # characters of a log that are worth showing
BATCH = 32  # carpool's default
# How long a peer may wait for more. A model that takes no time gains nothing from it, so it is as short as all
# of them can have it; their documentation and defaults have 5 to 10 ms for models that do.
WAIT_MS = {"noop": 1, "minilm": 5}

_MOSEC_FLAGS = ("--address", "127.0.0.1", "--log-level", "warning", "--timeout", "30000")
_UVICORN = ("-m", "uvicorn", "--log-level", "warning", "--no-access-log", "--port", "{port}")


@dataclass(frozen=True)
class Peer:
    """How a server is installed and run. `dialect` and `path` are for the load generator."""

    name: str
    environment: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str = "/predict"
    batch: int = BATCH

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ENVIRONMENTS / self.environment / "bin" / "python"


_FASTAPI = ("fastapi", "uvicorn[standard]", "batched==0.1.5")
PEERS = (
    Peer(
        *("mosec", "mosec", ("mosec==0.9.8",)),
        ("benchmarks/peers/mosec_server.py", "--port", "{port}", *_MOSEC_FLAGS),
    ),
    Peer("litserve", "litserve", ("litserve==0.2.19",), ("benchmarks/peers/litserve_server.py", "{port}")),
    Peer("FastAPI + batched", "fastapi", _FASTAPI, (*_UVICORN, "benchmarks.peers.fastapi_server:app")),
    Peer("FastAPI", "fastapi", _FASTAPI, (*_UVICORN, "benchmarks.peers.fastapi_server:app"), batch=1),
    Peer(
        # It asks for any torch; without the version pip would fetch several GB of CUDA.
        *("smartbatch", "smartbatch", ("smartbatch==0.4.0", "torch==2.13.0", "uvloop", "httptools")),
        (*_UVICORN, "benchmarks.peers.smartbatch_server:app"),
        "/models/peer/predict",
    ),
)


class NotInstalled(Exception):
    """Its packages cannot be had."""


class DidNotStart(Exception):
    """With its last words."""


@dataclass(frozen=True)
class Server:
    """A running server, and what it answers at `url`."""

    name: str
    url: str
    process: psutil.Process

    @property
    def processes(self) -> list[psutil.Process]:
        """All that are it."""
        return [self.process, *self.process.children(recursive=True)]

    def sleep(self) -> None:
        """Use nothing until it is woken."""
        for process in self.processes:
            process.suspend()

    def wake(self) -> None:
        """Go on."""
        for process in reversed(self.processes):
            process.resume()

    def cpu_seconds(self) -> float:
        """User and system time so far of the processes that it has."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def ask(self, body: Mapping[str, str]) -> Any:
        """Its answer to one request: a number, or a vector."""
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=START_SECONDS) as reply:
            answer = json.load(reply)
        return answer["embedding"] if "embedding" in answer else answer["result"]


def install(peer: Peer, case: str) -> dict[str, str]:
    """Have its environment, and say which version of everything asked for is there. Raises `NotInstalled`."""
    needs = list(peer.packages)
    if case != "noop":  # they run carpool's own engine
        needs.append(f"{ROOT}[local]")
    folder = ENVIRONMENTS / peer.environment
    stamp = folder / f"{case}.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != needs:
        print(f"installing {peer.environment} into {folder}", file=sys.stderr, flush=True)
        _pip(folder, needs)
        stamp.write_text(json.dumps(needs))
    return _versions(peer)


def _pip(folder: Path, needs: Sequence[str]) -> None:
    editable = [part for need in needs for part in (("--editable", need) if need.startswith("/") else (need,))]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        subprocess.run([*pip, "install", "-qq", "--disable-pip-version-check", *editable], check=True)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"{' '.join(needs)}: {error}") from None


def _versions(peer: Peer) -> dict[str, str]:
    names = [package.split("==")[0].split("[")[0] for package in peer.packages]
    found = f"{{name: version(name) for name in {names}}}"
    script = f"import json; from importlib.metadata import version; print(json.dumps({found}))"
    printed = subprocess.run([peer.python, "-c", script], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(printed)
    return versions


@contextmanager
def run_peer(peer: Peer, case: str) -> Iterator[Server]:
    """A peer, awake until the first request is answered."""
    port = _free_port()
    command = [str(peer.python), *(part.format(port=port) for part in peer.command)]
    settings = {"CASE": case, "BATCH": str(peer.batch), "WAIT_MS": str(WAIT_MS[case])}
    with _run(peer.name, command, f"http://127.0.0.1:{port}{peer.path}", settings, {"data": "ready"}) as server:
        yield server


@contextmanager
def run_carpool(case: str) -> Iterator[Server]:
    """`carpool serve` by this interpreter, with its defaults."""
    port = _free_port()
    model, path, field = {
        "noop": ("benchmarks.peers.model:Noop", "/predict", "data"),
        "minilm": ("minilm", "/embed", "input"),
    }[case]
    command = [sys.executable, "-m", "carpool", "serve", "--port", str(port), "--model", model]
    with _run("carpool", command, f"http://127.0.0.1:{port}{path}", {}, {field: "ready"}) as server:
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _run(
    name: str, command: Sequence[str], url: str, settings: Mapping[str, str], body: Mapping[str, str]
) -> Iterator[Server]:
    """A program in an empty folder until the block ends; it and all its children are then gone."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    command = [str(ROOT / part) if part.endswith("_server.py") else part for part in command]
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+b") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": paths, **settings}, stdout=log, stderr=log
        )
        server = Server(name, url, psutil.Process(process.pid))
        try:
            if not _gets_ready(server, process, body):
                log.seek(0)
                raise DidNotStart(f"{name}: {log.read().decode(errors='replace').strip()[-LAST_WORDS:]}")
            yield server
        finally:
            _stop(server, process)


def _gets_ready(server: Server, process: subprocess.Popen[bytes], body: Mapping[str, str]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.ask(body)
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        everything = server.processes
        server.wake()
        process.terminate()
        for left in psutil.wait_procs(everything, STOP_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    process.wait()
