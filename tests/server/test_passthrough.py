"""What carpool does not serve itself goes to the upstream untouched, and comes back untouched."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.server.raw import connect, post, text
from tests.support.servers import RunningServer, asgi_serve, carpool_serve, until
from tests.support.upstream import InThread, Upstream, vector

PIECE = b"x" * 65_536


class Elsewhere(InThread):
    """An upstream that tells what it was asked and whether its caller stayed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.gone = threading.Event()
        self.received = 0

    def _runner(self) -> web.BaseRunner:
        return web.ServerRunner(web.Server(self._answer, handler_cancellation=True))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.raw_path}")
        match request.path:
            case "/echo":
                headers = {"x-asked": json.dumps(dict(request.headers)), "x-more": "1"}
                headers |= {"connection": "X-Hop", "x-hop": "1"}
                return web.Response(status=207, body=await request.read(), headers=headers)
            case "/stream":
                return await self._stream(request)
            case "/upload":
                async for chunk in request.content.iter_any():
                    self.received += len(chunk)
                return web.json_response(self.received)
            case "/broken":
                return await self._break(request)
            case "/slow":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.gone.set()
                    raise
        return web.Response(status=404, text="not here either")

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """An endless body, as long as somebody reads it."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(PIECE)
        finally:
            self.gone.set()

    async def _break(self, request: web.BaseRequest) -> web.StreamResponse:
        """Half of a body."""
        response = web.StreamResponse(headers={"content-length": "10"})
        await response.prepare(request)
        await response.write(b"12345")
        assert request.transport is not None
        request.transport.close()
        return response


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as elsewhere:
        yield elsewhere


@pytest.fixture
def carpool(elsewhere: Elsewhere, tmp_path: Path) -> Iterator[RunningServer]:
    """Carpool in front of it, once it has found it."""
    arguments = ["--inference-url", elsewhere.url, "--upstream-api-key", "secret"]
    with carpool_serve(tmp_path, arguments) as server:
        until(lambda: server.client.get("/health").status_code == 200)
        yield server


def asked(reply: httpx.Response) -> dict[str, Any]:
    """The headers that the upstream got."""
    return {name.lower(): value for name, value in json.loads(reply.headers["x-asked"]).items()}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_request_is_forwarded_as_it_is(carpool: RunningServer, elsewhere: Elsewhere, method: str) -> None:
    """Method, path, query, headers and body; and the reply's status, headers and body."""
    body = b'{"inputs": [1]}' if method not in ("GET", "OPTIONS") else b""
    headers = [(b"X-Own", "é".encode("latin-1")), (b"te", b"trailers")]
    reply = carpool.client.request(method, "/echo?a=%2F&b=1", content=body or None, headers=headers)
    assert (reply.status_code, reply.content, reply.headers["x-more"]) == (207, body, "1")
    assert f"{method} /echo?a=%2F&b=1" in elsewhere.asked
    assert len(reply.headers.get_list("date")) == 1
    seen = asked(reply)
    assert seen["host"] == elsewhere.url.removeprefix("http://")
    assert seen["user-agent"].startswith("python-httpx")
    assert seen["authorization"] == "Bearer secret"
    assert "te" not in seen
    assert "x-own" in seen
    assert seen.get("content-length") == (str(len(body)) if body else None)


def test_what_connection_names_is_not_forwarded(carpool: RunningServer) -> None:
    """It belongs to one connection (RFC 9110, 7.6.1), whichever side says so."""
    reply = carpool.client.get("/echo", headers={"connection": "x-a, X-B", "x-a": "1", "x-b": "1", "x-c": "1"})
    assert {"x-a", "x-b", "x-c"} & asked(reply).keys() == {"x-c"}
    assert {"x-hop", "x-more"} & reply.headers.keys() == {"x-more"}


def test_the_callers_own_credentials_go_before_ours(carpool: RunningServer) -> None:
    """Whoever sends a key means it."""
    reply = carpool.client.get("/echo", headers={"authorization": "Bearer theirs"})
    assert asked(reply)["authorization"] == "Bearer theirs"


def test_head_and_not_found_are_the_upstreams(carpool: RunningServer) -> None:
    """An unknown path is the upstream's to refuse."""
    assert carpool.client.head("/echo").status_code == 207
    reply = carpool.client.get("/nowhere%20at/all")
    assert (reply.status_code, reply.text) == (404, "not here either")


@pytest.fixture(scope="module")
def thief() -> Iterator[Elsewhere]:
    """Nobody's upstream."""
    with Elsewhere() as thief:
        yield thief


@pytest.fixture(scope="module", params=["carpool serve", "uvicorn", "hypercorn"])
def in_front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Elsewhere]]:
    """Carpool under servers that take a request's target apart, and under those that leave that to the app."""
    folder = tmp_path_factory.mktemp("in_front")
    with Elsewhere() as elsewhere, ExitStack() as stack:
        extra = {"INFERENCE_URL": elsewhere.url}
        if request.param == "carpool serve":
            server = stack.enter_context(carpool_serve(folder, extra=extra))
        else:
            flags = ["--http", "h11"] if request.param == "uvicorn" else []
            server = stack.enter_context(asgi_serve(folder, flags, extra, name=request.param))
        until(lambda: server.client.get("/health").status_code == 200)
        yield server, elsewhere


