"""The HTTP contract, against real servers in processes of their own, however they were started."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.support.servers import ASGI_SERVERS, RunningServer, asgi_serve, carpool_serve
from tests.support.upstream import Upstream, vector

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["carpool serve", *ASGI_SERVERS])
def server(
    request: pytest.FixtureRequest, shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """The same contract whoever listens. The file makes the limits small enough to reach."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "config.toml").write_text("[server]\nmax_text_bytes = 1000\nmax_predict_bytes = 5000\n")
    extra = {"INFERENCE_URL": shared_upstream.url}
    if request.param == "carpool serve":
        start = carpool_serve(folder, extra=extra)
    else:
        start = asgi_serve(folder, extra=extra, name=request.param)
    with start as server:
        yield server


def post(server: RunningServer, path: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(path, content=content, headers=JSON, **options)


def test_embed_is_one_text_in_one_vector_out(server: RunningServer) -> None:
    """The body is exactly the contract's."""
    reply = post(server, "/embed", {"input": "What is vector search?"})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"embedding": vector("What is vector search?")}


def test_predict_is_data_in_result_out(server: RunningServer) -> None:
    """With an id and the time it took."""
    reply = post(server, "/predict", {"data": "a text"})
    assert reply.status_code == 200
    body = reply.json()
    assert body.keys() == {"result", "request_id", "processing_time"}
    assert body["result"] == vector("a text")
    assert 0 < body["processing_time"] < 60


