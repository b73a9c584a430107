"""The rest of a large body, read from the socket to where it is wanted, past the parser that has read the head.

Otherwise a loop reads into a buffer of its own, makes bytes of that, the parser makes bytes of these, and they
are put together: four times 3 MB for a picture as numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class BodyReceiver(asyncio.BufferedProtocol):
    """In the place of a connection's protocol until `rest` is full: then it is the protocol's turn, and `done`.

    All else that a transport says is the protocol's business.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        rest: memoryview,
        done: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._rest = rest
        self._done = done
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        transport.set_protocol(self)

    def get_buffer(self, _: int) -> memoryview:
        """Where to read to: no further than the body goes."""
        return self._rest

    def buffer_updated(self, count: int) -> None:
        """So many bytes have come."""
        self._rest = self._rest[count:]
        if not self._rest:
            self._transport.set_protocol(self._protocol)
            self._done()
