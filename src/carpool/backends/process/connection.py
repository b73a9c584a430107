"""The parent's end of the socket to a worker: questions go out, answers come back in their order.

A protocol and not asyncio's streams: with a model that takes no time their locks and waits are most of a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias, cast

import msgspec

from carpool.backends.process import frames
from carpool.wire.base import Item

Reply: TypeAlias = "asyncio.Future[frames.FromChild]"


class Unreadable(ConnectionError):
    """The worker has sent what is no answer, so nothing more of what it sends can be."""


class Connection(asyncio.Protocol):
    """The socket. Once it is lost, all that is asked fails with `ConnectionError`."""

    def __init__(self) -> None:
        self._answers: deque[Reply] = deque()
        self._received = bytearray()
        self._transport: asyncio.Transport

    def ask(self, message: frames.ToChild, payload: Sequence[Item] = ()) -> Reply:
        """Send a message; the reply comes later. It counts as the next even if nobody waits for it any more."""
        answer: Reply = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():  # a loop may refuse to write with an error of its own
            answer.set_exception(ConnectionResetError())
        else:
            self._answers.append(answer)
            frame = (frames.encode(message, sum(map(len, payload))), *payload)
            self._transport.write(b"".join(frame))  # a copy, of little: large batches do not come here
        return answer

    @property
    def unanswered(self) -> int:
        """How many questions have no answer yet."""
        return len(self._answers)

    def hang_up(self) -> None:
        """Send what is still to be sent, and then nothing more."""
        self._transport.close()

    def abort(self) -> None:
        """Have it lost, also where the worker's own children keep it open."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._received += data
        while (end := frames.end_of_first(self._received)) is not None:
            try:
                with memoryview(self._received) as received, received[frames.PREFIX_BYTES : end] as body:
                    message = frames.decode_from_child(body)
                answer = self._answers.popleft()
            except (msgspec.DecodeError, UnicodeDecodeError, IndexError):  # no message, or to no question
                self._lose(Unreadable())
                self._transport.abort()
                return
            del self._received[:end]
            if not answer.done():
                answer.set_result(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._lose(error if isinstance(error, ConnectionError) else ConnectionResetError())

    def _lose(self, error: ConnectionError) -> None:
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # seen: nobody may be waiting
        self._answers.clear()