def test_health_is_healthy(server: RunningServer) -> None:
    """For a load balancer, with GET or HEAD."""
    reply = server.client.get("/health")
    assert reply.status_code == 200
    body = reply.json()
    assert body["status"] == "healthy"
    assert abs(body["timestamp"] - time.time()) < 60
    assert isinstance(body["timestamp"], int)
    assert body["service"] == "carpool"
    assert server.client.head("/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not json", "not valid JSON"),
        (b"", "not valid JSON"),
        ({"text": "x"}, "missing required field `input`"),
        ({"input": ""}, "`input` is empty"),
        ({"input": "   "}, "`input` is empty"),
        ({"input": 7}, "Expected `str`, got `int`"),
        ({"input": ["a"]}, "Expected `str`, got `array`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_bad_input_is_400_in_the_envelope_and_422_for_predict(
    server: RunningServer, body: Any, words: str
) -> None:
    """Each dialect in its own way, both with what is expected."""
    reply = post(server, "/embed", body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error.keys() == {"code", "message", "detail"}
    assert error["code"] == 400
    assert words in error["message"]
    assert "expected" in error["detail"]
    predicted = post(server, "/predict", body)
    assert predicted.status_code == 422
    assert predicted.json().keys() == {"detail"}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        (None, 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_the_content_type(server: RunningServer, content_type: str | None, status: int) -> None:
    """JSON by any of its names, or none; anything else is told what is allowed."""
    headers = {"content-type": content_type} if content_type else {}
    reply = server.client.post("/embed", content=b'{"input": "x"}', headers=headers)
    assert reply.status_code == status
    if status == 415:
        assert reply.json()["error"]["detail"] == "allowed: application/json"


def test_a_compressed_body_is_told_so(server: RunningServer) -> None:
    """By its header, and not that it is no JSON."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = server.client.post("/embed", content=gzip.compress(b'{"input": "x"}'), headers=headers)
    assert reply.status_code == 415
    error = reply.json()["error"]
    assert error["message"] == "Content-Encoding gzip is not read here"
    assert error["detail"] == "allowed: identity, so none"


@pytest.mark.parametrize(("path", "field", "limit"), [("/embed", "input", 1000), ("/predict", "data", 5000)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(
    server: RunningServer, path: str, field: str, limit: int, chunked: bool
) -> None:
    """Whether its length was announced or not; the next request on the connection is served."""

    def send(size: int) -> httpx.Response:
        body = json.dumps({field: "x" * (size - len(json.dumps({field: ""})))}).encode()
        assert len(body) == size
        content = iter([body[:100], body[100:]]) if chunked else body
        return server.client.post(path, content=content, headers=JSON)

    assert send(limit).status_code == 200
    refused = send(limit + 1)
    assert refused.status_code == 413
    assert f"allowed: {limit} bytes" in refused.text
    assert send(limit).status_code == 200


@pytest.mark.parametrize("path", ["/", "/nowhere", "/embed/", "/embed/x", "//embed"])
def test_an_unknown_route_is_the_upstreams_to_refuse(server: RunningServer, path: str) -> None:
    """In front of an upstream, what is not served here is forwarded."""
    reply = server.client.request("POST", server.url + path, content=b"{}")
    assert (reply.status_code, reply.text) == (404, "404: Not Found")


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("GET", "/embed", "POST"), ("DELETE", "/health", "GET, HEAD")]
)
def test_a_wrong_method_is_405_with_allow(server: RunningServer, method: str, path: str, allow: str) -> None:
    """In the envelope, with the header that HTTP asks for."""
    reply = server.client.request(method, path)
    assert reply.status_code == 405
    assert allow in reply.headers["allow"]
    assert reply.json()["error"]["code"] == 405


def test_predict_refuses_in_its_own_dialect(server: RunningServer) -> None:
    """Also what never reached its handler."""
    reply = server.client.get("/predict")
    assert (reply.status_code, reply.json().keys()) == (405, {"detail"})


def test_metrics_are_prometheus_text_or_a_json_summary(server: RunningServer) -> None:
    """Counters move with requests; the summary has the keys it always had, in seconds."""
    before = server.client.get("/metrics", headers={"accept": "application/json"}).json()
    for number in range(5):
        assert post(server, "/embed", {"input": f"text {number}"}).status_code == 200
    after = server.client.get("/metrics", headers={"accept": "application/json"}).json()
    assert after.keys() == {
        "total_requests",
        "total_batches",
        "avg_batch_size",
        "avg_inference_time",
        "p50_latency",
        "p95_latency",
        "rps_approx",
    }
    assert after["total_requests"] - before["total_requests"] == 5
    assert 0 < after["p50_latency"] <= after["p95_latency"] < 60
    text = server.client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert 'carpool_requests_total{model="default",outcome="ok"}' in text.text
    assert 'carpool_queue_items{model="default"} 0.0' in text.text


def has_example(schema: Any) -> bool:
    if isinstance(schema, dict):
        return "example" in schema or any(map(has_example, schema.values()))
    return False


def test_the_page_to_try_it_needs_no_internet(server: RunningServer) -> None:
    """All that it refers to is here, beside it."""
    page = server.client.get("/docs").text
    assert "://" not in page
    parts = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page)
    assert len(parts) == 4
    for part in map("".join, parts):
        reply = server.client.get(urljoin("/docs", part))
        assert reply.status_code == 200
        assert len(reply.content) > 500
        expected = {"js": "javascript", "css": "text/css", "png": "image/png", "json": "json"}
        assert expected[part.rpartition(".")[2]] in reply.headers["content-type"]


def test_the_documentation_describes_every_route_with_an_example(server: RunningServer) -> None:
    """OpenAPI is served and true, and there is a page to read it."""
    assert server.client.get("/docs").status_code == 200
    document = server.client.get("/openapi.json").json()
    assert document["paths"].keys() >= {
        "/embed",
        "/predict",
        "/rerank",
        "/v1/embeddings",
        "/health",
        "/metrics",
    }
    for path, operations in document["paths"].items():
        if "post" not in operations:
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        for variant in schema.get("anyOf", [schema]):
            assert all(has_example(variant["properties"][field]) for field in variant["required"]), path
        assert {"200", "413", "415", "503"} <= operations["post"]["responses"].keys()


def test_an_upstream_failure_is_502_in_the_envelope_and_500_for_predict(
    server: RunningServer, shared_upstream: Upstream
) -> None:
    """And the next request is served."""
    shared_upstream.answer_with = (500, b'{"error": "out of memory"}')
    try:
        reply = post(server, "/embed", {"input": "x"})
        predicted = post(server, "/predict", {"data": "x"})
    finally:
        shared_upstream.answer_with = None
    assert reply.status_code == 502
    assert reply.json()["error"] == {
        "code": 502,
        "message": "the upstream answered 500",
        "detail": "out of memory",
    }
    assert predicted.status_code == 500
    assert post(server, "/embed", {"input": "x"}).status_code == 200


@pytest.mark.parametrize("serve", [carpool_serve, asgi_serve])
def test_a_misspelt_variable_is_in_the_log(
    serve: Callable[..., AbstractContextManager[RunningServer]], tmp_path: Path, shared_upstream: Upstream
) -> None:
    """Its default holds, which nobody would look for there. Those of a Kubernetes Service do not matter."""
    extra = {
        "CARPOOL_MAX_BATCHSIZE": "1",
        "CARPOOL_SERVICE_HOST": "10.0.0.1",
        "CARPOOL_PORT_80_TCP": "tcp://a:80",
    }
    with serve(tmp_path, extra=extra | {"INFERENCE_URL": shared_upstream.url}) as server:
        warnings = [line for line in server.log.read_text().splitlines() if '"warning"' in line]
    (warning,) = [json.loads(line) for line in warnings]
    assert warning["event"].endswith("MAX_BATCHSIZE is not a setting: did you mean CARPOOL_MAX_BATCH_SIZE?")


def test_the_log_is_json_without_payloads_when_it_is_not_a_terminal(
    tmp_path: Path, shared_upstream: Upstream
) -> None:
    """A batch at DEBUG says why it left; start-up says the policy; no text of a caller is in it."""
    arguments = ["--inference-url", shared_upstream.url, "--log-level", "debug", "--policy", "timeout"]
    with carpool_serve(tmp_path, [*arguments, "--max-wait-time-ms", "1"]) as server:
        assert post(server, "/embed", {"input": "a-secret-text"}).status_code == 200
        assert post(server, "/embed", {"input": ["a-secret-text"]}).status_code == 400
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert "a-secret-text" not in server.log.read_text()
    (left,) = (line for line in lines if line["event"] == "batch left")
    assert (left["why"], left["items"], left["level"]) == ("waited", 1, "debug")
    (serving,) = (line for line in lines if line["event"] == "serving")
    assert serving["policy"] == "timeout: leave at 32 items or after 1 ms"
