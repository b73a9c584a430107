"""One server with a local model, a proxied one, and two that cannot be loaded: each is on its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import tiny_onnx
from tests.server.test_dialects import LANES, post
from tests.server.test_reload import Operator
from tests.support.servers import RunningServer, asgi_serve, carpool_serve, until
from tests.support.upstream import Upstream, vector

NAMES = ["local", "org/far", "broken", "missing"]
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}

# A body for one text by the last part of the path, and where in its answer the vector is.
Read = Callable[[Any], Any]
DIALECTS: dict[str, tuple[dict[str, Any], Read]] = {
    "embed": ({"input": "a"}, lambda reply: reply["embedding"]),
    "predict": ({"data": "a"}, lambda reply: reply["result"]),
    "infer": ({"inputs": [TENSOR]}, lambda reply: reply["outputs"][0]["data"]),
    "embeddings": ({"input": "a"}, lambda reply: reply["data"][0]["embedding"]),
}


# What the errors of a dialect have.
ENVELOPES = {
    "/models/no/embed": "error",
    "/models/no/predict": "detail",
    "/models/no/similarity": "error_type",
    "/v2/models/no/infer": "error",
    "/v1/embeddings": "error",
    "/v1/rerank": "message",
}


def texts_in(reply: Any) -> list[str]:
    return [
        text
        for value in reply.values()
        for text in (texts_in(value) if isinstance(value, dict) else [str(value)])
    ]


@pytest.fixture(scope="module")
def far() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def settings(far: Upstream, minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file. A broken model is found out by its worker, a missing one before there is any."""
    folder = tmp_path_factory.mktemp("several")
    for name, onnx in (("tiny", tiny_onnx.token_states()), ("broken", b"no ONNX")):
        (folder / name).mkdir()
        shutil.copy(minilm_dir / "tokenizer.json", folder / name)
        (folder / name / "model.onnx").write_bytes(onnx)
    (folder / "config.toml").write_text(
        f"""
        engine = "onnxruntime"
        [models.local]
        model = "{folder}/tiny"
        [models."org/far"]
        inference_url = "{far.url}"
        max_concurrent_workers = 1
        [models.broken]
        model = "{folder}/broken"
        [models.missing]
        model = "{folder}/missing"
        """
    )
    return folder / "config.toml"


