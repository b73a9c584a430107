"""What carpool's engine does without any server, in a process of its own, measured for every line it reads.

python benchmarks/peers/offline.py CASE ENGINE [OPTIONS]

It is an ordinary process, as a script of the team's would be: the huge pages that a worker gets are not there.
OPTIONS stand behind the SPEC of the case: `&pack=false` for torch's ResNet as it is without carpool's weights.

A line is a JSON list: of the times, in seconds from now, at which inputs come that run one by one; where it is
empty, inputs run as fast as they can.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.peers.cases import BATCH, CASES, JSON, Case
from carpool.backends.process import child
from carpool.models import spec
from carpool.wire import payload
from carpool.wire.call import INFER

WINDOW = 64  # inputs that wait are sorted by length within as many as there are users
SECONDS = 2.0  # about, for the rate
ALONE = 160  # texts that run one by one: about as many as a light load sends

Run = Callable[[Sequence[Any]], Sequence[bytes | Exception]]


def load(case: Case, engine: str, options: str = "") -> tuple[Run, list[Any]]:
    """What the worker runs, and what it gets: texts, or bodies that it reads first."""
    local = spec.resolve(case.spec + options, engine)
    model: Any = child.load(local.loader, local.arguments)
    if local.takes == "text":
        return model.run, [json.loads(one.body)["input"] for one in case.questions(case.dialect)]
    asked = case.questions(case.dialect)
    bodies = [_head(one.media_type) + one.body for one in asked] * -(-WINDOW // len(asked))
    return lambda items: model.run(items, INFER), bodies


def _head(media_type: str) -> bytes:
    return b"" if media_type == JSON else payload.head(media_type, {})


def measure(run: Run, items: Sequence[Any]) -> dict[str, Any]:
    """Inputs a second in batches out of sorted windows, and what each of the first ones takes alone."""
    count, started = 0, time.perf_counter()
    for batch in _batches(items):
        run(batch)
        count += len(batch)
        if (spent := time.perf_counter() - started) > SECONDS:
            break
    return {"rate": count / spent, "alone_ms": [_time(run, item) * 1000 for item in items[:ALONE]]}


def _time(run: Run, item: Any) -> float:
    started = time.perf_counter()
    run([item])
    return time.perf_counter() - started


def pace(run: Run, items: Sequence[Any], due: Sequence[float]) -> dict[str, list[float]]:
    """What inputs take that come when they are due and run one by one, and their latencies, in milliseconds.

    A server that runs them one by one can hardly be faster: between two inputs caches cool and threads fall
    asleep, as they do in one.
    """
    takes, latencies, started = [], [], time.perf_counter()
    for moment, item in zip(due, cycle(items), strict=False):
        while (early := started + moment - time.perf_counter()) > 0:
            time.sleep(early)
        takes.append(_time(run, item) * 1000)
        latencies.append((time.perf_counter() - started - moment) * 1000)
    return {"alone_ms": takes, "latency_ms": latencies}


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), WINDOW):
        window = sorted(items[start : start + WINDOW], key=len)
        for place in range(0, len(window), BATCH):
            yield window[place : place + BATCH]


def main() -> None:
    """Measure whenever asked to."""
    name, *how = sys.argv[1:]
    run, items = load(CASES[name], *how)
    measure(run, items[:WINDOW])  # nothing is to be done for the first time
    for line in sys.stdin:
        due = json.loads(line)
        print(json.dumps(pace(run, items, due) if due else measure(run, items)), flush=True)


if __name__ == "__main__":
    main()
