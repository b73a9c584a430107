"""The batched routes without ASGI: no task and no future per request, a callback writes the reply.

It is uvicorn's own protocol, and shares its parser, its timeouts, its limits and its shutdown. A request that
is not for a batched route goes to the ASGI app as it would without this. What an answer is, the service knows.

Requests of one connection are answered one after the other. `pipeline` is uvicorn's queue of those that came
before the one in front of them was answered, oldest on the right; an `Exchange` stands in it, and in `cycle`,
where uvicorn has its own object for a request.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from carpool.errors import CarpoolError
from carpool.server.body import BodyReceiver
from carpool.server.lane import Head, Lane, write_frame
from carpool.wire.base import Item, Reply, Route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from carpool.core.request import Request
    from carpool.server.service import Service
    from carpool.wire.terms import Terms

# The most of a body, with its head, that is kept unparsed until the rest comes. Many clients send the head and
# the body in two segments; what does not fit into the second one is no short text.
_LONGEST_SPLIT = 65536

# Bytes of a head, or of the trailers behind a body, that are read before the segment with its end. The parser
# has no bound; this is that of h11, uvicorn's other one.
_LONGEST_HEAD = 65536

# Bytes. A smaller piece of a body takes the next one into itself: a million pieces of one byte would be 60 MB.
_LEAST_PIECE = 16384

# Bytes of a body that are still to come: for less it does not pay to change protocols, twice.
_LEAST_DIRECT = 65536

# Requests of one connection that wait behind the one that is being answered. Not fewer, as a client that hangs
# up is noticed only while it is read from.
_MOST_PIPELINED = 16


def fast_lane(service: Service, routes: Iterable[Route]) -> type[asyncio.Protocol]:
    """What uvicorn's `http=` setting takes, to answer these routes of the service."""
    # All that uvicorn asks of a class is that it makes a protocol.
    return cast("type[asyncio.Protocol]", partial(FastLaneProtocol, Lane(service, routes)))


class _Unheard:
    """In the place of the event by which uvicorn wakes an app: there is none to wake."""

    def set(self) -> None:
        """Nothing to do."""


class Exchange:
    """A request of the lane and its reply. It has the attributes that uvicorn's protocol asks a request for."""

    __slots__ = (
        "disconnected",
        "item",
        "keep_alive",
        "length",
        "more_body",
        "pieces",
        "refusal",
        "request",
        "response_complete",
        "route",
        "size",
        "terms",
        "wants_continue",
    )
    message_event = _Unheard()

    def __init__(self, route: Route, keep_alive: bool) -> None:
        self.route = route
        self.keep_alive = keep_alive
        self.terms: Terms | None = None  # None where they cannot be read: then there is a refusal
        self.length: int | None = None  # as announced
        self.wants_continue = False
        self.item: memoryview | None = None  # lent for the body, which is at its end
        self.pieces: list[bytes] = []  # of the body, so far, where nothing is lent
        self.size = 0  # of what has come of the body
        self.more_body = True  # not all of it has been read
        self.refusal: Reply | None = None  # known before all of it was read
        self.request: Request | None = None  # while the batcher has it
        self.response_complete = False
        self.disconnected = False


