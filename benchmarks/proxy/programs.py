"""The programs that are measured, and what stands behind them, each pinned to a core.

It knows how each is started and which processes are it, and nothing of loads and figures.

Of two cores the proxy under test has one to itself; upstream, load generator and this program share the other.
So the proxy never migrates, never waits for what it serves, and its CPU time is that of a busy core with warm
caches, as a proxy in production would have it. Whatever else runs on the machine may still land there: that is
what the column of the others is for.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PROXY_CORE, OTHER_CORE = 0, 1
START_SECONDS = 30.0
DEVICE = Path(__file__).parent.parent / "device.py"

# What the proxies are compared for is forwarding: no access log, connections to the upstream kept, bodies and
# replies (12 KB at 1024 floats) in memory. One worker, since carpool has one process.
NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream device {{
    server {device};
    keepalive 512;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://device;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffer_size 16k;
      proxy_buffers 8 16k;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Program:
    """Something that answers `POST /embed` at `url`; it has no `processes` where no proxy is between."""

    name: str
    url: str
    processes: tuple[psutil.Process, ...] = ()


def pin_this_process() -> None:
    """Leave the proxy's core alone."""
    os.sched_setaffinity(0, {OTHER_CORE})


@contextmanager
def run_device(a_ms: float, c_ms: float, slots: int, floats: int) -> Iterator[Program]:
    """The synthetic upstream of device.py."""
    costs = "--a-ms", str(a_ms), "--c-ms", str(c_ms)
    command = [sys.executable, str(DEVICE), *costs, "--slots", str(slots), "--floats", str(floats)]
    with _run(command, OTHER_CORE, r"(http://\S+)") as (url, process):
        yield Program("upstream", url, (process,))


@contextmanager
def run_carpool(name: str, python: str, device: Program, *flags: str) -> Iterator[Program]:
    """`carpool serve` in front of the device, run by any interpreter that has it installed."""
    command = [python, "-m", "carpool", "serve", "--port", "0", "--inference-url", device.url, *flags]
    mine = {} if python == sys.executable else {"PYTHONPATH": ""}  # what another has is in its site-packages
    with _run(command, PROXY_CORE, r"where +(http://\S+)", mine) as (url, process):
        _wait_until_healthy(url)
        yield Program(name, url, (process,))


@contextmanager
def run_nginx(device: Program) -> Iterator[Program]:
    """nginx, which forwards each request as it comes."""
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        file = Path(folder, "nginx.conf")
        file.write_text(NGINX.format(folder=folder, port=port, device=device.url.removeprefix("http://")))
        command = [nginx, "-e", f"{folder}/error.log", "-c", str(file)]
        with _run(command, PROXY_CORE) as (_, process):
            _wait_until_healthy(url := f"http://127.0.0.1:{port}")
            yield Program("nginx", url, (process, *process.children()))


@contextmanager
def _run(
    command: Sequence[str], core: int, printed: str = "", extra: Mapping[str, str] = {}
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a program in a folder of its own until the block ends; what it prints says where it listens."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open(f"{folder}/errors", "w+b") as errors,
        subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            cwd=folder,
            env={**os.environ, **extra},
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            url = _find(printed, process.stdout) if printed else ""
            if url is None:
                errors.seek(0)
                raise SystemExit(f"{' '.join(command)} did not start:\n{errors.read().decode()}")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _find(pattern: str, lines: Iterator[bytes]) -> str | None:
    for line in lines:
        if found := re.search(pattern, line.decode()):
            return found[1]
    return None


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url + "/health", timeout=START_SECONDS).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
