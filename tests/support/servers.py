"""Real servers in processes of their own, started as a user starts them."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 60.0


@dataclass
class RunningServer:
    """A server that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path
    banner: str = ""  # what it printed

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and give its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)

    def children(self) -> list[int]:
        """The pids of its worker processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


async def holds_within_a_second(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in a second of looking; while the whole machine stalls none passes."""
    for _ in range(90):  # a look every 10 to 11 ms
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


def until(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Look until a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        select.select([], [], [], 0.01)


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment without any setting of carpool's."""
    settings = {
        "INFERENCE_URL",
        "PORT",
        "LOG_LEVEL",
        "RUST_LOG",
        "MAX_BATCH_SIZE",
        "MAX_WAIT_TIME",
        "MODEL_PATH",
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in settings and (not name.startswith("CARPOOL_") or name == "CARPOOL_CACHE")
    }
    return kept | dict(extra)


@contextmanager
def carpool_serve(
    folder: Path, arguments: Sequence[str] = (), extra: Mapping[str, str] = {}
) -> Iterator[RunningServer]:
    """`carpool serve` on a free port, in a folder of its own; where it listens is read off what it prints."""
    command = [sys.executable, "-m", "carpool", "serve", "--port", "0", *arguments]
    log = folder / "server.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment(extra), stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        try:
            banner, url = _printed(process, log)
            with _client(url) as client:
                yield RunningServer(str(client.base_url), process, client, log, banner)
        finally:
            process.kill()


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended may be there until somebody asks how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# How other servers are started on `carpool.main:app`, and told a port.
ASGI_SERVERS = {
    "uvicorn": [
        "uvicorn",
        "carpool.main:app",
        "--no-access-log",
        "--no-server-header",
        "--ws",
        "none",
        "--port",
        "{port}",
    ],
    "hypercorn": ["hypercorn", "carpool.main:app", "--bind", "127.0.0.1:{port}"],
    "granian": ["granian", "--interface", "asgi", "carpool.main:app", "--port", "{port}"],
}


@contextmanager
def asgi_serve(
    folder: Path, arguments: Sequence[str] = (), extra: Mapping[str, str] = {}, name: str = "uvicorn"
) -> Iterator[RunningServer]:
    """`uvicorn carpool.main:app`, or another ASGI server with it; settings come from the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module, *flags = ASGI_SERVERS[name]
    command = [sys.executable, "-m", module, *(flag.format(port=port) for flag in flags), *arguments]
    log = folder / "server.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=folder, env=environment(extra), stdout=errors, stderr=errors) as process,
    ):
        try:
            with _client(f"http://127.0.0.1:{port}") as client:
                until(lambda: process.poll() is not None or _answers(client))
                assert process.poll() is None, log.read_text()
                yield RunningServer(str(client.base_url), process, client, log)
        finally:
            process.terminate()  # granian has a worker process, which only this ends as well
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=START_SECONDS, trust_env=False)


def _printed(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """What a server says when it is ready, and where it listens."""
    assert process.stdout is not None
    printed = b""
    while not printed.endswith(b"\n") or (found := re.search(rb"where +(http://\S+)", printed)) is None:
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert chunk, f"the server did not start:\n{log.read_text()}"
        printed += chunk
    return printed.decode(), found[1].decode()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
