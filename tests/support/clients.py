"""What clients do to a server besides asking."""

from __future__ import annotations

import socket
import struct
from asyncio import StreamWriter


def hang_up(writer: StreamWriter, reset: bool) -> None:
    """Reset the connection, or close it with what is still to come unread."""
    if reset:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
