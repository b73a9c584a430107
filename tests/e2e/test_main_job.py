"""The main job, as the README promises it: real sentences in alone, out in batches, by a real model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import numpy as np
import pytest

from tests.support.sentences import sentences
from tests.support.servers import RunningServer

SENTENCES = 2000
CONNECTIONS = 200

Vectors = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def embed(server: RunningServer, texts: Sequence[str], connections: int) -> Vectors:
    """Every text in a request of its own, over so many connections at a time; all must be answered 200."""

    async def main() -> Vectors:
        vectors: list[list[float]] = [[]] * len(texts)
        numbers = iter(range(len(texts)))

        async def send_until_none_is_left() -> None:
            for number in numbers:
                async with session.post("/embed", json={"input": texts[number]}) as reply:
                    assert reply.status == 200, await reply.text()
                    vectors[number] = (await reply.json())["embedding"]

        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(server.url, connector=connector) as session:
            await asyncio.gather(*(send_until_none_is_left() for _ in range(connections)))
        return np.array(vectors)

    return asyncio.run(main())


def summary(server: RunningServer) -> dict[str, float]:
    reply = server.client.get("/metrics", headers={"accept": "application/json"})
    numbers: dict[str, float] = reply.json()
    return numbers


@pytest.fixture(scope="module")
def alone(model_server: RunningServer) -> Vectors:
    """Each sentence embedded when nobody else is there."""
    return embed(model_server, sentences(SENTENCES), connections=1)


def test_2000_sentences_at_200_connections_travel_in_batches_and_come_back_as_if_alone(
    model_server: RunningServer, alone: Vectors
) -> None:
    """All 200; each vector that of its own sentence; and the batches were real ones."""
    before = summary(model_server)
    together = embed(model_server, sentences(SENTENCES), CONNECTIONS)
    after = summary(model_server)

    assert together.shape == (SENTENCES, 384)
    similarity = together @ alone.T  # the vectors are normalised, so this is the cosine of every pair
    own = np.diagonal(similarity)
    assert own.min() > 0.999
    others = similarity - 2 * np.eye(SENTENCES)
    assert (own > others.max(axis=1)).all()  # no sentence got a vector nearer to another's

    requests = after["total_requests"] - before["total_requests"]
    batches = after["total_batches"] - before["total_batches"]
    assert requests == SENTENCES
    assert requests / batches > 8


def test_texts_about_the_same_thing_are_nearer_than_texts_that_are_not(model_server: RunningServer) -> None:
    """The vectors mean something."""
    pairs = [
        ("A man is eating food.", "Someone is having a meal."),
        ("How do I reset my password?", "I forgot my login and need to change it."),
        ("The stock market fell sharply today.", "Shares dropped on Wall Street this afternoon."),
        ("The cat sleeps on the sofa.", "A kitten naps on the couch."),
    ]
    left, right = (embed(model_server, side, len(side)) for side in zip(*pairs, strict=True))
    similarity = left @ right.T
    assert (similarity.argmax(axis=1) == np.arange(len(pairs))).all()
    assert np.diagonal(similarity).min() > np.where(np.eye(len(pairs)), -1, similarity).max()