class FastLaneProtocol(HttpToolsProtocol):
    """One connection."""

    # uvicorn's own attributes stay in the dict: with these it would have more than the 30 that CPython keeps in
    # the object itself, and every one of them would be slower.
    __slots__ = (
        "_active_at",
        "_at_start",
        "_begun",
        "_held",
        "_is_advancing",
        "_is_open",
        "_known",
        "_last_words",
        "_serving",
        "_unended",
        "lane",
    )

    def __init__(
        self,
        lane: Lane,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.lane = lane
        # What uvicorn does for each request where it is told to log, limit or move them, it does best.
        self._is_open = not (self.access_log or self.limit_concurrency is not None or self.root_path)
        self._at_start = True  # the parser is between two requests
        self._begun = 0  # requests that the parser has seen the start of
        self._held = b""  # a known head with a part of its body
        self._known = Exchange(next(iter(self.lane.routes.values())), keep_alive=True)
        self._known.more_body = False
        self._serving: Any = None  # whose turn it is, or was last: an Exchange or uvicorn's own
        self._is_advancing = False
        self._unended = 0  # bytes of a head, or of trailers, without the end
        self._last_words: Reply | None = None  # to a client of whom nothing more can be read
        self._active_at = 0.0  # when the last response left

    def data_received(self, data: bytes) -> None:
        """Bytes have come: most often one whole request, with a head that is known."""
        held = self._held
        if held:
            self._held = b""
            data = held + data
        cycle = self.cycle
        if self._at_start and (cycle is None or cycle.response_complete) and not self.flow.write_paused:
            start = data.find(b"\r\n\r\n") + 4
            head = self.lane.recognise(data[:start])
            if head is not None:
                size = start + head.length
                if len(data) == size:
                    # One object for all of them: there is never a second one here before its reply.
                    self.cycle = self._serving = exchange = self._known  # type: ignore[assignment]
                    exchange.route = head.route
                    exchange.response_complete = False
                    exchange.request = self.lane.service.enqueue(
                        head.route, head.terms, data[start:], self._reply
                    )
                    return
                if len(data) < size <= _LONGEST_SPLIT and not held:
                    self._held = data
                    return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Have the real parser read it. The head of a request that begins with it is known from then on."""
        if self._last_words is not None:
            return
        at_start, begun, previous = self._at_start, self._begun, self.cycle
        self._unended += len(data)
        self._feed(data)
        if self._unended > _LONGEST_HEAD and not self._at_start:
            self._refuse_rest(431, f"The request's head is too long, allowed: {_LONGEST_HEAD} bytes.")
        exchange: Any = self.cycle
        if at_start and self._begun == begun + 1 and exchange is not previous and type(exchange) is Exchange:
            start = data.find(b"\r\n\r\n") + 4
            # That the parser saw as much of a body as there is behind the first blank line proves that for it,
            # too, the head ends there.
            if (
                exchange.length is not None
                and exchange.terms is not None
                and exchange.keep_alive
                and not exchange.wants_continue
                and exchange.size == len(data) - start
            ):
                self.lane.learn(data[:start], Head(exchange.route, exchange.terms, exchange.length))
        if type(exchange) is Exchange and exchange.item is not None and exchange is self._serving:
            self._receive_rest(exchange)

    def _receive_rest(self, exchange: Exchange) -> None:
        """Have what has not come yet of a body for which there is room read into that."""
        assert exchange.item is not None
        assert exchange.length is not None
        left = exchange.length - exchange.size
        # Over TLS the bytes are copied anyway, and are not the body's own.
        if exchange.more_body and left >= _LEAST_DIRECT and self.scheme == "http":

            def done() -> None:
                exchange.size += left
                self.parser = HttpRequestParser(self)  # the other one waits for this body
                self.on_message_complete()

            BodyReceiver(self.transport, self, exchange.item[-left:], done)

    def _feed(self, data: bytes) -> None:
        """What uvicorn does with bytes, but that an upgrade is ignored (RFC 9110, 7.8): none is served.

        The parser takes nothing behind such a head for its body, and cannot be told to. So another reads the
        request, once more and without that header; all else of it is as the first one has read it.
        """
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return
                except HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    head = self._head_without_upgrade()
                    self.parser = HttpRequestParser(self)
                    self._begun -= 1
                    self.parser.feed_data(head)
        except (HttpParserError, HttpParserUpgrade):  # the latter still, where the method is CONNECT
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join((b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version), *lines, b"\r\n"))

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        self._at_start = False
        self._begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser: the head is read."""
        self._unended = 0
        if self.parser.should_upgrade():
            return  # it is read again, without that
        previous = self.cycle
        route = self._route()
        if route is not None:
            self._receive_head(Exchange(route, self._keeps_alive()))
            return
        super().on_headers_complete()
        if self.cycle is not previous and (previous is None or previous.response_complete):
            self._serving = self.cycle

    def on_body(self, body: bytes) -> None:
        """The parser: a part of the body."""
        self._unended = 0
        exchange: Any = self.cycle
        if type(exchange) is not Exchange:
            super().on_body(body)
            return
        before = exchange.size
        exchange.size += len(body)
        if exchange.refusal is not None:
            return
        try:
            self.lane.service.check_length(exchange.route, exchange.size)
            item, pieces = exchange.item, exchange.pieces
            if item is not None:
                assert exchange.length is not None
                start = len(item) - exchange.length + before
                item[start : start + len(body)] = body
            elif pieces and len(pieces[-1]) < _LEAST_PIECE:
                pieces[-1] += body
            else:
                pieces.append(body)
            if exchange is not self._serving and exchange.size > HIGH_WATER_LIMIT:
                self.flow.pause_reading()  # until its turn comes
        except CarpoolError as error:
            exchange.pieces.clear()
            exchange.item = None
            exchange.refusal = exchange.route.encode_error(error)
            if exchange is self._serving:
                self._reply(exchange.refusal)

    def on_message_complete(self) -> None:
        """The parser: the request is whole."""
        self._unended = 0
        if self.parser.should_upgrade():
            return
        self._at_start = True
        exchange: Any = self.cycle
        if type(exchange) is not Exchange:
            super().on_message_complete()
            return
        exchange.more_body = False
        if exchange is self._serving and not exchange.response_complete:
            self._enqueue(exchange)

    def on_response_complete(self) -> None:
        """A response has been written, by either lane: now the next in line, or a client that keeps alive."""
        self.server_state.total_requests += 1
        self._active_at = self.loop.time()
        if self.transport.is_closing():
            return
        if self.pipeline or self.flow.read_paused:
            self._advance()
        if self.timeout_keep_alive_task is None:
            self._await_next(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for long enough.

        The timer is not set anew for each response: whether it was idle is looked up when it rings.
        """
        self.timeout_keep_alive_task = None
        if self._held or not self._at_start or not self.cycle.response_complete:
            return  # it is set again after the response
        left = self._active_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._await_next(left)
        else:
            super().timeout_keep_alive_handler()

    def resume_writing(self) -> None:
        """The client has read most of what was written to it: who had to wait for that is next."""
        super().resume_writing()
        if self.pipeline:
            self._advance()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is refused, but not before those that came in front of it are answered."""
        self._refuse_rest(400, msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it asked for need not be computed."""
        serving = self._serving
        if serving is not None and not serving.response_complete:
            serving.disconnected = True
            serving.message_event.set()
            if type(serving) is Exchange and serving.request is not None:
                self.lane.service.cancel(serving.request)
                serving.request = None  # which refers to the connection
        if self.timeout_keep_alive_task is not None:  # so does the timer
            self.timeout_keep_alive_task.cancel()
        self._held = b""
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: a request that has begun to come is still answered."""
        if self._held:
            held, self._held = self._held, b""
            self._parse(held)
        super().shutdown()

    def _route(self) -> Route | None:
        """The route of the lane that the request is for, if it is for one and nothing is odd about it."""
        if self._is_open and self.parser.get_method() == b"POST":
            return self.lane.routes.get(self.url)
        return None

    def _keeps_alive(self) -> bool:
        return self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()

    def _receive_head(self, exchange: Exchange) -> None:
        self.cycle = exchange  # type: ignore[assignment]
        exchange.wants_continue = self.expect_100_continue
        # From the last to the first, so that the first of a name counts.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(self.headers)}
        if "transfer-encoding" not in headers:
            exchange.length = int(headers.get("content-length", 0))
        try:
            exchange.route, exchange.terms = self.lane.service.read_head(exchange.route, headers)
            if exchange.length is not None:
                exchange.item = self.lane.service.lend(exchange.route, exchange.length)
        except CarpoolError as error:
            exchange.refusal = exchange.route.encode_error(error)
        if self._may_serve() and not self.pipeline:
            self._serve(exchange)
        else:
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
            if len(self.pipeline) >= _MOST_PIPELINED:
                self.flow.pause_reading()

    def _serve(self, exchange: Exchange) -> None:
        """Its turn has come."""
        self._serving = exchange
        if exchange.refusal is not None:
            self._reply(exchange.refusal)
        elif not exchange.more_body:
            self._enqueue(exchange)
        elif exchange.wants_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _enqueue(self, exchange: Exchange) -> None:
        assert exchange.terms is not None
        body: Item
        if exchange.item is not None:
            body, exchange.item = exchange.item, None
        else:
            body = b"".join(exchange.pieces)  # only now: what grows is copied again and again
            exchange.pieces.clear()
        exchange.request = self.lane.service.enqueue(exchange.route, exchange.terms, body, self._reply)

    def _reply(self, reply: Reply) -> None:
        """Write the reply to the exchange whose turn it is."""
        exchange: Exchange = self._serving
        exchange.request = None
        exchange.response_complete = True
        defaults = self.server_state.default_headers
        self.lane.send(self.transport, reply, exchange.route.path, exchange.keep_alive, defaults)
        self.on_response_complete()

    def _refuse_rest(self, status: int, words: str) -> None:
        """Read nothing more, and say why once all that came before is answered."""
        if self.transport.is_closing():
            return  # behind a request that was the last
        self._last_words = Reply(status, (words.encode(),), content_type="text/plain; charset=utf-8")
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # it is this one's body that cannot be read
        if self.pipeline or not (self._is_free() or self._serving.more_body):
            self.flow.pause_reading()
        else:
            self._say(self._last_words)

    def _say(self, reply: Reply) -> None:
        """The last words."""
        before, after = write_frame(reply, keep_alive=False, defaults=self.server_state.default_headers)
        self.transport.write(b"".join((before, b"%d" % len(reply.body), after, reply.body)))
        self.transport.close()

    def _advance(self) -> None:
        """Serve who is next in line. One who is refused is answered at once: hence a loop and no recursion."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self.pipeline and self._may_serve():
                cycle: Any
                cycle, app = self.pipeline.pop()
                if type(cycle) is Exchange:
                    self._serve(cycle)
                else:
                    self._serve_by_app(cycle, app)
        finally:
            self._is_advancing = False
        if self.transport.is_closing() or self.pipeline:
            return
        if self._last_words is None:
            self.flow.resume_reading()
        elif self._is_free():
            self._say(self._last_words)

    def _is_free(self) -> bool:
        """Whether nobody is waiting for an answer, so that the next one's turn has come."""
        return self._serving is None or self._serving.response_complete

    def _may_serve(self) -> bool:
        """Whether a reply could be written now: the client reads what it has been sent, and is still there."""
        return self._is_free() and not self.flow.write_paused and not self.transport.is_closing()

    def _serve_by_app(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _await_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
