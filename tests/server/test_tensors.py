"""Tensors of numbers in KServe V2's protocol, for a model in Python behind both lanes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.test_dialects import LANES, post
from tests.support.servers import RunningServer, carpool_serve

INFER = "/v2/models/default/infer"


@pytest.fixture(scope="module")
def centred(folder: Path) -> Iterator[RunningServer]:
    with carpool_serve(folder, ["--model", "own_models:Centred"]) as server:
        yield server


def tensor(data: Any, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": "input", "shape": shape, "datatype": datatype, "data": data}


def infer(server: RunningServer, query: str = "", **given: Any) -> httpx.Response:
    return post(server, INFER + query, {"inputs": [tensor(**given)], "id": "7"})


def made_of(array: Any) -> Any:
    return array - array.mean(axis=(1, 2), keepdims=True)


@LANES
def test_rows_are_inputs_and_the_answer_is_a_tensor(centred: RunningServer, query: str) -> None:
    """Flat or nested, in any type that the model's own can be made of."""
    array = np.arange(18).reshape(3, 2, 3) ** 2
    for data in (array.tolist(), array.ravel().tolist()):
        for datatype in ("FP32", "INT64", "FP64"):
            reply = infer(centred, query, data=data, shape=[3, 2, 3], datatype=datatype)
            assert reply.status_code == 200, reply.text
            body = reply.json()
            assert (body["model_name"], body["id"]) == ("default", "7")
            (output,) = body["outputs"]
            assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [3, 2, 3])
            assert output["data"] == pytest.approx(made_of(array).ravel(), rel=1e-5)


@LANES
def test_tensors_in_bytes_behind_the_json(centred: RunningServer, query: str) -> None:
    """Half floats too; the answer likewise, where that is asked for."""
    array = np.arange(12).reshape(2, 2, 3) ** 2
    for datatype, dtype in (("FP16", "<f2"), ("FP32", "<f4"), ("UINT8", "u1")):
        data = array.astype(dtype).tobytes()
        described = tensor(None, [2, 2, 3], datatype) | {"parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
        headers = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head)),
        }
        reply = centred.client.post(INFER + query, content=head + data, headers=headers)
        assert reply.status_code == 200, reply.text
        length = int(reply.headers["inference-header-content-length"])
        (output,) = json.loads(reply.content[:length])["outputs"]
        assert (output["shape"], output["parameters"]) == ([2, 2, 3], {"binary_data_size": 48})
        values = struct.unpack("<12f", reply.content[length:])
        assert values == pytest.approx(made_of(array).ravel(), rel=1e-5)


@LANES
@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"data": [1.0] * 5}, "FP32 of the shape [1, 2, 3]"),
        ({"data": [1.0] * 4, "shape": [1, 2, 2]}, "float32 of the shape [2, 3]"),
        ({"datatype": "FP128"}, "allowed: BOOL, INT8, INT16"),
        ({"datatype": "FP16"}, "binary_data_size"),
        ({"datatype": "BYTES", "data": ["a"], "shape": [1]}, "it has predict"),
        ({"data": ["a"] * 6}, "FP32 of the shape [1, 2, 3]"),
        ({"data": None}, '"data": [...]'),
    ],
)
def test_a_wrong_tensor_is_400_with_what_is_allowed(
    centred: RunningServer, query: str, given: dict[str, Any], allowed: str
) -> None:
    """In KServe's words, whether it is found out here or in the worker."""
    reply = infer(centred, query, **({"data": [1.0] * 6, "shape": [1, 2, 3]} | given))
    assert (reply.status_code, reply.json().keys()) == (400, {"error"})
    assert allowed in reply.json()["error"]


def test_a_wrong_tensor_fails_nobody_else(centred: RunningServer) -> None:
    """Among many at once, in one batch or in several."""

    def ask(place: int) -> httpx.Response:
        shape = [1, 2, 3] if place % 3 else [1, 3, 2]
        return infer(centred, data=[float(place), *[0.0] * 5], shape=shape)

    with ThreadPoolExecutor(24) as callers:
        replies = list(callers.map(ask, range(24)))
    for place, reply in enumerate(replies):
        assert reply.status_code == (200 if place % 3 else 400)
        if place % 3:
            assert reply.json()["outputs"][0]["data"][0] == pytest.approx(place * 5 / 6, rel=1e-5)