@pytest.fixture(scope="module", params=["carpool serve", "uvicorn"])
def server(
    request: pytest.FixtureRequest, settings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "uvicorn":
        start = asgi_serve(folder, extra={"CARPOOL_CONFIG": str(settings)})
    else:
        start = carpool_serve(folder, ["--config", str(settings)])
    with start as server:
        until(lambda: server.client.get("/health").status_code == 200)
        until(lambda: states(server)["org/far"] == "healthy")
        yield server


def states(server: RunningServer) -> dict[str, str]:
    """What /health says of each model."""
    return {each["name"]: each["status"] for each in server.client.get("/health").json()["models"]}


def embed(server: RunningServer, path: str, **more: Any) -> Any:
    """The vector of a text, whatever the dialect of the path."""
    body, read = DIALECTS[path.partition("?")[0].rpartition("/")[2]]
    reply = post(server, path, body | more)
    assert reply.status_code == 200, reply.text
    return read(reply.json())


@LANES
def test_a_model_is_chosen_by_path_by_field_or_by_default(server: RunningServer, query: str) -> None:
    """The first table is for those who name none; a path that names one goes before the field."""
    own = embed(server, "/models/local/embed")
    assert len(own) == tiny_onnx.DIMENSIONS
    for path, named in [
        ("/embed", {}),
        ("/predict", {}),
        ("/models/local/predict", {}),
        ("/v1/embeddings", {}),
        ("/v1/embeddings", {"model": "local"}),
        ("/models/local/v1/embeddings", {"model": "org/far"}),
        ("/v2/models/local/infer", {}),
    ]:
        assert embed(server, f"{path}{query}", **named) == pytest.approx(own), path
    for path, named in [
        ("/models/org/far/embed", {}),
        ("/models/org/far/predict", {}),
        ("/v1/embeddings", {"model": "org/far"}),
        ("/models/org/far/v1/embeddings", {}),
        ("/v2/models/org/far/infer", {}),
        ("/v2/models/org/far/versions/1/infer", {}),
    ]:
        assert embed(server, f"{path}{query}", **named) == vector("a"), path


@LANES
def test_an_unknown_model_is_404_in_the_dialect_asked_and_says_what_is_served(
    server: RunningServer, query: str
) -> None:
    """By path as by field, and never passed on to an upstream."""
    for path, body in [
        ("/models/no/embed", {"input": "a"}),
        ("/models/no/predict", {"data": "a"}),
        ("/models/no/similarity", {}),
        ("/v2/models/no/infer", {"inputs": [TENSOR]}),
        ("/v1/embeddings", {"input": "a", "model": "no"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "model": "no"}),
    ]:
        reply = post(server, f"{path}{query}", body)
        assert (reply.status_code, ENVELOPES[path] in reply.json()) == (404, True), path
        assert f"served: {', '.join(NAMES)}" in " ".join(texts_in(reply.json())), path
    unknown = post(server, f"/v1/embeddings{query}", {"input": "a", "model": "no"}).json()
    assert unknown["error"]["code"] == "model_not_found"


@LANES
@pytest.mark.parametrize("name", ["broken", "missing"])
def test_a_model_that_could_not_be_loaded_refuses_and_leaves_the_others(
    server: RunningServer, name: str, query: str
) -> None:
    """503 in every dialect, at once; what is wrong is for the operator, in its /health and in the log."""
    for path in ("embed", "predict", "v1/embeddings"):
        body, _ = DIALECTS[path.rpartition("/")[2]]
        reply = post(server, f"/models/{name}/{path}{query}", body)
        assert reply.status_code == 503
        assert f"the model '{name}' could not be loaded" in reply.text
    assert post(server, f"/v1/embeddings{query}", {"input": "a", "model": name}).status_code == 503
    assert post(server, f"/v2/models/{name}/infer{query}", {"inputs": [TENSOR]}).status_code == 503
    own = server.client.get(f"/models/{name}/health")
    assert (own.status_code, own.json()["status"]) == (503, "unhealthy")
    assert "model" in own.json()["reason"]
    assert embed(server, f"/models/org/far/embed{query}") == vector("a")


def test_health_and_metrics_tell_the_truth_of_each_model(server: RunningServer, far: Upstream) -> None:
    """Those that serve make the server ready; the rest make it degraded."""
    health = server.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert states(server) == dict(zip(NAMES, ["healthy", "healthy", "unhealthy", "unhealthy"], strict=True))
    (proxied,) = (each for each in health.json()["models"] if "upstreams" in each)
    assert proxied["upstreams"] == [{"url": far.url, "status": "healthy"}]
    for name, status in zip(NAMES, [200, 200, 503, 503], strict=True):
        assert server.client.get(f"/models/{name}/health").status_code == status
        for version in ("", "/versions/1"):
            ready = server.client.get(f"/v2/models/{name}{version}/ready")
            assert (ready.status_code == 200) == (status == 200)
            assert ready.json() == {"name": name, "ready": status == 200}
        assert server.client.get(f"/v1/models/{name}").json()["id"] == name
        assert server.client.get(f"/v1/models/{name.replace('/', '%2F')}").json()["id"] == name
    assert server.client.get("/v2/models/no/ready").status_code == 404
    assert [each["id"] for each in server.client.get("/v1/models").json()["data"]] == NAMES
    assert server.client.get("/models/local/info").json()["model_id"].endswith("/tiny")
    metrics = server.client.get("/metrics").text
    up = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("carpool_replica_up{")]
    assert [(f'model="{name}"' in labels, value) for name, (labels, value) in zip(NAMES, up, strict=True)] == [
        (True, "1.0"),
        (True, "1.0"),
        (True, "0.0"),
        (True, "0.0"),
    ]


