"""The dialects of the ecosystem on real servers, through both lanes: shapes, errors, who travels together."""

from __future__ import annotations

import base64
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.servers import RunningServer, until
from tests.support.upstream import Upstream, vector

LANES = pytest.mark.parametrize("query", ["", "?lane=asgi"])  # the fast lane leaves a path with a query alone


def post(server: RunningServer, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(path, content=content, headers={"content-type": "application/json"})


def in_flight(server: RunningServer) -> int:
    text = server.client.get("/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("carpool_queue_items{"))
    return int(float(line.split()[-1]))


@LANES
@pytest.mark.parametrize("body", [b'{"inputs":"a"}', b'{"inputs" : ["a"]}', b'{"normalize":null,"inputs":"a"}'])
def test_embed_with_inputs_answers_a_list(proxy: RunningServer, query: str, body: bytes) -> None:
    """Even for one text; what is null was not said."""
    reply = post(proxy, f"/embed{query}", body)
    assert (reply.status_code, reply.json()) == (200, [vector("a")])


@LANES
def test_a_body_with_input_is_native_whatever_else_is_in_it(proxy: RunningServer, query: str) -> None:
    """The first contract stays as it is."""
    for body in (b'{"input":"a","inputs":"b"}', b'{"inputs":"b","input":"a"}', b' {"input":"a"}'):
        assert post(proxy, f"/embed{query}", body).json() == {"embedding": vector("a")}
    assert post(proxy, f"/embed{query}", b"{}").json()["error"]["code"] == 400


@LANES
def test_many_inputs_are_split_and_come_back_whole_and_in_order(
    proxy: RunningServer, upstream: Upstream, query: str
) -> None:
    """More than fit into a batch, beside others that ask at the same time."""
    texts = [f"text {number}" for number in range(150)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda part: post(proxy, f"/embed{query}", {"inputs": part}), [texts] * 8))
    assert all(reply.json() == [vector(text) for text in texts] for reply in replies)
    assert max(map(len, upstream.batches)) <= 32


def test_dialects_share_batches_and_parameters_divide_them(proxy: RunningServer, upstream: Upstream) -> None:
    """Equal questions leave together whatever their dialect; others in batches of their own."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["kserve"]}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"input": "native"}),
        ("/embed", {"inputs": ["tei"]}),
        ("/v1/embeddings", {"input": "openai", "model": "default"}),
        ("/v2/models/default/infer", {"inputs": [tensor]}),
        ("/embed", {"inputs": ["not normal"], "normalize": False}),
    ]
    upstream.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, proxy, "/embed", {"input": "first"})
        assert upstream.arrived.acquire(timeout=30)
        rest = [pool.submit(post, proxy, path, body) for path, body in bodies]
        until(lambda: in_flight(proxy) == len(bodies))
        upstream.let_go()
        assert {reply.result().status_code for reply in [first, *rest]} == {200}
    together, alone = sorted((sorted(batch) for batch in upstream.batches[1:]), key=len, reverse=True)
    assert together == ["kserve", "native", "openai", "tei"]
    assert alone == ["not normal"]


def infer(server: RunningServer, text: str) -> bytes:
    """The vector of a text as KServe sends it in binary."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    reply = post(server, "/v2/models/default/infer", body)
    return reply.content[int(reply.headers["inference-header-content-length"]) :]


def embed_base64(server: RunningServer, text: str) -> bytes:
    """The same, as OpenAI sends it in base64."""
    body = {"input": text, "model": "default", "encoding_format": "base64"}
    return base64.b64decode(post(server, "/v1/embeddings", body).json()["data"][0]["embedding"])


def embed(server: RunningServer, text: str) -> bytes:
    """The same, from its JSON."""
    numbers = post(server, "/embed", {"input": text}).json()["embedding"]
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_one_computation_answers_callers_of_all_dialects(proxy: RunningServer, upstream: Upstream) -> None:
    """No batch has a text twice; bytes and JSON have the same numbers."""
    texts, asked = ["one", "other"], [embed, infer, embed_base64]
    upstream.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(embed, proxy, "first")
        assert upstream.arrived.acquire(timeout=30)
        rest = [pool.submit(ask, proxy, text) for text in texts for ask in asked]
        until(lambda: in_flight(proxy) == len(texts))  # equal ones do not count
        upstream.let_go()
        first.result()
        packed = [one.result() for one in rest]
    assert packed == [struct.pack("<4f", *vector(text)) for text in texts for _ in asked]
    assert sorted(upstream.batches[1]) == texts
    assert all(len(set(batch)) == len(batch) for batch in upstream.batches)


def test_a_local_models_bytes_are_the_numbers_of_its_json(model_server: RunningServer) -> None:
    """Bit by bit where it runs alone; a vector depends a little on its batch, since bf16 and int8 round."""
    texts, asked = [f"text {number}" for number in range(8)], [embed, infer, embed_base64]
    alone = {text: embed(model_server, text) for text in texts}
    assert all(ask(model_server, text) == alone[text] for text in texts[:2] for ask in asked)
    with ThreadPoolExecutor(24) as pool:
        packed = [(text, pool.submit(ask, model_server, text)) for text in texts for ask in asked]
    for text, one in packed:
        assert np.frombuffer(one.result(), "<f4") @ np.frombuffer(alone[text], "<f4") > 0.999


@LANES
@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": ["a", ""]}, 400, "Empty"),
        ({"inputs": ["a", [99_999_999]]}, 422, "Validation"),
        ({"inputs": "a", "dimensions": 999}, 422, "Validation"),
        ({"inputs": "word " * 600, "truncate": False}, 422, "Validation"),
        ({"inputs": "a", "prompt_name": "query"}, 424, "Backend"),
        ({"inputs": 7}, 422, None),
        ({"inputs": [1, "a"]}, 422, None),
        ({"inputs": "a", "dimensions": 0}, 422, None),
    ],
)
def test_tei_errors(
    model_server: RunningServer, query: str, body: Any, status: int, error_type: str | None
) -> None:
    """In TEI's shape; plain text where its framework refuses the body before TEI sees it."""
    reply = post(model_server, f"/embed{query}", body)
    assert reply.status_code == status
    if error_type is None:
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.text.startswith("Failed to deserialize the JSON body")
    else:
        assert reply.json().keys() == {"error", "error_type"}
        assert reply.json()["error_type"] == error_type


