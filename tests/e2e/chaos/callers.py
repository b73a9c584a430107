"""Callers with texts of their own, who check that what they get is theirs; and callers who vanish.

They know a URL and the documented contract of `POST /embed`, and nothing of what is behind it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.clients import hang_up
from tests.support.upstream import vector

DEADLINE_SECONDS = 10.0  # for one call; queue and batch may take 3 and 1 in these tests
ERRORS = (
    408,
    429,
    502,
    503,
)  # what an upstream's trouble may look like: docs/http.md. 500 is a fault of carpool's

IsRight = Callable[[str, Any], bool]  # whether a text's answer is its own

STAYS = (0, 0.001, 0.005, 0.02)  # seconds: before its request is read, waiting, in a batch, after the reply


def is_the_upstreams(text: str, answer: Any) -> bool:
    """Whether it is what the upstreams of these tests answer to a text."""
    return bool(answer == {"embedding": vector(text)})


@dataclass
class Record:
    """What the callers have seen. `faults` are the things that must never be."""

    is_right: IsRight = is_the_upstreams
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    last_failed_at: float = 0.0  # when the latest of the requests that got an error was sent
    last_good_at: dict[int, float] = field(default_factory=dict)  # the same for the good ones, by caller

    @property
    def requests(self) -> int:
        """How many were answered."""
        return self.statuses.total()

    def everybody_served_since(self, moment: float) -> bool:
        """Whether every caller got a good answer to a request sent after the moment."""
        return all(at >= moment for at in self.last_good_at.values())

    def note(self, caller: int, text: str, sent_at: float, status: int, body: bytes) -> None:
        """Judge a reply."""
        self.statuses[status] += 1
        if status == 200:
            self.last_good_at[caller] = sent_at
            if not self.is_right(text, json.loads(body)):
                self.faults.append(f"not the answer to {text!r}: {body[:200]!r}")
            return
        self.last_failed_at = max(self.last_failed_at, sent_at)
        if not is_clear_error(status, body):
            self.faults.append(f"not a clear error: {status} {body[:200]!r}")


def is_clear_error(status: int, body: bytes) -> bool:
    """Whether it is a documented status in the documented envelope."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return status in ERRORS and error["code"] == status and bool(error["message"]) and "detail" in error


class Callers:
    """So many at a time, each with the next text when the last is answered, until the block ends."""

    def __init__(self, url: str, label: str, count: int, is_right: IsRight = is_the_upstreams) -> None:
        self.record = Record(is_right, last_good_at=dict.fromkeys(range(count), 0.0))
        self._url = url
        self._label = label
        self._count = count
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Record:
        self._tasks = [asyncio.create_task(self._call_on(number)) for number in range(self._count)]
        return self.record

    async def __aexit__(self, *error: object) -> None:
        """Everyone gets the answer to their last call."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _call_on(self, caller: int) -> None:
        reader, writer = await connect(self._url)
        number = 0
        while not self._stopping:
            number += 1
            text, sent_at = f"{self._label}, caller {caller}, text {number}", time.monotonic()
            writer.write(request(text))
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    status, body = await read_reply(reader)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                self.record.faults.append(f"no answer to {text!r}: {error!r}")
                writer.close()
                reader, writer = await connect(self._url)
            else:
                self.record.note(caller, text, sent_at, status, body)
        writer.close()


async def vanish_again_and_again(url: str, label: str) -> None:
    """Connect, send a request or a part of one, and be gone without a word at some point; until cancelled."""
    number = 0
    while True:
        number += 1
        sent = request(f"{label}, text {number}")
        sent = sent[: random.choice([len(sent), len(sent), random.randrange(len(sent))])]
        _, writer = await connect(url)
        try:
            writer.write(sent)
            await asyncio.sleep(random.choice(STAYS))
        finally:
            hang_up(writer, reset=random.random() < 0.5)


async def connect(url: str) -> tuple[StreamReader, StreamWriter]:
    """A connection to the server."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def request(text: str) -> bytes:
    """`POST /embed` of one text."""
    body = json.dumps({"input": text})
    head = "POST /embed HTTP/1.1\r\nhost: carpool\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def read_reply(reader: StreamReader) -> tuple[int, bytes]:
    """A reply's status and body; its length must be announced."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)
