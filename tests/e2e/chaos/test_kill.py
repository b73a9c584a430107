"""`kill -9` of a worker again and again while callers call: wrong answers, hangs and errors are counted.

`CARPOOL_KILLS=100` for the long form.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from carpool.engines.tokenize import TextTokenizer, read_tokenizer
from tests.e2e.chaos.callers import Callers, Record
from tests.e2e.chaos.test_chaos import served_since
from tests.engines import tiny_onnx
from tests.support.servers import RunningServer, carpool_serve, until

CALLERS = 16
KILLS = int(os.environ.get("CARPOOL_KILLS", "5"))  # each as soon as both are well: within a second
MOST_ERRORS = 0.001
RECOVERY_SECONDS = 10.0  # loading a model twice, on a machine with other things to do


class Table:
    """What the tiny model answers, computed beside it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows = tiny_onnx.table()

    def is_right(self, text: str, answer: Any) -> bool:
        """Whether a vector is that of the text."""
        (ids,) = self._tokenizer.ids([text])
        mean = self._rows[ids].mean(axis=0)
        return bool(np.allclose(answer["embedding"], mean / np.linalg.norm(mean), atol=1e-5))


def test_killing_a_worker_again_and_again_costs_nobody_an_answer(minilm_dir: Path, tmp_path: Path) -> None:
    """With two of them nearly everybody is answered; nobody waits for ever or gets another's answer."""
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(minilm_dir / "tokenizer.json", model)
    (model / "model.onnx").write_bytes(tiny_onnx.token_states())
    table = Table(read_tokenizer(model))
    arguments = ["--model", str(model), "--engine", "onnxruntime", "--replicas", "2", "--max-batch-size", "8"]
    with carpool_serve(tmp_path, arguments) as server:
        record = asyncio.run(_kill_while_called(server, table))
        assert not record.faults, f"{len(record.faults)} faults of {record.requests}: {record.faults[:3]}"
        errors = record.requests - record.statuses[200]
        assert errors <= MOST_ERRORS * record.requests, record.statuses
        assert server.stop() == 0


async def _kill_while_called(server: RunningServer, table: Table) -> Record:
    loop = asyncio.get_running_loop()
    async with Callers(server.url, "kill", CALLERS, table.is_right) as record:
        await served_since(record, loop.time(), RECOVERY_SECONDS)
        for _ in range(KILLS):
            pid = _oldest(server.children())
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(until, partial(_is_replaced, server, pid), RECOVERY_SECONDS)
        await served_since(record, loop.time(), RECOVERY_SECONDS)
    return record


def _oldest(pids: list[int]) -> int:
    """The one that has served longest, so that they die in turn."""
    return min(pids, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))


def _is_replaced(server: RunningServer, pid: int) -> bool:
    """Whether there are two workers again without that one, and both are well."""
    if len(set(server.children()) - {pid}) < 2:  # before its end is noticed, it still looks well
        return False
    return all(each["status"] == "healthy" for each in server.client.get("/health").json()["replicas"])
