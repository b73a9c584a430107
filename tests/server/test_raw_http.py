"""HTTP on a raw socket: what the fast lane does is what uvicorn does with the same app behind ASGI."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.server.raw import Connection, Response, connect, post, post_chunked, text
from tests.support.servers import RunningServer, asgi_serve, carpool_serve, until
from tests.support.upstream import Upstream, vector

LIMITS = "max_concurrent_workers = 1\n[server]\nmax_text_bytes = 1000\nmax_predict_bytes = 5000\n"
GET = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
A, B, C = (post(text(words)) for words in "abc")


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def servers(
    shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RunningServer]]:
    """The fast lane, and the ASGI lane in the same uvicorn."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("fast", "asgi")}
    for folder in folders.values():
        (folder / "config.toml").write_text(LIMITS)
    extra = {"INFERENCE_URL": shared_upstream.url}
    arguments = ["--timeout-keep-alive", "75"]
    with (
        carpool_serve(folders["fast"], extra=extra) as fast,
        asgi_serve(folders["asgi"], arguments, extra) as asgi,
    ):
        yield {"fast": fast, "asgi": asgi}


@pytest.fixture(params=["fast", "asgi"])
def server(request: pytest.FixtureRequest, servers: dict[str, RunningServer]) -> RunningServer:
    return servers[request.param]


def embedding(words: str) -> dict[str, list[float]]:
    return {"embedding": vector(words)}


def waiting(server: RunningServer) -> int:
    metrics = server.client.get("/metrics").text
    (line,) = (line for line in metrics.splitlines() if line.startswith("carpool_queue_items{"))
    return int(float(line.split()[-1]))