def test_everything_under_a_proxied_models_name_is_its_upstreams(server: RunningServer) -> None:
    """Without the prefix. In front of a local default model there is nobody to pass the rest on to."""
    passed = post(server, "/models/org/far/custom/path?x=1", {"inputs": ["a"]})
    assert passed.json() == [vector("a")]
    for path in ("/custom/path", "/models/local/custom/path", "/models/no/custom/path"):
        assert post(server, path, {"inputs": ["a"]}).status_code == 404


def test_the_documentation_has_the_paths_of_every_model(server: RunningServer) -> None:
    """With one model they would say nothing new, and are not in it."""
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {f"/models/{name}/embed" for name in NAMES} <= paths.keys()
    assert "/models/local/tokenize" in paths
    assert "/models/org/far/tokenize" not in paths


def test_a_proxied_model_may_be_the_default_one(settings: Path, tmp_path: Path) -> None:
    """Then what no route serves is passed on, but for what names a model."""
    arguments = ["--config", str(settings), "--default-model", "org/far"]
    with carpool_serve(tmp_path, arguments) as server:
        until(lambda: states(server)["org/far"] == "healthy")
        assert embed(server, "/embed") == vector("a")
        assert post(server, "/custom/path", {"inputs": ["a"]}).json() == [vector("a")]
        assert post(server, "/v2/models/no/custom/path", {"inputs": ["a"]}).status_code == 404
        until(lambda: "loading" not in states(server).values())
        assert len(embed(server, "/models/local/embed")) == tiny_onnx.DIMENSIONS
        assert server.stop() == 0


def test_a_worker_that_dies_is_trouble_of_its_model_alone(settings: Path, tmp_path: Path) -> None:
    """The proxied model serves throughout, /health says which one does not, and the worker comes back."""
    with carpool_serve(tmp_path, ["--config", str(settings)]) as server:
        until(lambda: server.client.get("/health").status_code == 200)  # so that no worker is loading
        until(lambda: states(server)["org/far"] == "healthy")
        (worker,) = server.children()
        os.kill(worker, signal.SIGKILL)
        until(lambda: states(server)["local"] == "unhealthy")
        assert server.client.get("/health").json()["status"] == "degraded"
        assert server.client.get("/models/local/health").status_code == 503
        assert embed(server, "/models/org/far/embed") == vector("a")
        until(lambda: states(server)["local"] == "healthy")
        assert len(embed(server, "/embed")) == tiny_onnx.DIMENSIONS
        assert server.stop() == 0


