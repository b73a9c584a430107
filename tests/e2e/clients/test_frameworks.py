"""The embedding classes of frameworks, where they are installed: they are too heavy to be asked for by `[dev]`.

pip install langchain-openai llama-index-embeddings-openai llama-index-embeddings-text-embeddings-inference
"""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.servers import RunningServer

TEXTS = [f"sentence number {number}" for number in range(12)]


def imported(module: str) -> Any:
    """The module, which may warn of what is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError:
            pytest.skip(f"{module} is not installed")


def langchain(url: str, **clients: Any) -> Any:
    """Told to send texts: by default it sends the token ids of OpenAI's models."""
    return imported("langchain_openai").OpenAIEmbeddings(
        model="default",
        base_url=f"{url}/v1",
        api_key="key",
        check_embedding_ctx_length=False,
        http_client=clients["http"],
        http_async_client=clients["http_async"],
    )


def llama_index_openai(url: str, **clients: Any) -> Any:
    return imported("llama_index.embeddings.openai").OpenAIEmbedding(
        model_name="default",
        api_base=f"{url}/v1",
        api_key="key",
        http_client=clients["http"],
        async_http_client=clients["http_async"],
    )


def llama_index_tei(url: str, **clients: Any) -> Any:
    module = imported("llama_index.embeddings.text_embeddings_inference")
    return module.TextEmbeddingsInference(model_name="default", base_url=url)


async def ask(model: Any) -> list[Any]:
    """All texts at once from a thread and in a task, then one by one."""
    if hasattr(model, "embed_documents"):
        many, tasks, one = model.embed_documents, model.aembed_documents, model.embed_query
    else:
        many, tasks = model.get_text_embedding_batch, model.aget_text_embedding_batch
        one = model.get_query_embedding
    singly = asyncio.gather(*(asyncio.to_thread(one, text) for text in TEXTS))
    return [await asyncio.to_thread(many, TEXTS), await tasks(TEXTS), await singly]


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("make", [langchain, llama_index_openai, llama_index_tei])
def test_frameworks_embed_documents_and_queries(server: RunningServer, make: Callable[..., Any]) -> None:
    """The vectors are those of the native route."""

    async def main() -> list[Any]:
        with httpx.Client(trust_env=False) as http:
            async with httpx.AsyncClient(trust_env=False) as http_async:
                return await ask(make(server.url, http=http, http_async=http_async))

    expected = [server.client.post("/embed", json={"input": text}).json()["embedding"] for text in TEXTS]
    for vectors in asyncio.run(main()):
        assert len(vectors) == len(expected)
        for vector, own in zip(vectors, expected, strict=True):
            assert sum(a * b for a, b in zip(vector, own, strict=True)) > 0.99