@LANES
def test_a_local_model_reads_token_ids_and_parameters(model_server: RunningServer, query: str) -> None:
    """With or without the special tokens; `dimensions` are of length 1 unless `normalize` is false."""

    def embed(inputs: Any, **parameters: Any) -> Any:
        return post(model_server, f"/embed{query}", {"inputs": inputs} | parameters).json()

    text, whole, bare = embed(["hello", [101, 7592, 102], [7592]], dimensions=8)
    assert text == pytest.approx(whole, abs=0.01)
    assert text == pytest.approx(bare, abs=0.01)
    assert sum(number**2 for number in text) == pytest.approx(1, abs=1e-5)
    (raw,) = embed("hello", normalize=False)
    assert sum(number**2 for number in raw) > 2
    long = "cat " * 400 + "law " * 400
    cat, law, left, right = (
        embed(["cat " * 254])
        + embed(["law " * 254])
        + embed(long, truncation_direction="Left")
        + embed(long, truncation_direction="Right")
    )
    assert right == pytest.approx(cat, abs=0.02)
    assert left == pytest.approx(law, abs=0.02)


@LANES
def test_rerank_in_both_dialects(model_server: RunningServer, query: str) -> None:
    """Told apart by their fields; best first, with the caller's own places, however many texts there are."""
    texts = [f"a fruit, number {number}" for number in range(50)] + ["neural networks with many layers"]
    ranks = post(
        model_server, f"/rerank{query}", {"query": "deep learning", "texts": texts, "return_text": True}
    ).json()
    assert [rank["text"] for rank in ranks] == [texts[rank["index"]] for rank in ranks]
    assert sorted(rank["index"] for rank in ranks) == list(range(51))
    assert ranks[0]["index"] == 50
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    body = {"query": "deep learning", "documents": texts, "top_n": 2, "return_documents": True}
    results = post(model_server, f"/rerank{query}", body).json()["results"]
    assert len(results) == 2
    assert results[0]["document"] == {"text": texts[50]}
    assert results[0]["relevance_score"] == pytest.approx(ranks[0]["score"], abs=0.01)
    refused = post(model_server, f"/rerank{query}", {"query": "", "documents": []})
    assert (refused.status_code, refused.json().keys()) == (400, {"message"})


