"""A proxy in front of upstreams that can be told how to misbehave, killed and started again."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from carpool.config import ModelSettings
from tests.support.servers import RunningServer, carpool_serve, until

ROOT = Path(__file__).parents[3]
# Whether `--inference-url` may be given several times.
SEVERAL = not isinstance(ModelSettings().inference_url, str)
# A batch that gets no reply ends after a second, so that a scenario takes no longer.
PATIENCE = "--batch-timeout-ms", "1000", "--queue-timeout-ms", "3000"


class Misbehaving:
    """One upstream process, always on the same port."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Run it; it is well, and listens when this returns."""
        command = [sys.executable, "-m", "tests.e2e.chaos.misbehaving", str(self._port)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._port = self._read_number()

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        self._process.kill()
        self._process.communicate()

    async def restart(self) -> None:
        """Killed and started again. The event loop goes on meanwhile."""
        self.kill()
        await asyncio.to_thread(self.start)

    def behave(self, *ways: str) -> int:
        """Treat every batch from now on in one of these ways; how many were treated in the ways before."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{' '.join(ways)}\n".encode())
        self._process.stdin.flush()
        return self._read_number()

    def _read_number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@dataclass(frozen=True)
class World:
    """The proxy and what is behind it."""

    proxy: RunningServer
    upstreams: list[Misbehaving]

    @property
    def victims(self) -> list[Misbehaving]:
        """Those that get into trouble: the only one, or two of three."""
        return self.upstreams[:2]

    def check_rest(self) -> None:
        """Nothing waits and nothing runs, once nobody calls."""
        until(lambda: self._gauges() == {"queue_items": 0.0, "batches_in_flight": 0.0}, 5)

    def check_log(self) -> None:
        """Nothing went wrong inside carpool itself."""
        assert self.proxy.process.poll() is None
        log = self.proxy.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]

    def _gauges(self) -> dict[str, float]:
        text = self.proxy.client.get("/metrics").text
        found = re.findall(r"^carpool_(queue_items|batches_in_flight)\{[^}]*\} (\S+)$", text, re.MULTILINE)
        sums: dict[str, float] = {}
        for name, value in found:
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums


@contextmanager
def run_world(folder: Path, count: int) -> Iterator[World]:
    """`carpool serve` in front of so many upstreams."""
    with ExitStack() as stack:
        upstreams = []
        for _ in range(count):
            upstreams.append(Misbehaving())
            stack.callback(upstreams[-1].kill)
        flags = [word for upstream in upstreams for word in ("--inference-url", upstream.url)]
        yield World(stack.enter_context(carpool_serve(folder, [*flags, *PATIENCE])), upstreams)