def test_metadata_tells_type_and_shape(centred: RunningServer, folder: Path) -> None:
    """Where the model knows them; one of texts is as ever."""
    described = centred.client.get("/v2/models/default").json()
    assert described["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 3]}]
    assert described["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1]}]
    with carpool_serve(folder, ["--model", "own_models:Lengths"]) as server:
        described = server.client.get("/v2/models/default").json()
        assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        texts = tensor(["a", "abc"], [2], "BYTES")
        (output,) = post(server, INFER, {"inputs": [texts]}).json()["outputs"]
        assert (output["name"], output["shape"]) == ("embedding", [2, 2])


def test_tensors_and_predict_leave_in_one_batch(folder: Path) -> None:
    """Two rows and one input of `/predict`; whole numbers for an answer are a tensor of one dimension."""
    waiting = ["--policy", "timeout", "--max-wait-time-ms", "10000", "--max-batch-size", "3"]
    with (
        carpool_serve(folder, ["--model", "own_models:Counted", *waiting]) as server,
        ThreadPoolExecutor(2) as callers,
    ):
        rows = callers.submit(infer, server, data=[1, 2], shape=[2], datatype="INT64")
        single = callers.submit(post, server, "/predict", {"data": 3})
        (output,) = rows.result().json()["outputs"]
        assert (output["shape"], output["data"]) == ([2], [3, 3])
        assert single.result().json()["result"] == 3
        refused = infer(server, data=[1.5], shape=[1])
        assert refused.status_code == 400
        assert "float32: expected int64" in refused.json()["error"]


def test_results_that_are_no_tensor_are_400(folder: Path) -> None:
    """The caller is told which route gives them."""
    with carpool_serve(folder, ["--model", "own_models:Scale"]) as server:
        refused = infer(server, data=[1.0, 2.0], shape=[1, 2, 1])
        assert refused.status_code == 400
        assert "/predict" in refused.json()["error"]
        assert post(server, "/predict", {"data": [[1.0], [2.0]]}).json()["result"]["twice"] == [[2.0], [4.0]]


def test_the_documented_example_has_a_tensor(centred: RunningServer) -> None:
    """With every datatype that is taken."""
    paths = centred.client.get("/openapi.json").json()["paths"]
    content = paths[INFER]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]["inputs"]["value"]["inputs"] == [tensor([0.5, 1.5], [1, 2])]
    datatypes = content["schema"]["properties"]["inputs"]["items"]["properties"]["datatype"]["enum"]
    assert {"FP32", "INT64", "BOOL", "FP16"} <= set(datatypes)


@pytest.mark.parametrize("binary", [False, True])
def test_triton_infers_tensors(centred: RunningServer, binary: bool) -> None:
    """Its own client, by what the metadata say; without a word on outputs it asks for binary ones."""
    tritonclient = pytest.importorskip("tritonclient.http")
    array = np.random.default_rng(1).random((4, 2, 3), dtype=np.float32)
    with tritonclient.InferenceServerClient(centred.url.removeprefix("http://")) as client:
        (described,) = client.get_model_metadata("default")["inputs"]
        given = tritonclient.InferInput(described["name"], list(array.shape), described["datatype"])
        given.set_data_from_numpy(array, binary_data=binary)
        wanted = None if binary else [tritonclient.InferRequestedOutput("output", binary_data=False)]
        result = client.infer("default", [given], outputs=wanted)
        assert ("data" in result.get_output("output")) is not binary
        made = result.as_numpy("output")
        assert (made.dtype, made.shape) == (np.float32, (4, 2, 3))
        assert made == pytest.approx(made_of(array), rel=1e-5, abs=1e-6)
        wrong = tritonclient.InferInput("input", [1, 3], "FP32")
        wrong.set_data_from_numpy(array[:1, 0], binary_data=binary)
        with pytest.raises(tritonclient.InferenceServerException, match=r"of the shape \[2, 3\]"):
            client.infer("default", [wrong])