@LANES
def test_what_a_local_model_cannot_do_is_424(model_server: RunningServer, query: str) -> None:
    """And the next request is served: it says nothing of the worker's health."""
    for _ in range(10):
        for path in ("/embed_all", "/embed_sparse", "/predict"):
            reply = post(model_server, f"{path}{query}", {"inputs": "a"})
            assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")
    assert post(model_server, f"/embed{query}", {"inputs": "a"}).status_code == 200


@LANES
def test_tokens_and_back(model_server: RunningServer, query: str) -> None:
    """Places are in characters; what was cut up can be put together."""
    (tokens,) = post(model_server, f"/tokenize{query}", {"inputs": "Héllo world"}).json()
    assert [token["special"] for token in tokens] == [True, False, False, True]
    assert tokens[2] == {"id": 2088, "text": "world", "special": False, "start": 6, "stop": 11}
    ids = [token["id"] for token in tokens]
    assert post(model_server, f"/decode{query}", {"ids": [ids, ids[1:2]]}).json() == ["hello world", "hello"]


def test_health_and_info(model_server: RunningServer) -> None:
    """What each family of clients asks before it begins."""
    for path in ("/", "/ping"):
        reply = model_server.client.get(path)
        assert (reply.status_code, reply.content) == (200, b"")
    assert model_server.client.get("/info").json()["max_input_length"] == 256
    assert model_server.client.get("/v2").json()["name"] == "carpool"
    assert model_server.client.get("/v2/health/live").json() == {"live": True}
    assert model_server.client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/default", "/v2/models/default/versions/1"):
        assert model_server.client.get(path).json()["outputs"][0]["shape"] == [-1, 384]
        assert model_server.client.get(f"{path}/ready").json() == {"name": "default", "ready": True}
    listed = model_server.client.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["default", "minilm"]  # as `--model` has it
    for each in listed:
        assert model_server.client.get(f"/v1/models/{each['id']}").json() == each
    unknown = model_server.client.get("/v1/models/no")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "there is no model 'no': served: default" in unknown.json()["error"]["message"]


@LANES
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": ["a", 1]},
        {"input": ["a"] * 2049},
        {"input": "a", "encoding_format": "int8"},
        b"{",
    ],
)
def test_openai_errors(proxy: RunningServer, query: str, body: Any) -> None:
    """400 in OpenAI's shape."""
    reply = post(proxy, f"/v1/embeddings{query}", body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@LANES
def test_openai_embeddings(proxy: RunningServer, query: str) -> None:
    """The upstream's bytes as floats, or float32 in base64; tokens that nobody has counted are estimated."""
    body = {"input": ["a", "b"], "model": "m"}
    reply = post(proxy, f"/v1/embeddings{query}", body).json()
    assert [datum["embedding"] for datum in reply["data"]] == [vector("a"), vector("b")]
    assert (reply["object"], reply["model"]) == ("list", "m")
    assert reply["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    packed = post(proxy, f"/v1/embeddings{query}", body | {"encoding_format": "base64"}).json()
    assert len(base64.b64decode(packed["data"][1]["embedding"])) == 4 * len(vector("b"))


@LANES
def test_kserve_infers_texts(proxy: RunningServer, query: str) -> None:
    """Flat or nested; the id comes back; errors are KServe's."""

    def infer(tensor: dict[str, Any], **more: Any) -> httpx.Response:
        body = {"inputs": [{"name": "text", "datatype": "BYTES"} | tensor]} | more
        return post(proxy, f"/v2/models/default/infer{query}", body)

    for data, shape in ((["a", "b"], [2]), ([["a"], ["b"]], [2, 1])):
        reply = infer({"shape": shape, "data": data}, id="7", parameters={"priority": 1, "timeout": 9_000_000})
        body = reply.json()
        assert (reply.status_code, body["id"], body["model_name"]) == (200, "7", "default")
        (output,) = body["outputs"]
        assert output["shape"] == [2, 4]
        assert output["data"] == vector("a") + vector("b")
    for wrong in (
        {"shape": [3], "data": ["a"]},
        {"shape": [1], "data": [""]},
        {"shape": [1], "datatype": "FP32"},
    ):
        refused = infer({"data": ["a"]} | wrong)
        assert (refused.status_code, refused.json().keys()) == (400, {"error"})


@LANES
def test_kserve_reads_and_writes_binary_tensors(proxy: RunningServer, query: str) -> None:
    """The texts behind the JSON, whose length the head tells; the vectors likewise, where that is asked for."""
    texts = ["a", "café"]
    tail = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(tail)}}
    path = f"/v2/models/default/infer{query}"

    def infer(body: dict[str, Any], content_type: str = "application/octet-stream") -> httpx.Response:
        head = json.dumps(body).encode()
        headers = {"content-type": content_type, "Inference-Header-Content-Length": str(len(head))}
        return proxy.client.post(path, content=head + tail, headers=headers)

    for content_type in ("application/octet-stream", "application/json"):
        reply = infer({"inputs": [tensor]}, content_type)
        assert reply.json()["outputs"][0]["data"] == vector(texts[0]) + vector(texts[1])
    reply = infer({"inputs": [tensor], "id": "7", "parameters": {"binary_data_output": True}})
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    (output,) = json.loads(reply.content[:length])["outputs"]
    assert (output["shape"], output["parameters"]) == ([2, 4], {"binary_data_size": 32})
    assert reply.content[length:] == struct.pack("<8f", *vector(texts[0]), *vector(texts[1]))
    raw = proxy.client.post(path, content="café", headers={"Inference-Header-Content-Length": "0"})
    assert raw.content[-16:] == struct.pack("<4f", *vector("café"))