TARGETS = ["@127.0.0.1:{port}/steal", "*", "127.0.0.1:{port}", "127.0.0.1:{port}/steal", ":1/steal", "steal"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_path_is_refused_and_forwarded_to_nobody(
    in_front: tuple[RunningServer, Elsewhere], thief: Elsewhere, target: str
) -> None:
    """Behind the upstream's host it could name another one."""
    server, upstream = in_front
    before = len(upstream.asked)
    method = "OPTIONS" if target == "*" else "GET"
    with connect(server) as connection:
        connection.send(f"{method} {target.format(port=thief.port)} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        reply = connection.response()
        assert reply is not None
        assert reply.status == 400
    assert thief.asked == []
    assert upstream.asked[before:] in ([], ["GET /health"])  # a probe of our own


def test_of_a_whole_url_the_path_counts(in_front: tuple[RunningServer, Elsewhere], thief: Elsewhere) -> None:
    """Whichever host is in it, and whether the path is ours or the upstream's."""
    server, upstream = in_front
    with connect(server) as connection:
        for url, status in (("/echo?a=%2F", 207), ("/no%20where", 404), ("/health", 200)):
            line = f"GET http://127.0.0.1:{thief.port}{url} HTTP/1.1\r\nhost: a\r\n\r\n"
            connection.send(line.encode())
            reply = connection.response()
            assert reply is not None
            assert reply.status == status, reply
        connection.send(post(text(" "), path="HTTP://a/embed"))
        reply = connection.response()
        assert reply is not None
        assert b"`input` is empty" in reply.body
    assert {"GET /echo?a=%2F", "GET /no%20where"} <= set(upstream.asked)
    assert thief.asked == []


def test_our_own_routes_stay_ours(carpool: RunningServer, elsewhere: Elsewhere) -> None:
    """Also with a method that they do not have."""
    for path in ("/health", "/metrics", "/docs", "/openapi.json"):
        assert carpool.client.get(path).status_code == 200
    assert carpool.client.get("/embed").status_code == 405
    seen = set(elsewhere.asked) - {"GET /health", "GET /info", "GET /v1/models", "GET /v2"}
    assert not seen


def test_bodies_stream_in_both_directions(carpool: RunningServer, elsewhere: Elsewhere) -> None:
    """A reply without end is read as it comes, and ends at the upstream when its reader goes."""

    def pieces() -> Iterator[bytes]:
        for _ in range(500):
            yield PIECE

    assert carpool.client.post("/upload", content=pieces()).json() == 500 * len(PIECE)
    with carpool.client.stream("GET", "/stream") as reply:
        chunks = reply.iter_raw()
        assert reply.headers["content-type"] == "text/event-stream"
        assert sum(len(next(chunks)) for _ in range(20)) > 0
    assert elsewhere.gone.wait(10)


def test_a_caller_that_hangs_up_is_known_to_the_upstream(carpool: RunningServer, elsewhere: Elsewhere) -> None:
    """Nobody computes for nobody."""
    with pytest.raises(httpx.ReadTimeout):
        carpool.client.post("/slow", content=b"x", timeout=0.3)
    assert elsewhere.gone.wait(10)


def test_a_reply_that_breaks_off_breaks_off(carpool: RunningServer) -> None:
    """Half a body must not look like a whole one; the server lives on, without a traceback."""
    with pytest.raises(httpx.RemoteProtocolError):
        carpool.client.get("/broken")
    assert carpool.client.get("/echo").status_code == 207
    assert "Traceback" not in carpool.log.read_text()


def test_an_upstream_that_is_not_there_is_503_in_the_envelope(tmp_path: Path) -> None:
    """With when to come back."""
    with carpool_serve(tmp_path, ["--inference-url", "http://127.0.0.1:1"]) as server:
        reply = server.client.get("/anything")
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["message"] == "no upstream can be reached"


@pytest.mark.parametrize("path", ["/nowhere", "/embed/", "/embed/x", "//embed"])
def test_a_local_model_forwards_nothing(model_server: RunningServer, path: str) -> None:
    """There is nobody to forward to: 404 in the envelope, which lists the routes there are."""
    reply = model_server.client.request("POST", model_server.url + path, content=b"{}")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == 404
    assert f"there is no route {path}" in reply.json()["error"]["message"]
    assert "/embed" in reply.json()["error"]["detail"]


def test_several_upstreams_share_the_work_and_one_may_be_down(tmp_path: Path, upstream: Upstream) -> None:
    """Whoever is well serves, batches and all else."""
    with Upstream() as other:
        arguments = ["--inference-url", upstream.url, "--inference-url", f"{other.url},http://127.0.0.1:1"]
        with carpool_serve(tmp_path, arguments) as server:
            until(lambda: server.client.get("/health").status_code == 200)

            async def main() -> list[Any]:
                async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
                    requests = (client.post("/embed", json={"input": f"text {n}"}) for n in range(300))
                    return [reply.json() for reply in await asyncio.gather(*requests)]

            assert asyncio.run(main()) == [{"embedding": vector(f"text {n}")} for n in range(300)]
            assert upstream.batches
            assert other.batches
            assert {server.client.get("/somewhere").status_code for _ in range(6)} == {404}
