"""The parent's end of the socket to a worker: questions go out, answers come back in their order.

A protocol and not asyncio's streams: with a model that takes no time their locks and waits are most of a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias, cast

from carpool.backends.process import frames

Reply: TypeAlias = "asyncio.Future[frames.FromChild]"


class Connection(asyncio.Protocol):
    """The socket. Once it is lost, all that is asked fails with `ConnectionError`."""

    def __init__(self) -> None:
        self._answers: deque[Reply] = deque()
        self._received = bytearray()
        self._transport: asyncio.Transport

    def ask(self, message: frames.ToChild, payload: Sequence[bytes] = ()) -> Reply:
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
            body = bytes(memoryview(self._received)[frames.PREFIX_BYTES : end])
            del self._received[:end]
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(frames.decode_from_child(body))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(error if isinstance(error, ConnectionError) else ConnectionResetError())
                answer.exception()  # seen: nobody may be waiting
        self._answers.clear()
