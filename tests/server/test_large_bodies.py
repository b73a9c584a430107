"""Bodies that are received where a worker will read them: whole, whatever the segments, and then had back."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carpool.backends.process import shared
from carpool.backends.process.shared import Intake
from carpool.wire import payload
from tests.server.in_process import Echo, lane
from tests.server.raw import post, post_chunked
from tests.server.test_fast_lane import LOOPS, read_reply, run, run_without_collector, turns_until
from tests.support.clients import hang_up

MOST = 4 * shared.LEAST
FIRST_CHUNK = 9  # bytes, and never all: an empty chunk would be the last
ROOM = 2 * shared.MOST
OCTETS = "content-type: application/octet-stream"


class Sums(Echo):
    """Answers each item with its checksum, and with whether it was where a worker finds it."""

    def __init__(self, intake: Intake) -> None:
        super().__init__()
        self._intake = intake

    async def run(self, items: Sequence[Any], group: Hashable = None) -> Sequence[Any]:
        """A list for each."""
        await self.gate.wait()
        return [b"[%d,%d]" % (crc32(item), self._intake.find([item]) is not None) for item in items]


def whole(intake: Intake) -> bool:
    return intake.lend(ROOM) is not None


KINDS: dict[str, tuple[Callable[[bytes], bytes], bytes, bool]] = {
    "JSON": (lambda body: post(body, path="/predict"), b"", True),
    "octets": (
        lambda body: post(body, OCTETS, path="/predict"),
        payload.head("application/octet-stream", {}),
        True,
    ),
    "of a named model": (lambda body: post(body, path="/models/default/predict"), b"", True),
    "the last": (lambda body: post(body, "connection: close", path="/predict"), b"", True),
    "in chunks": (
        lambda body: post_chunked(body[:FIRST_CHUNK], body[FIRST_CHUNK:], path="/predict"),
        b"",
        False,
    ),
}


@LOOPS
@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([kind for kind in KINDS if kind != "the last"]), st.integers(FIRST_CHUNK + 1, MOST)
        ),
        min_size=1,
        max_size=5,
    ),
    has_last=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    are_ahead=st.booleans(),
)
def test_however_large_bodies_are_cut_each_is_received_whole(
    new_loop: Callable[[], Any],
    requests: list[tuple[str, int]],
    has_last: bool,
    cuts: list[float],
    are_ahead: bool,
) -> None:
    """With the head and a part in one segment or many, another request behind it, sent ahead or one by one."""
    if has_last:
        requests = [*requests, ("the last", MOST)]
    bodies = [bytes([number]) * size for number, (_, size) in enumerate(requests, 65)]
    streams = [KINDS[kind][0](body) for (kind, _), body in zip(requests, bodies, strict=True)]
    intake = Intake()

    async def main() -> None:
        async with lane(Sums(intake), MOST, intake.lend) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

            async def send(stream: bytes) -> None:
                places = sorted({0, len(stream), *(round(cut * len(stream)) for cut in cuts)})
                for start, end in pairwise(places):
                    writer.write(stream[start:end])
                    await writer.drain()
                    await asyncio.sleep(0)

            sending = asyncio.create_task(send(b"".join(streams))) if are_ahead else None
            for (kind, size), body, stream in zip(requests, bodies, streams, strict=True):
                if not are_ahead:
                    await send(stream)
                _, head, is_lent = KINDS[kind]
                status, answer = await read_reply(reader)
                is_lent = is_lent and len(head) + size >= shared.LEAST
                assert status == 200
                assert answer.startswith(b'{"result":[%d,%d]' % (crc32(head + body), is_lent))
            if sending is not None:
                await sending
            writer.close()
            await turns_until(lambda: not server.connections)
        assert whole(intake)

    run(main(), new_loop)


@LOOPS
@pytest.mark.parametrize("sent", [1000, shared.LEAST, MOST])
@pytest.mark.parametrize("is_reset", [False, True])
def test_who_hangs_up_within_a_body_leaves_nothing_behind(
    new_loop: Callable[[], Any], sent: int, is_reset: bool
) -> None:
    """Neither the room for it nor the connection; also where it was whole, and has not been answered."""
    intake = Intake()
    request = post(b"x" * MOST, path="/predict")
    request = request[: len(request) - MOST + sent]

    async def main() -> None:
        async with lane(Sums(intake), MOST, intake.lend) as server:
            server.backend.gate.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            await writer.drain()
            await turns_until(lambda: bool(server.connections))
            (connection,) = map(weakref.ref, server.connections)
            await turns_until(lambda: not whole(intake))
            hang_up(writer, reset=is_reset)
            await turns_until(lambda: not server.connections)
            server.backend.gate.set()
            await turns_until(lambda: connection() is None)
            await turns_until(lambda: whole(intake))

    run_without_collector(main(), new_loop)


@LOOPS
def test_a_server_that_stops_answers_a_body_that_has_begun_to_come(new_loop: Callable[[], Any]) -> None:
    """And closes the connection then."""
    intake = Intake()
    request = post(b"x" * MOST, path="/predict")

    async def main() -> None:
        async with lane(Sums(intake), MOST, intake.lend) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request[:-1000])
            await writer.drain()
            await turns_until(lambda: bool(server.connections) and not whole(intake))
            (connection,) = server.connections
            connection.shutdown()
            writer.write(request[-1000:])
            assert (await read_reply(reader))[0] == 200
            assert not await reader.read()
            writer.close()

    run(main(), new_loop)


def test_where_there_is_no_room_bodies_come_as_they_did() -> None:
    """And are answered alike."""
    intake = Intake()

    async def main() -> None:
        async with lane(Sums(intake), MOST, intake.lend) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            taken = [intake.lend(ROOM)]
            for is_lent in (False, True):
                writer.write(post(b"x" * MOST, path="/predict"))
                status, answer = await read_reply(reader)
                assert status == 200
                assert answer.startswith(b'{"result":[%d,%d]' % (crc32(b"x" * MOST), is_lent))
                taken.clear()
            writer.close()

    run(main())


def test_a_body_of_which_more_is_announced_than_allowed_is_refused_without_room_for_it() -> None:
    """And read to its end, so that the next one on the connection is answered."""
    intake = Intake()

    async def main() -> None:
        async with lane(Sums(intake), MOST, intake.lend) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(post(b"x" * (MOST + 1), path="/predict"))
            assert (await read_reply(reader))[0] == 413
            assert whole(intake)
            writer.write(post(b"x" * MOST, path="/predict"))
            assert (await read_reply(reader))[0] == 200
            writer.close()

    run(main())
