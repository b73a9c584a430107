"""Programs written for other servers change a URL and nothing else."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import httpx
import pytest

from tests.support.servers import RunningServer

openai = pytest.importorskip("openai")
huggingface_hub = pytest.importorskip("huggingface_hub")
TEXTS = [f"sentence number {number}" for number in range(40)]  # more than the server takes at once


def own_vectors(server: RunningServer, texts: list[str]) -> list[list[float]]:
    """By the native contract, one at a time."""
    return [server.client.post("/embed", json={"input": text}).json()["embedding"] for text in texts]


def close(one: Any, other: Any) -> bool:
    """A vector depends a little on its batch: bf16 and int8 round."""
    return bool(sum(a * b for a, b in zip(one, other, strict=True)) > 0.999)


def openai_client(server: RunningServer) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", http_client=httpx.Client(trust_env=False))


def test_openai_asks_for_base64_and_gets_its_own_vectors(server: RunningServer) -> None:
    """It does so unless told otherwise; the vectors are those of the native route, in order."""
    with openai_client(server) as client:
        reply = client.embeddings.create(input=TEXTS, model="text-embedding-3-small")
    assert [datum.index for datum in reply.data] == list(range(len(TEXTS)))
    expected = own_vectors(server, TEXTS)
    assert all(close(datum.embedding, row) for datum, row in zip(reply.data, expected, strict=True))


def test_openai_floats_and_base64_are_the_same_numbers(server: RunningServer) -> None:
    """As float32, which is what base64 holds."""
    body = {"input": "one text", "model": "default"}
    floats = server.client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    packed = server.client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert raw == struct.pack(f"<{len(floats)}f", *floats)


def test_openai_asynchronously_with_many_callers(server: RunningServer) -> None:
    """Each gets its own, out of batches that they share."""

    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="key", http_client=httpx.AsyncClient(trust_env=False)
        ) as client:
            calls = [client.embeddings.create(input=text, model="default") for text in TEXTS]
            return list(await asyncio.gather(*calls))

    replies = asyncio.run(main())
    expected = own_vectors(server, TEXTS)
    assert all(close(reply.data[0].embedding, row) for reply, row in zip(replies, expected, strict=True))


def test_openai_reads_our_errors_and_models(server: RunningServer) -> None:
    """As exceptions of its own, with what was wrong."""
    with openai_client(server) as client:
        with pytest.raises(openai.BadRequestError, match="`input` is empty"):
            client.embeddings.create(input="", model="default")
        assert "default" in [model.id for model in client.models.list()]


def test_usage_counts_the_callers_own_tokens(server: RunningServer) -> None:
    """By the tokenizer of the model, the two special tokens included; through a proxy as well."""
    with openai_client(server) as client:
        usage = client.embeddings.create(input=["hello world", "hello"], model="default").usage
    assert (usage.prompt_tokens, usage.total_tokens) == (7, 7)


def test_hugging_face_features_and_similarity(server: RunningServer) -> None:
    """Its client of Text Embeddings Inference."""
    with huggingface_hub.InferenceClient(model=server.url) as client:
        features = client.feature_extraction("a cat")
    assert features.shape == (1, 384)
    assert close(features[0].tolist(), own_vectors(server, ["a cat"])[0])
    with huggingface_hub.InferenceClient(model=f"{server.url}/similarity") as client:
        near, far = client.sentence_similarity("a cat", other_sentences=["a kitten", "tax law"])
    assert near > far


@pytest.mark.parametrize("binary", [False, True])
def test_triton_infers_texts(server: RunningServer, binary: bool) -> None:
    """With JSON tensors or binary ones; it asks for health and metadata first, as its users do."""
    tritonclient = pytest.importorskip("tritonclient.http")
    import numpy as np

    client = tritonclient.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("default")
    assert client.get_model_metadata("default")["inputs"][0]["datatype"] == "BYTES"
    tensor = tritonclient.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a cat"], ["a dog"]], dtype=object), binary_data=binary)
    wanted = [tritonclient.InferRequestedOutput("embedding", binary_data=binary)]
    result = client.infer("default", [tensor], outputs=wanted, request_id="7")
    vectors = result.as_numpy("embedding")
    assert vectors.shape == (2, 384)
    assert vectors.dtype == np.float32
    assert result.get_response()["id"] == "7"
    assert ("data" in result.get_output("embedding")) is not binary
    expected = own_vectors(server, ["a cat", "a dog"])
    assert all(close(row.tolist(), own) for row, own in zip(vectors, expected, strict=True))
    client.close()
