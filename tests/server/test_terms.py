"""On what terms requests travel: deadlines, tenants, priorities, and callers that go away."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.test_batching import occupy, waiting
from tests.support.servers import RunningServer, carpool_serve, until
from tests.support.upstream import Upstream, vector


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def one_by_one(upstream: Upstream, tmp_path: Path) -> Iterator[RunningServer]:
    """A proxy whose batches hold one text, so that the order of texts can be seen upstream."""
    flags = ["--max-concurrent-workers", "1", "--max-batch-size", "1"]
    with carpool_serve(tmp_path, ["--inference-url", upstream.url, *flags]) as server:
        yield server


def send(
    server: RunningServer, pool: ThreadPoolExecutor, text: str, headers: dict[str, str]
) -> Future[httpx.Response]:
    """Queue a text, and return once it waits."""
    before = waiting(server)
    reply = pool.submit(server.client.post, "/embed", json={"input": text}, headers=headers)
    until(lambda: waiting(server) == before + 1)
    return reply


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x-priority": "low"}, {"x-priority": "high"}),
        ({"x-tenant": "hog"}, {"x-tenant": "light"}),
        ({"authorization": "Bearer hog"}, {"authorization": "Bearer light"}),
        ({"x-api-key": "hog"}, {"x-api-key": "light"}),
    ],
)
def test_another_tenant_or_class_need_not_wait_for_a_whole_queue(
    one_by_one: RunningServer,
    upstream: Upstream,
    pool: ThreadPoolExecutor,
    first: dict[str, str],
    second: dict[str, str],
) -> None:
    """Who comes last with a share of its own leaves after one of the others, not after all of them."""
    occupy(one_by_one, upstream, pool)
    replies = [send(one_by_one, pool, text, first) for text in "abc"]
    replies.append(send(one_by_one, pool, "mine", second))
    upstream.let_go()
    assert [reply.result().status_code for reply in replies] == [200] * 4
    assert upstream.batches == [["first"], ["a"], ["mine"], ["b"], ["c"]]


def test_a_request_with_a_deadline_ends_by_it(
    one_by_one: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """408 at its deadline, and its text is never sent."""
    occupy(one_by_one, upstream, pool)
    late = one_by_one.client.post("/embed", json={"input": "late"}, headers={"x-request-timeout-ms": "150"})
    assert late.status_code == 408
    upstream.let_go()
    assert one_by_one.client.post("/embed", json={"input": "next"}).status_code == 200
    assert upstream.batches == [["first"], ["next"]]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("x-request-timeout-ms", "soon", "more than 0, up to 3600000"),
        ("x-request-timeout-ms", "0", "more than 0, up to 3600000"),
        ("x-request-timeout-ms", "nan", "more than 0, up to 3600000"),
        ("x-priority", "urgent", "high, normal, low"),
        ("x-tenant", "x" * 257, "256 characters"),
    ],
)
def test_a_bad_header_is_400_with_what_is_allowed(
    proxy: RunningServer, name: str, value: str, allowed: str
) -> None:
    """In the envelope, and 422 for /predict."""
    reply = proxy.client.post("/embed", json={"input": "x"}, headers={name: value})
    assert (reply.status_code, reply.json()["error"]["detail"]) == (400, f"allowed: {allowed}")
    reply = proxy.client.post("/predict", json={"data": "x"}, headers={name: value})
    assert reply.status_code == 422


def test_a_caller_that_hangs_up_frees_its_place_and_is_not_computed(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """The text of who is gone never reaches the upstream."""
    occupy(proxy, upstream, pool)
    body = json.dumps({"input": "gone"}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as connection:
        connection.sendall(head + body)
        until(lambda: waiting(proxy) == 1)
    until(lambda: waiting(proxy) == 0)
    assert 'outcome="Cancelled"} 1.0' in proxy.client.get("/metrics").text
    upstream.let_go()
    assert proxy.client.post("/embed", json={"input": "next"}).status_code == 200
    assert upstream.batches == [["first"], ["next"]]


def test_equal_texts_are_computed_once(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """Ten callers, one text upstream, ten answers."""
    occupy(proxy, upstream, pool)
    replies = [pool.submit(proxy.client.post, "/embed", json={"input": "same"}) for _ in range(10)]
    replies.append(pool.submit(proxy.client.post, "/embed", json={"input": "other"}))
    until(lambda: waiting(proxy) == 2)
    upstream.let_go()
    answers = [reply.result().json()["embedding"] for reply in replies]
    assert answers == [vector("same")] * 10 + [vector("other")]
    assert sum(batch.count("same") for batch in upstream.batches) == 1