def test_a_model_that_could_not_be_loaded_is_tried_again(
    far: Upstream, minilm_dir: Path, tmp_path: Path
) -> None:
    """Once what was wrong with it is mended it serves; /health says until then what is wrong by now."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    shutil.copy(minilm_dir / "tokenizer.json", folder)
    (folder / "model.onnx").write_bytes(b"no ONNX")
    file = tmp_path / "config.toml"
    tables = f'[models.far]\ninference_url = "{far.url}"\n[models.tiny]\nmodel = "{folder}"\n'
    file.write_text(f'engine = "onnxruntime"\n{tables}')
    with carpool_serve(tmp_path, ["--config", str(file)]) as server:
        until(lambda: server.client.get("/health").json()["status"] == "degraded")
        health = server.client.get("/models/tiny/health")
        assert (health.status_code, "is not an ONNX model" in health.json()["reason"]) == (503, True)
        (folder / "tokenizer.json").rename(folder / "gone.json")
        until(lambda: "tokenizer.json" in server.client.get("/models/tiny/health").json()["reason"])
        (folder / "gone.json").rename(folder / "tokenizer.json")
        (folder / "model.onnx").write_bytes(tiny_onnx.token_states())
        until(lambda: states(server)["tiny"] == "healthy")
        assert len(embed(server, "/models/tiny/embed")) == tiny_onnx.DIMENSIONS
        assert len(server.children()) == 1
        assert server.stop() == 0


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Operator, Upstream, Upstream]]:
    """A server with two proxied models, and their upstreams."""
    with Upstream() as first, Upstream() as second:
        operator = Operator(tmp_path)
        rewrite(operator, a=[first], b=[second])
        with carpool_serve(tmp_path, ["--config", str(operator.file)]) as operator.server:
            until(lambda: set(states(operator.server).values()) == {"healthy"})
            yield operator, first, second


def rewrite(operator: Operator, **models: list[Upstream]) -> None:
    tables = []
    for name, urls in models.items():
        listed = json.dumps([each.url for each in urls])
        tables.append(f"[models.{name}]\nmax_concurrent_workers = 1\ninference_url = {listed}\n")
    operator.file.write_text("".join(tables))


def upstreams(server: RunningServer) -> dict[str, list[str]]:
    models = server.client.get("/health").json()["models"]
    return {each["name"]: [upstream["url"] for upstream in each["upstreams"]] for each in models}


def test_the_upstreams_of_each_model_come_and_go(two: tuple[Operator, Upstream, Upstream]) -> None:
    """A model whose own list has not changed keeps its upstreams; another setting is named with its model."""
    operator, first, second = two
    with Upstream() as third:
        rewrite(operator, a=[first], b=[third])
        operator.file.write_text(f"{operator.file.read_text()}max_batch_size = 7\n")
        operator.server.process.send_signal(signal.SIGHUP)
        until(lambda: upstreams(operator.server) == {"a": [first.url], "b": [third.url]})
        (line,) = operator.logged("changed settings need a restart")
        assert line["settings"] == ["models.b.max_batch_size"]
        before = len(second.batches)
        assert embed(operator.server, "/models/a/embed") == embed(operator.server, "/models/b/embed")
        assert (len(third.batches), len(second.batches)) == (1, before)


def test_a_model_that_is_taken_out_finishes_what_it_has(two: tuple[Operator, Upstream, Upstream]) -> None:
    """Its callers are answered, others are told that it is not served, and the other model goes on."""
    operator, first, second = two
    server = operator.server
    with ThreadPoolExecutor(1) as pool:
        second.hold()
        waits = pool.submit(embed, server, "/models/b/embed")
        assert second.arrived.acquire(timeout=30)
        rewrite(operator, a=[first])
        server.process.send_signal(signal.SIGHUP)
        until(lambda: set(states(server)) == {"a"})
        assert refused(server, "/models/b/embed") == "served: a"
        assert refused(server, "/embed?", status=200) == ""
        assert server.client.get("/v2/models/b/ready").status_code == 404
        assert server.client.get("/models/b/health").status_code == 404
        second.let_go()
        assert waits.result(30) == vector("a")
    until(lambda: bool(operator.logged("model removed")))
    assert 'model="b"' not in server.client.get("/metrics").text
    assert server.stop() == 0


def refused(server: RunningServer, path: str, status: int = 404) -> str:
    reply: httpx.Response = post(server, path, {"input": "a"})
    assert reply.status_code == status
    return str(reply.json()["error"]["detail"]) if status != 200 else ""


def test_where_no_model_can_be_loaded_the_server_does_not_start(settings: Path, tmp_path: Path) -> None:
    """Nobody could be served: what is wrong with the default one is said, as with a single model."""
    file = tmp_path / "bad.toml"
    file.write_text(f'[models.one]\nmodel = "{settings.parent}/broken"\n[models.two]\nmodel = "/no/such"\n')
    with (
        pytest.raises(AssertionError, match=r"the server did not start[^$]*\ncarpool: .*is not an ONNX model"),
        carpool_serve(tmp_path, ["--config", str(file)]),
    ):
        pass
