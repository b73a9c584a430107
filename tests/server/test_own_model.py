"""A team's own Python model behind the routes, in a worker process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.servers import RunningServer, carpool_serve, environment, until


@pytest.fixture(scope="module")
def scale(folder: Path) -> Iterator[RunningServer]:
    with carpool_serve(folder, ["--model", "own_models:Scale"]) as server:
        yield server


def predict(server: RunningServer, **request: Any) -> Any:
    reply = server.client.post("/predict", **request)
    return reply.json()["result"]["twice"] if reply.status_code == 200 else (reply.status_code, reply.json())


def test_json_bytes_and_files_give_the_same_result(scale: RunningServer) -> None:
    """`/predict` reads what its content type says; the model is in the current folder."""
    numbers = np.array([[1, 2], [3, 4]], dtype=np.float32)
    expected = [[2, 4], [6, 8]]
    octets = {"content-type": "application/octet-stream", "x-shape": "2,2"}
    assert predict(scale, json={"data": numbers.tolist()}) == expected
    assert predict(scale, content=numbers.tobytes(), headers=octets) == expected
    assert predict(scale, content=b'{ "id": 7, "data": [[1, 2], [3, 4]] }') == expected


def test_a_wrong_shape_is_422_and_fails_nobody_else(scale: RunningServer) -> None:
    """In one batch or in many, each caller gets their own."""
    inputs = [[[place], [place]] if place % 3 else [place] for place in range(24)]
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(lambda one: predict(scale, json={"data": one}), inputs))
    for place, answer in enumerate(answers):
        if place % 3:
            assert answer == [[2 * place], [2 * place]]
        else:
            assert answer[0] == 422
            assert answer[1]["detail"].endswith("the shape [1]: expected float32 of the shape [2, any]")


def test_what_cannot_be_read_is_refused_in_the_dialect_of_predict(scale: RunningServer) -> None:
    """A content type, a header, an empty body."""
    octets = {"content-type": "application/octet-stream", "x-dtype": "object"}
    assert predict(scale, content=b"1", headers=octets)[0] == 422
    assert predict(scale, content=b"")[0] == 422
    status, error = predict(scale, content=b"1", headers={"content-type": "text/plain"})
    assert status == 415
    assert "allowed: application/json, application/octet-stream, application/x-npy" in error["detail"]


def test_the_documentation_has_the_content_types(scale: RunningServer) -> None:
    """Whoever reads `/docs` finds that tensors and images may be sent as they are."""
    described = scale.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"application/json", "application/octet-stream", "application/x-npy", "image/jpeg"} <= set(described)


def test_a_route_that_the_model_has_no_method_for_says_so(scale: RunningServer) -> None:
    """400 in the envelope, 424 as TEI has it, 422 at `/predict`: see the model that embeds."""
    own = scale.client.post("/embed", json={"input": "a"})
    assert own.status_code == 400
    assert own.json()["error"]["message"] == "the model has no embed"
    theirs = scale.client.post("/embed", json={"inputs": "a"})
    assert theirs.status_code == 424


def test_errors_of_one_item_are_422_or_500_by_whose_fault_it_is(folder: Path) -> None:
    """And the worker lives on."""
    with carpool_serve(folder, ["--model", "own_models:Words"]) as server:
        workers = server.children()
        replies = [server.client.post("/predict", json={"data": text}) for text in ("", "bug", "short", "a b")]
        assert [reply.status_code for reply in replies] == [422, 500, 500, 200]
        assert replies[1].json() == {"detail": "the model failed on this input: RuntimeError: a bug"}
        assert replies[3].json()["result"] == 2
        assert server.children() == workers


def test_a_bug_of_the_model_is_in_the_log_with_its_line_and_not_in_the_answer(folder: Path) -> None:
    """Whoever runs the model reads which file, which line and which exception; its caller only the latter."""
    with carpool_serve(folder, ["--model", "own_models:Buggy"]) as server:
        reply = server.client.post("/predict", json={"data": "in predict"})
        assert reply.status_code == 500
        assert reply.json() == {"detail": "the model raised KeyError"}
        [failed] = logged(server, "batch failed")
    assert failed["cause"] == "KeyError: 'threshold'"
    assert 'own_models.py", line' in failed["exception"]
    assert "in _helper" in failed["exception"]
    assert "python_model.py" not in failed["exception"]


def test_another_server_says_in_one_line_that_the_model_cannot_be_loaded(folder: Path) -> None:
    """Behind what the log has of it, and with nothing of carpool's own lines or Starlette's."""
    command = [sys.executable, "-m", "uvicorn", "carpool.main:app", "--port", "0", "--log-level", "error"]
    extra = {"MODEL_PATH": "own_models:Unloadable"}
    ended = subprocess.run(command, cwd=folder, env=environment(extra), stderr=subprocess.PIPE, text=True)
    logged, line, exits = ended.stderr.splitlines()
    assert json.loads(logged)["event"] == "the model cannot be loaded: KeyError: 'layer.0'"
    assert line.endswith(" carpool: the model cannot be loaded: KeyError: 'layer.0'")
    assert "startup failed" in exits
    assert ended.returncode not in (0, 1)


def test_what_fails_inputs_alone_is_in_the_log_once_a_batch(folder: Path) -> None:
    """With a count, and the traceback where there is one."""
    with carpool_serve(folder, ["--model", "own_models:Buggy"]) as server, ThreadPoolExecutor(8) as callers:
        texts = ["in postprocess"] * 7 + ["fine"]
        replies = list(callers.map(lambda text: server.client.post("/predict", json={"data": text}), texts))
        assert [reply.status_code for reply in replies] == [500] * 7 + [200]
        bugs = logged(server, "inputs failed")
        assert server.client.post("/predict", json={"data": "no JSON"}).status_code == 500
        until(lambda: len(logged(server, "inputs failed")) > len(bugs))
        unwritten = logged(server, "inputs failed")[-1]
    assert sum(line["failed"] for line in bugs) == 7
    assert all(line["failed"] <= line["items"] for line in bugs)
    assert "in postprocess" in bugs[0]["exception"]
    assert bugs[0]["loaded"]["target"] == "own_models:Buggy"
    assert unwritten["error"].startswith("TypeError: the result cannot be written as JSON: ")


def test_the_log_says_how_many_batches_run_at_once(scale: RunningServer) -> None:
    """One in a worker process, however many `max_concurrent_workers` allows."""
    [serving] = logged(scale, "serving")
    assert serving["slots"] == 1


def logged(server: RunningServer, event: str) -> list[dict[str, Any]]:
    """What the log says of such events, once it does: it is written after the answer."""

    def found() -> list[dict[str, Any]]:
        lines = [line for line in server.log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        return [line for line in map(json.loads, lines) if line["event"] == event]

    until(lambda: bool(found()))
    return found()


def test_a_model_with_embed_and_rerank_serves_their_routes(folder: Path) -> None:
    """In every dialect."""
    with carpool_serve(folder, ["--model", "own_models:Lengths"]) as server:
        own = server.client.post("/embed", json={"input": "a"}).json()
        assert own["embedding"] == pytest.approx([0.6, 0.8])
        theirs = server.client.post("/v1/embeddings", json={"input": ["a"], "model": "x"}).json()
        assert theirs["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
        ranks = server.client.post("/rerank", json={"query": "abc", "texts": ["abcdef", "abc"]}).json()
        assert ranks == [{"index": 1, "score": 0.0}, {"index": 0, "score": -3.0}]
        refused = server.client.post("/predict", json={"data": 1})
        assert refused.status_code == 422
        assert refused.json() == {"detail": "the model has no predict: it has embed, rerank"}


@pytest.mark.parametrize("model", ["Lengths", "Ranks"])
def test_the_line_to_try_is_one_that_the_model_answers(folder: Path, model: str) -> None:
    """One without `predict` is not asked at `/predict`."""
    with carpool_serve(folder, ["--model", f"own_models:{model}"]) as server:
        (line,) = [line for line in server.banner.splitlines() if line.startswith("  try")]
        _, curl, url, _, header, _, body = shlex.split(line)
        assert (curl, header) == ("curl", "content-type: application/json")
        reply = server.client.post(url, content=body, headers=dict([header.split(": ")]))
        assert reply.status_code == 200, reply.text


def test_a_models_own_price_limits_its_batches_and_fails_one_caller_alone(folder: Path) -> None:
    """Four texts of three letters are two batches where a batch may cost six; nobody else sees an error."""
    arguments = ["--model", "own_models:Priced", "--max-batch-tokens", "6"]
    with carpool_serve(folder, arguments) as server, ThreadPoolExecutor(12) as callers:
        texts = ["abc"] * 10 + ["bug", 7]
        replies = list(callers.map(lambda text: server.client.post("/predict", json={"data": text}), texts))
        assert [reply.status_code for reply in replies] == [200] * 10 + [500, 422]
        assert replies[10].json() == {
            "detail": "the model failed on this input: its cost raised RuntimeError: a bug"
        }
        assert all(reply.json()["result"] <= 2 for reply in replies[:10])
