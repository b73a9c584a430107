"""What a backend learns of its upstream, and how it finds its way there."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from carpool.backends.http import HttpBackend
from carpool.core.replica import Capacity
from carpool.core.request import Request
from carpool.errors import BackendError, NotFound, Unreachable
from carpool.runtime.batcher import Batcher
from carpool.wire.call import Call
from tests.support.servers import holds_within_a_second
from tests.support.upstream import vector

Routes = Mapping[str, Any]  # from "GET /path" to a handler, or to what it answers as JSON


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


class Server:
    """An upstream made of routes, which may change; `heads` is what it was asked."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self.heads: list[tuple[str, Mapping[str, str]]] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = f"{request.method} {request.raw_path}"
        self.heads.append((asked, request.headers))
        reply = self.routes.get(asked)
        if callable(reply):
            reply = reply(json.loads(await request.text()))
        if isinstance(reply, web.Response):
            return reply
        if isinstance(reply, int) or reply is None:
            return web.Response(status=reply or 404)
        return web.json_response(reply)


@asynccontextmanager
async def serving(
    routes: Routes, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[Server]:
    server = Server(routes)
    runner = web.ServerRunner(web.Server(server.answer))
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
    port = runner.addresses[0][1]
    shown = f"[{host}]" if ":" in host else "localhost" if tls else host
    server.url = f"{'https' if tls else 'http'}://{shown}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def until_described(backend: HttpBackend) -> None:
    """Started, reached, and asked what it is."""
    await backend.start(lambda: None)
    while backend.trouble() is not None:
        await asyncio.sleep(0.01)


def tei(body: Any) -> list[list[float]]:
    return [vector(text) for text in body["inputs"]]


def openai(body: Any) -> Any:
    assert body["model"] in ("m", "mine")
    data = [{"embedding": vector(text), "index": index} for index, text in enumerate(body["input"])]
    return {"object": "list", "data": data[::-1]}


def kserve(body: Any) -> Any:
    (tensor,) = body["inputs"]
    assert tensor["shape"] == [len(tensor["data"]), 1]
    assert (tensor["name"], tensor["datatype"]) == ("TEXT", "BYTES")
    flat = [number for text in tensor["data"] for number in vector(text)]
    output = {"name": "e", "datatype": "FP32", "shape": [len(tensor["data"]), 4], "data": flat}
    return {"model_name": "m", "outputs": [output]}


INFO = {"model_id": "m", "max_client_batch_size": 3, "max_batch_tokens": 900, "max_concurrent_requests": 64}
TEI = {"GET /info": INFO, "POST /embed": tei}
OPENAI = {"GET /v1/models": {"data": [{"id": "m"}]}, "POST /v1/embeddings": openai}
KSERVE = {
    "GET /v2": {"name": "triton", "version": "2", "extensions": []},
    "GET /v2/health/ready": {},
    "GET /v2/models/m": {"name": "m", "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}]},
    "GET /v2/models/m/config": {"max_batch_size": 2},
    "POST /v2/models/m/infer": kserve,
}


@pytest.mark.parametrize(
    ("routes", "path", "options", "name", "capacity"),
    [
        ({"POST /embed": tei}, "", {}, "tei", Capacity()),
        (TEI, "", {}, "tei", Capacity(batch_size=3, batch_cost=900, items=64)),
        (TEI, "/embed", {}, "tei", Capacity(batch_size=3, batch_cost=900, items=64)),
        ({"POST /custom": tei} | OPENAI, "/custom", {}, "tei", Capacity()),
        (TEI | OPENAI, "", {}, "tei", Capacity(batch_size=3, batch_cost=900, items=64)),
        (OPENAI, "", {}, "openai", Capacity()),
        (OPENAI, "/v1/embeddings", {"model": "mine"}, "openai", Capacity()),
        (TEI | OPENAI, "", {"upstream": "openai"}, "openai", Capacity()),
        (KSERVE, "", {"model": "m"}, "kserve_v2", Capacity(batch_size=2)),
        (KSERVE, "/v2/models/m/infer", {}, "kserve_v2", Capacity(batch_size=2)),
        (
            {"GET /info": {"version": 1}, "GET /v1/models": []} | KSERVE,
            "",
            {"model": "m"},
            "kserve_v2",
            Capacity(batch_size=2),
        ),
    ],
)
def test_an_upstream_is_asked_what_it_is(
    routes: Routes, path: str, options: dict[str, Any], name: str, capacity: Capacity
) -> None:
    """Its dialect and its limits, by its URL, by the settings, or by what it says; texts get their vectors."""

    async def main() -> None:
        async with serving(routes) as server:
            backend = HttpBackend(server.url + path, **options)
            await until_described(backend)
            assert (backend.description.dialect.name, backend.capacity) == (name, capacity)
            results = await backend.run([b'"a"', b'"b"', b'"c"', b'"d"'])
            assert [json.loads(bytes(result)) for result in results] == [vector(text) for text in "abcd"]
            await backend.close()

    run(main())


def test_the_first_batch_waits_until_it_is_known_how_to_say_it() -> None:
    """At a base URL the dialect is not known before the upstream has been asked."""

    async def main() -> None:
        async with serving(OPENAI) as server:
            backend = HttpBackend(server.url)
            await backend.start(lambda: None)
            assert len(await backend.run([b'"a"'])) == 1
            await backend.close()

    run(main())


def test_whoever_comes_back_is_asked_again() -> None:
    """It may be another version, with other limits; the change is told within a second."""
    changes: list[int | None] = []

    async def main() -> None:
        async with serving(TEI) as server:
            port = int(server.url.rpartition(":")[2])
            backend = HttpBackend(server.url)
            await backend.start(lambda: changes.append(backend.capacity.batch_size))
            assert len(await backend.run([b'"a"'])) == 1
            assert changes[-1] == 3
        with pytest.raises(Unreachable):
            await backend.run([b'"a"'])
        assert backend.trouble() is not None
        async with serving(TEI | {"GET /info": INFO | {"max_client_batch_size": 5}}, port=port):
            assert await holds_within_a_second(lambda: changes[-1] == 5)
            assert backend.trouble() is None
        await backend.close()

    run(main())


def test_health_that_is_refused_is_trouble_until_it_is_not() -> None:
    """503 from any, 400 from Triton."""

    async def main() -> None:
        async with serving(TEI | {"GET /health": 503}) as server:
            backend = HttpBackend(server.url)
            await backend.start(lambda: None)
            while "503" not in str(backend.trouble()):
                await asyncio.sleep(0.01)
            server.routes = TEI
            while backend.trouble() is not None:
                await asyncio.sleep(0.01)
            assert backend.capacity.batch_size == 3
            await backend.close()

    run(main())


def test_a_models_name_is_escaped_once() -> None:
    """Whether it comes from the settings or from the URL."""
    routes = {asked.replace("models/m", "models/my%20model%3F"): answer for asked, answer in KSERVE.items()}

    async def main() -> None:
        async with serving(routes) as server:
            for backend in (
                HttpBackend(server.url, upstream="kserve_v2", model="my model?"),
                HttpBackend(f"{server.url}/v2/models/my%20model%3F/infer"),
            ):
                await until_described(backend)
                assert backend.capacity == Capacity(batch_size=2)
                assert len(await backend.run([b'"a"'])) == 1
                assert backend.description.model == "my model?"
                await backend.close()

    run(main())


def test_openais_usual_base_url_is_one() -> None:
    """Embeddings are under it."""

    async def main() -> None:
        async with serving(OPENAI) as server:
            for path in ("/v1", "/v1/"):
                backend = HttpBackend(server.url + path)
                await until_described(backend)
                assert len(await backend.run([b'"a"'])) == 1
                assert (backend.description.dialect.name, backend.description.model) == ("openai", "m")
                await backend.close()

    run(main())


def test_a_url_without_embeddings_is_trouble_until_they_are_there() -> None:
    """Though a server answers there, which may have no route for health; what else it serves is forwarded."""

    async def main() -> None:
        async with serving(TEI) as server:
            backend = HttpBackend(f"{server.url}/x/embed")
            await backend.start(lambda: None)
            while "404 to POST /x/embed" not in str(backend.trouble()):
                await asyncio.sleep(0.01)
            assert backend.unreachable() is None
            with pytest.raises(BackendError, match="404"):
                await backend.run([b'"a"'])
            server.routes = TEI | {"POST /x/embed": tei}
            while backend.trouble() is not None:
                await asyncio.sleep(0.01)
            assert len(await backend.run([b'"a"'])) == 1
            await backend.close()

    run(main())


def test_embeddings_that_turn_out_to_be_nowhere_are_trouble() -> None:
    """Of a base URL that is not asked before: the upstream may be there for what is forwarded."""

    async def main() -> None:
        async with serving({}) as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
            await asyncio.sleep(0.1)
            assert [asked for asked, _ in server.heads if "embed" in asked] == []
            with pytest.raises(BackendError, match="404"):
                await backend.run([b'"a"'])
            assert await holds_within_a_second(lambda: "404 to POST /embed" in str(backend.trouble()))
            await backend.close()

    run(main())


@pytest.mark.parametrize("status", [400, 401, 405, 422, 500])
def test_embeddings_that_are_refused_where_none_are_asked_for_are_there(status: int) -> None:
    """Whatever is said to a question without an input, but that there is nothing."""

    async def main() -> None:
        async with serving({"POST /v1/embeddings": status}) as server:
            backend = HttpBackend(f"{server.url}/v1/embeddings")
            await until_described(backend)
            assert [asked for asked, _ in server.heads].count("POST /v1/embeddings") == 1
            await backend.close()

    run(main())


def test_a_model_that_is_not_there_is_no_missing_route() -> None:
    """By its words; so it concerns those alone who ask for it."""

    def refuse(body: Any) -> web.Response:
        return web.json_response({"error": {"message": "The model `m` does not exist."}}, status=404)

    async def main() -> None:
        async with serving({"POST /v1/embeddings": refuse}) as server:
            backend = HttpBackend(f"{server.url}/v1", model="m")
            await until_described(backend)
            await backend.close()

    run(main())


def test_an_upstream_that_dies_while_nothing_is_asked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look now and then, while there are no batches to tell."""
    monkeypatch.setattr("carpool.backends.http.backend._WELL_SECONDS", 0.6)

    async def main() -> None:
        async with serving(TEI) as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
        while backend.trouble() is None:
            await asyncio.sleep(0.01)
        await backend.close()

    run(main())


def test_credentials_travel_in_their_header() -> None:
    """A key, a user in the URL, or what the caller sent; also when it is asked what it is."""

    async def main() -> None:
        async with serving(TEI) as server:
            for url, key, call, expected in [
                (server.url, "secret", None, "Bearer secret"),
                (server.url.replace("//", "//me:p%40ss@"), "", None, "Basic bWU6cEBzcw=="),
                (server.url, "secret", Call.of("embed", "Bearer theirs"), "Bearer theirs"),
                (server.url, "", None, None),
            ]:
                server.heads.clear()
                backend = HttpBackend(url, api_key=key)
                await until_described(backend)
                await backend.run([b'"a"'], call)
                asked = {route: sent.get("authorization") for route, sent in server.heads}
                assert asked["POST /embed"] == expected
                assert asked["GET /info"] == ("Bearer secret" if key else expected)
                await backend.close()

    run(main())


def test_a_model_that_is_not_there_is_the_callers_affair() -> None:
    """However often one asks for it, it counts against no upstream and concerns nobody else."""
    routes = OPENAI | {"POST /v1/embeddings": lambda body: openai(body) if body["model"] == "m" else 404}

    async def main() -> None:
        async with serving(routes) as server:
            backend = HttpBackend(server.url, upstream="openai", model="m")
            async with Batcher(backend) as batcher:
                for _ in range(20):
                    unknown = await ended(batcher, Call.of("embed", model="no"))
                    assert type(unknown.error) is NotFound
                assert all(replica.is_up for replica in batcher.replicas())
                assert (await ended(batcher, None)).error is None

    async def ended(batcher: Batcher[Any, Any], group: Call | None) -> Request:
        done = asyncio.Event()
        request = Request([b'"a"'], lambda _: done.set(), group=group)
        batcher.enqueue(request)
        await done.wait()
        return request

    run(main())


def test_credentials_that_are_no_header_are_refused() -> None:
    """A line break in them would be a header of the caller's own."""

    async def main() -> None:
        async with serving(TEI) as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
            with pytest.raises(Exception, match="not a header"):
                await backend.run([b'"a"'], Call.of("embed", "Bearer a\r\nx: y"))
            await backend.close()

    run(main())


def test_every_operation_reaches_its_own_route() -> None:
    """A group is a call: what its items have in common goes with them."""
    routes = {
        "POST /rerank": lambda body: [
            {"index": i, "score": len(body["query"])} for i, _ in enumerate(body["texts"])
        ],
        "POST /similarity": lambda body: [0.5 for _ in body["inputs"]["sentences"]],
    }

    async def main() -> None:
        async with serving(TEI | routes) as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
            ranks = await backend.run([b'"a"', b'"b"'], Call.of("rerank", query="four"))
            assert [json.loads(bytes(rank))["score"] for rank in ranks] == [4, 4]
            scores = await backend.run([b'"a"', b'"b"', b'"c"'], Call.of("similarity", source_sentence="s"))
            assert len(scores) == 3
            asked = [route for route, _ in server.heads if route == "POST /similarity"]
            assert len(asked) == 2  # the source counts as well: 4 in one request would be more than 3
            await backend.close()

    run(main())


def test_a_call_with_a_long_text_is_not_kept_prepared() -> None:
    """As of a rerank, whose query makes a kind of call of its own."""

    async def main() -> None:
        async with serving(TEI | {"POST /rerank": lambda _: [{"index": 0, "score": 1}]}) as server:
            backend = HttpBackend(server.url, upstream="tei")
            await until_described(backend)
            for query, kept in (("q" * 1000, 1), ("q" * 1001, 1), ("q", 2)):
                call = Call.of("rerank", credentials="c" * 24, query=query)
                assert len(await backend.run([b'"a"'], call)) == 1
                assert backend._prepare_again.cache_info().currsize == kept
            await backend.close()

    run(main())


def test_ipv6() -> None:
    """An address in brackets."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def main() -> None:
        async with serving(TEI, host="::1") as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
            assert len(await backend.run([b'"a"'])) == 1
            await backend.close()

    run(main())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return certificate, key


def test_https_with_a_certificate_that_is_trusted_and_with_one_that_is_not(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who signed it is checked, against what the system (or SSL_CERT_FILE) trusts."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)

    async def main() -> None:
        async with serving(TEI, tls=tls, host="localhost") as server:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            backend = HttpBackend(f"{server.url}/embed")
            await backend.start(lambda: None)
            for _ in range(3):
                results = await backend.run([b'"%b"' % (b"a" * 100_000), b'"b"'])
                assert json.loads(bytes(results[1])) == vector("b")
            await backend.close()
            monkeypatch.delenv("SSL_CERT_FILE")
            backend = HttpBackend(f"{server.url}/embed")
            await backend.start(lambda: None)
            with pytest.raises(Unreachable, match="certificate"):
                await backend.run([b'"a"'])
            await backend.close()

    run(main())


def test_a_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every client does; `no_proxy` excepts."""
    monkeypatch.setenv("http_proxy", "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    upstream = "http://tei.example"
    routes = {f"GET {upstream}/info": INFO, f"POST {upstream}/embed": tei}

    async def main() -> None:
        async with serving(routes) as proxy, serving(TEI) as direct:
            monkeypatch.setenv("http_proxy", proxy.url)
            for url, asked in [(upstream, proxy), (direct.url, direct)]:
                backend = HttpBackend(url)
                await until_described(backend)
                assert backend.capacity.batch_size == 3
                assert len(await backend.run([b'"a"'])) == 1
                assert any(route.startswith("POST") for route, _ in asked.heads)
                await backend.close()
            proxy.routes = {f"POST {upstream}/embed": 502}
            backend = HttpBackend(f"{upstream}/embed")
            await backend.start(lambda: None)
            with pytest.raises(Unreachable, match="502"):
                await backend.run([b'"a"'])
            await backend.close()

    run(main())


def test_an_upstream_that_takes_texts_only_is_said_so() -> None:
    """What it cannot be asked is the caller's error."""

    async def main() -> None:
        async with serving(OPENAI) as server:
            backend = HttpBackend(server.url)
            await until_described(backend)
            with pytest.raises(Exception, match="it speaks openai, which has embed") as caught:
                await backend.run([b'"a"'], Call.of("rerank", query="q"))
            assert not isinstance(caught.value, BackendError)
            await backend.close()

    run(main())