def converse(server: RunningServer, segments: tuple[bytes, ...]) -> tuple[list[Response], bool]:
    """All the responses to bytes that end with a `GET /health`, and whether the connection is still open."""
    with connect(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(*segments)
        replies = []
        while (reply := connection.response()) is not None:
            replies.append(reply)
            if b'"timestamp"' in reply.body:
                return replies, connection.is_open()
        return replies, False


LONG = "x" * 1000

CONVERSATIONS: dict[str, tuple[bytes, ...]] = {
    "one": (A,),
    "one after the other": (A, B, A, C),
    "pipelined": (A + B + C,),
    "pipelined with what ASGI serves": (A + GET.replace(b"health", b"nowhere") + B + A + b"",),
    "every byte on its own": tuple(bytes([byte]) for byte in A + B),
    "head and body apart": (*A.partition(b"\r\n\r\n"), *B.partition(b"\r\n\r\n")),
    "a known head and half a body": (A, A[:-4], A[-4:], B),
    "a known head, and half a body with the next": (A, A[:-4], A[-4:] + B[:20], B[20:]),
    "chunked": (post_chunked(text("a")), post_chunked(*(b"%c" % byte for byte in text("b")))),
    "chunks with extensions and trailers": (
        b"POST /embed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        b'd;name=value\r\n{"input":"a"}\r\n0\r\nx-trailer: 1\r\n\r\n',
    ),
    "chunks and then a length": (post_chunked(text("a")) + B, A),
    "an encoding before chunked": (post_chunked(text("a")).replace(b"chunked", b"gzip, chunked"),),
    "an encoding after chunked": (post_chunked(text("a")).replace(b"chunked", b"chunked, gzip"),),
    "an unknown encoding": (post_chunked(text("a")).replace(b"chunked", b"gzip"),),
    "a length and chunked": (post(text("a"), "transfer-encoding: chunked"),),
    "chunked and a length": (post_chunked(text("a"), lines=("content-length: 5",)),),
    "two lengths": (post(text("a"), "content-length: 5"),),
    "the same length twice": (post(text("a"), "content-length: 13"),),
    "a length with a sign": (A.replace(b"length: 13", b"length: +13"),),
    "a length below zero": (A.replace(b"length: 13", b"length: -13"),),
    "a length that is no number": (A.replace(b"length: 13", b"length: a"),),
    "two lengths in one": (A.replace(b"length: 13", b"length: 13, 13"),),
    "a length that overflows": (A.replace(b"length: 13", b"length: 99999999999999999999999"),),
    "a bad size of a chunk": (post_chunked(text("a")).replace(b"d\r\n", b"-d\r\n"),),
    "a chunk without an end": (post_chunked(text("a")).replace(b"}\r\n", b"}"),),
    "HTTP/1.0": (post(text("a"), version="1.0"),),
    "HTTP/1.0 that would be kept alive": (post(text("a"), "connection: keep-alive", version="1.0"),),
    "HTTP/2.0": (post(text("a"), version="2.0"),),
    "no version": (b"POST /embed\r\n\r\n",),
    "connection: close": (post(text("a"), "connection: close"), B),
    "connection: close before more": (post(text("a"), "connection: close") + B + C,),
    "connection: close in a list": (post(text("a"), "connection: x, Close"),),
    "connection: keep-alive": (post(text("a"), "connection: keep-alive"), B),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00",),
    "a line that is no header": (A.replace(b"host: a", b"host a"),),
    "a space before the colon": (A.replace(b"host: a", b"host : a"),),
    "a folded header": (A.replace(b"host: a", b"x: 1\r\n folded\r\nhost: a"),),
    "a NUL in a header": (A.replace(b"host: a", b"host: \x00"),),
    "bare line feeds": (A.replace(b"\r\n", b"\n"),),
    "empty lines around": (b"\r\n\r\n" + A, b"\r\n" + A + b"\r\n", A),
    "a head of 100 KiB": (post(text("a"), *(f"x-{number}: {LONG}" for number in range(100))), B),
    "no host": (A.replace(b"host: a\r\n", b""),),
    "bytes beyond ASCII in a header": (post(text("a"), "x-tenant: Jürgen"),),
    "a query": (post(text("a"), path="/embed?x=1"),),
    "an escaped path": (post(text("a"), path="/%65mbed"),),
    "a whole URL": (post(text("a"), path="http://a/embed"),),
    "an asterisk": (A.replace(b"POST /embed", b"OPTIONS *"), B),
    "a fragment": (post(text("a"), path="/embed#x"),),
    "another path": (post(text("a"), path="/embed/"), B),
    "a method in lower case": (A.replace(b"POST", b"post"),),
    "no body": (b"POST /embed HTTP/1.1\r\nhost: a\r\n\r\n", A),
    "an empty body": (post(b""), post(b"")),
    "not JSON": (post(b"a") + A + post(b"[]") + B,),
    "not UTF-8": (post(b'{"input":"\xff"}') + A,),
    "a broken escape": (post(b'{"input":"\\q"}') + A,),
    "blank": (post(text(" ")) + post(text(" ")) + A,),
    "two hundred that are refused": (post(text(" ")) * 200 + A,),
    "another type": (post(text("a"), "content-type: text/plain") + A,),
    **{
        f"encoded: {coding}": (post(gzip.compress(text("a")), f"content-encoding: {coding}") + A, B)
        for coding in ("gzip", "deflate", "x-unknown", "identity, gzip")
    },
    "not encoded, and said so": (post(text("a"), "Content-Encoding: Identity") + A, B),
    "two types": (post(text("a"), "content-type: application/json", "content-type: text/plain"), A),
    "a bad header": (post(text("a"), "x-priority: urgent") + post(text("a"), "x-priority: high"),),
    "predict": (post(b'{"data":"a"}', path="/predict") + post(b'{"data":3}', path="/predict"),),
    "too large": (post(text(LONG)) + A,),
    "too large, its body apart": (*post(text(LONG)).partition(b"\r\n\r\n"), A),
    "too large in chunks": (post_chunked(text(LONG)) + A,),
    "too large in many chunks": (post_chunked(*[b"x" * 100] * 20) + A,),
    **{f"{method} /embed": (A.replace(b"POST", method.encode()),) for method in ("PUT", "OPTIONS", "GET")},
    **{f"{method} /health": (GET.replace(b"GET", method.encode()),) for method in ("OPTIONS", "POST")},
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_same_bytes_get_the_same_answers_from_both_lanes(
    servers: dict[str, RunningServer], name: str
) -> None:
    """Statuses, headers, bodies and whether the connection lives: byte for byte, and three times in a row."""
    segments = (*CONVERSATIONS[name], GET)
    expected = converse(servers["asgi"], segments)
    assert expected[0]
    for _ in range(3):
        assert converse(servers["fast"], segments) == expected


UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
PLAIN = post(text("a"), path="/elsewhere")

UPGRADES: dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {
    "in one segment": ((post(text("a"), *UPGRADE),), (A,)),
    "again and again": ((post(text("a"), *UPGRADE), post(text("bb"), *UPGRADE), B), (A, post(text("bb")), B)),
    "head and body apart": (post(text("a"), *UPGRADE).partition(b"\r\n\r\n"), (A,)),
    "every byte on its own": (tuple(bytes([byte]) for byte in post(text("a"), *UPGRADE)), (A,)),
    "chunked": ((post_chunked(text("a"), lines=UPGRADE),), (A,)),
    "pipelined": (
        (A + post(text("b"), *UPGRADE) + GET.replace(b"health", b"no") + C,),
        (A + B + GET.replace(b"health", b"no") + C,),
    ),
    "many in one segment": ((post(text(" "), *UPGRADE) * 1200,), (post(text(" ")) * 1200,)),
    "and the last of its connection": (
        (post(text("a"), "connection: upgrade, close", "upgrade: h2c") + B,),
        (post(text("a"), "connection: close") + B,),
    ),
    "refused, and the last of its connection": (
        (post(text(" "), "connection: upgrade, close", "upgrade: h2c") + B,),
        (post(text(" "), "connection: close") + B,),
    ),
    "websocket": ((post(text("a"), "connection: upgrade", "upgrade: websocket"), B), (A, B)),
    "two": ((post(text("a"), *UPGRADE, "upgrade: websocket"), B), (A, B)),
    "of HTTP/1.0": ((post(text("a"), *UPGRADE, version="1.0"),), (post(text("a"), version="1.0"),)),
    "with two lengths": (
        (post(text("a"), *UPGRADE, "content-length: 5"),),
        (post(text("a"), "content-length: 5"),),
    ),
    "with a length and chunked": (
        (post(text("a"), *UPGRADE, "transfer-encoding: chunked"),),
        (post(text("a"), "transfer-encoding: chunked"),),
    ),
    "too large": ((post(text(LONG), *UPGRADE) + A,), (post(text(LONG)) + A,)),
    "by ASGI": ((post(text("a"), *UPGRADE, path="/embed?x=1") + A,), (post(text("a"), path="/embed?x=1") + A,)),
    "by ASGI, to read": (
        (GET.replace(b"host: a", b"host: a\r\nconnection: upgrade\r\nupgrade: websocket"), A),
        (GET, A),
    ),
    "passed through": ((post(text("a"), *UPGRADE, path="/elsewhere"), PLAIN), (PLAIN, PLAIN)),
    "passed through, its body apart": (
        post(text("a"), *UPGRADE, path="/elsewhere").partition(b"\r\n\r\n"),
        (PLAIN,),
    ),
    "CONNECT": ((b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n" + A,), (b"garbage\r\n\r\n",)),
}


@pytest.mark.parametrize("name", UPGRADES)
def test_an_upgrade_is_ignored(servers: dict[str, RunningServer], name: str) -> None:
    """The request is answered as it would be without, its body is its own, and the connection goes on."""
    upgrading, plain = UPGRADES[name]
    expected = converse(servers["fast"], (*plain, GET))
    assert expected[0]
    for _ in range(2):
        assert converse(servers["fast"], (*upgrading, GET)) == expected


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("path", ["/embed", "/elsewhere"])
def test_curl_asks_for_http2_and_gets_an_answer(servers: dict[str, RunningServer], path: str) -> None:
    """As Java's own client does, it offers an upgrade with its first request."""
    command = ["curl", "--silent", "--http2", "--max-time", "20", "--write-out", " %{http_code}"]
    url = servers["fast"].url + path
    done = subprocess.run([*command, "--json", text("a").decode(), url], capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b" ")
    assert status == (b"200" if path == "/embed" else b"404"), done.stdout
    if path == "/embed":
        assert json.loads(body) == embedding("a")


@pytest.mark.parametrize("path", ["/embed", "/elsewhere"])
def test_a_body_that_the_server_drops_is_missed(servers: dict[str, RunningServer], path: str) -> None:
    """As uvicorn by itself drops one behind an upgrade: that is said, and nobody waits for it."""
    with connect(servers["asgi"]) as connection:
        connection.send(post(text("a"), *UPGRADE, path=path))
        reply = connection.response()
        assert reply is not None
        assert reply.status == 400
        assert b"Content-Length is 13" in reply.body


def test_head_has_no_body_and_leaves_the_connection_in_order(server: RunningServer) -> None:
    """What follows is not taken for its body."""
    with connect(server) as connection:
        connection.send(A.replace(b"POST", b"HEAD") + A)
        head, reply = connection.response("HEAD"), connection.response()
        assert head is not None
        assert head.status == 405
        assert reply is not None
        assert json.loads(reply.body) == embedding("a")


def expecting(body: bytes, *lines: str) -> tuple[bytes, bytes]:
    whole = post(body, "expect: 100-continue", *lines)
    return whole[: -len(body)], body


def test_a_client_that_expects_100_continue_gets_it_before_it_sends_the_body(server: RunningServer) -> None:
    """Each time, and the answer after it."""
    with connect(server) as connection:
        for words in "aab":
            head, body = expecting(text(words))
            connection.send(head)
            assert connection.response() == Response(100, ("HTTP/1.1 100 Continue",), b"")
            connection.send(body)
            reply = connection.response()
            assert reply is not None
            assert json.loads(reply.body) == embedding(words)


@pytest.mark.parametrize(
    ("body", "line", "status"),
    [(text(LONG), "x-a: b", 413), (text("a"), "content-type: text/plain", 415)],
)
def test_a_body_that_would_be_refused_is_not_asked_for(
    server: RunningServer, body: bytes, line: str, status: int
) -> None:
    """The refusal comes in the place of 100 Continue; a body that is sent all the same is skipped."""
    head, body = expecting(body, line)
    with connect(server) as connection:
        connection.send(head)
        reply = connection.response()
        assert reply is not None
        assert reply.status == status
        connection.send(body)
        assert connection.is_open()


def test_100_continue_waits_for_its_turn(server: RunningServer, shared_upstream: Upstream) -> None:
    """It must not come before the answer to an earlier request."""
    head, body = expecting(text("b"))
    shared_upstream.hold()
    with connect(server) as connection:
        connection.send(A + head)
        shared_upstream.arrived = type(shared_upstream.arrived)(0)
        shared_upstream.let_go()
        statuses = [getattr(connection.response(), "status", None) for _ in range(2)]
        assert statuses == [200, 100]
        connection.send(body)
        reply = connection.response()
        assert reply is not None
        assert json.loads(reply.body) == embedding("b")


def fill_the_slot(server: RunningServer, upstream: Upstream, connection: Connection) -> None:
    """Have one request wait at the upstream, so that what comes next stays in the queue."""
    while upstream.arrived.acquire(blocking=False):
        pass
    upstream.hold()
    connection.send(post(text("first")))
    assert upstream.arrived.acquire(timeout=30)


def hang_up(connection: Connection, how: str) -> None:
    if how == "half-closed":
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.response() is None
    if how == "aborted":
        linger = struct.pack("ii", 1, 0)  # close with a reset
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.socket.close()


def check_hanging_up(server: RunningServer, upstream: Upstream, request: bytes, how: str) -> None:
    """Have a request wait, hang up, and see that it leaves the queue and that the others are served."""
    with connect(server) as first:
        fill_the_slot(server, upstream, first)
        with connect(server) as connection:
            connection.send(request)
            until(lambda: waiting(server) == 1)
            hang_up(connection, how)
        until(lambda: waiting(server) == 0)
        before = len(upstream.batches)
        upstream.let_go()
        reply = first.response()
        assert reply is not None
        assert json.loads(reply.body) == embedding("first")
        assert first.is_open()
        assert upstream.batches[before:] == []


@pytest.mark.parametrize("how", ["closed", "half-closed", "aborted"])
@pytest.mark.parametrize("request_", [A, post_chunked(text("a"))], ids=["plain", "chunked"])
def test_who_hangs_up_is_not_computed(
    server: RunningServer, shared_upstream: Upstream, how: str, request_: bytes
) -> None:
    """However a caller hangs up, what it asked for leaves the queue, and the next caller is served."""
    check_hanging_up(server, shared_upstream, request_, how)


@pytest.mark.parametrize("how", ["closed", "half-closed", "aborted"])
def test_who_hangs_up_after_many_requests_is_not_computed(
    servers: dict[str, RunningServer], shared_upstream: Upstream, how: str
) -> None:
    """Nor any of those behind the first. uvicorn alone does not notice before the first is answered."""
    check_hanging_up(servers["fast"], shared_upstream, A + B + C, how)


def test_what_cannot_be_parsed_is_refused_after_those_before_it_are_answered(
    servers: dict[str, RunningServer], shared_upstream: Upstream
) -> None:
    """Uvicorn alone would send the 400 first, where the client takes it for the first answer."""
    for garbage in (b"\x00garbage", post_chunked(b"x").replace(b"1\r\n", b"-1\r\n")):
        for before in (A, A + B, A + GET):
            with connect(servers["fast"]) as connection:
                fill_the_slot(servers["fast"], shared_upstream, connection)
                connection.send(before + garbage)
                until(lambda: waiting(servers["fast"]) == 0)
                shared_upstream.let_go()
                statuses = []
                while (reply := connection.response()) is not None:
                    statuses.append(reply.status)
                assert statuses == [200] * (1 + before.count(b"HTTP/1.1")) + [400]