@LANES
@pytest.mark.parametrize("header", ["many", "-1", "9999", "9" * 30])
def test_a_wrong_length_of_kserves_json_is_refused(proxy: RunningServer, query: str, header: str) -> None:
    """In its own words; and octets without a length are of no type that is read."""
    path, headers = f"/v2/models/default/infer{query}", {"content-type": "application/octet-stream"}
    refused = proxy.client.post(
        path, content=b"{}", headers=headers | {"inference-header-content-length": header}
    )
    assert (refused.status_code, refused.json().keys()) == (400, {"error"})
    assert proxy.client.post(path, content=b"{}", headers=headers).status_code == 415


@LANES
def test_tei_tells_what_an_answer_took(model_server: RunningServer, query: str) -> None:
    """In headers, in milliseconds; the native route has none of them."""
    reply = post(model_server, f"/embed{query}", {"inputs": ["hello world", [7592, 2088]]})
    told = {name: value for name, value in reply.headers.items() if name.startswith("x-")}
    assert (told.pop("x-compute-type"), told.pop("x-compute-characters")) == ("carpool", "13")
    assert told.pop("x-compute-tokens") == "8"
    times = {name: int(value) for name, value in told.items()}
    assert times.keys() == {
        f"x-{name}-time" for name in ("compute", "total", "tokenization", "queue", "inference")
    }
    assert times["x-queue-time"] + times["x-inference-time"] == times["x-total-time"] < 60_000
    body = {"query": "one two", "texts": ["a", "bc"]}
    assert post(model_server, f"/rerank{query}", body).headers["x-compute-characters"] == "10"
    for path, field in (("/embed", "input"), ("/tokenize", "inputs")):
        reply = post(model_server, f"{path}{query}", {field: "a"})
        assert not [name for name in reply.headers if name.startswith("x-")]


def test_queue_time_is_how_long_it_waited_for_a_batch(proxy: RunningServer, upstream: Upstream) -> None:
    """Not how long the batch itself took."""
    upstream.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, proxy, "/embed", {"inputs": "first"})
        assert upstream.arrived.acquire(timeout=30)
        second = pool.submit(post, proxy, "/embed", {"inputs": "second"})
        until(lambda: in_flight(proxy) == 1)
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 0.05)
        upstream.let_go()
        told = [
            {name: int(reply.headers[name]) for name in ("x-queue-time", "x-inference-time")}
            for reply in (first.result(), second.result())
        ]
    assert told[0]["x-inference-time"] >= 50 <= told[1]["x-queue-time"]
    assert told[0]["x-queue-time"] < told[1]["x-queue-time"]
