"""Every client, from many threads of each, at the same time in one queue: everybody gets their own vectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.support.sentences import sentences
from tests.support.servers import RunningServer

np = pytest.importorskip("numpy")
openai = pytest.importorskip("openai")
huggingface_hub = pytest.importorskip("huggingface_hub")
tritonclient = pytest.importorskip("tritonclient.http")

CALLERS = 64  # of each client, all at once
WIDTH = 384

Vectors = Sequence[Any]
Start = Callable[[], object]  # returns when all callers are ready


def openai_in_threads(server: RunningServer, texts: list[str], start: Start, encoding: str) -> Vectors:
    limits = httpx.Limits(max_connections=CALLERS)
    http = httpx.Client(trust_env=False, limits=limits, timeout=60)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", http_client=http, max_retries=0) as client:

        def ask(text: str) -> Any:
            start()
            given = {} if encoding == "base64" else {"encoding_format": encoding}
            return client.embeddings.create(input=text, model="default", **given).data[0].embedding

        return in_threads(ask, texts)


def openai_in_tasks(server: RunningServer, texts: list[str], start: Start, encoding: str) -> Vectors:
    async def main() -> Vectors:
        limits = httpx.Limits(max_connections=CALLERS)
        http = httpx.AsyncClient(trust_env=False, limits=limits, timeout=60)
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="key", http_client=http, max_retries=0
        ) as client:
            await asyncio.to_thread(start)
            given = {} if encoding == "base64" else {"encoding_format": encoding}
            calls = [client.embeddings.create(input=text, model="default", **given) for text in texts]
            return [reply.data[0].embedding for reply in await asyncio.gather(*calls)]

    return asyncio.run(main())


def triton(server: RunningServer, texts: list[str], start: Start, binary: bool) -> Vectors:
    def ask(text: str) -> Any:
        # A client each: they are not to be shared between threads.
        with closing(tritonclient.InferenceServerClient(server.url.removeprefix("http://"))) as client:
            tensor = tritonclient.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([text], dtype=object), binary_data=binary)
            wanted = [tritonclient.InferRequestedOutput("embedding", binary_data=binary)]
            start()
            return client.infer("default", [tensor], outputs=wanted).as_numpy("embedding")[0]

    return in_threads(ask, texts)


def hugging_face(server: RunningServer, texts: list[str], start: Start) -> Vectors:
    client = huggingface_hub.InferenceClient(model=server.url, timeout=60)
    client.feature_extraction("first")  # it looks for numpy once, and not in many threads at a time

    def ask(text: str) -> Any:
        start()
        return client.feature_extraction(text)[0]

    return in_threads(ask, texts)


def in_threads(ask: Callable[[str], Any], texts: list[str]) -> Vectors:
    with ThreadPoolExecutor(len(texts)) as pool:
        return list(pool.map(ask, texts))


CLIENTS: list[tuple[Callable[..., Vectors], tuple[Any, ...], int]] = [  # and for how many each one starts
    (openai_in_threads, ("base64",), CALLERS),
    (openai_in_threads, ("float",), CALLERS),
    (openai_in_tasks, ("base64",), 1),
    (openai_in_tasks, ("float",), 1),
    (triton, (True,), CALLERS),
    (triton, (False,), CALLERS),
    (hugging_face, (), CALLERS),
]


def test_all_of_them_at_once_in_one_queue(server: RunningServer) -> None:
    """448 callers with a text of their own: each one's vector is nearer to its own than to anybody else's."""
    count = CALLERS * len(CLIENTS)
    texts = sentences(count)
    reply = server.client.post("/embed", json={"inputs": texts}).json()
    start = threading.Barrier(sum(starts for _, _, starts in CLIENTS), timeout=60)
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        parts = [
            pool.submit(ask, server, texts[place * CALLERS : (place + 1) * CALLERS], start.wait, *arguments)
            for place, (ask, arguments, _) in enumerate(CLIENTS)
        ]
        got = np.array([vector for part in parts for vector in part.result()], dtype=np.float32)
    assert got.shape == (count, WIDTH)
    likeness = got @ np.array(reply, dtype=np.float32).T
    assert (likeness.argmax(axis=1) == np.arange(count)).all()
    assert likeness.diagonal().min() > 0.99  # a vector depends a little on its batch: bf16 and int8 round
