"""What happens between requests: who travels together, who is refused, and how a server stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.servers import RunningServer, carpool_serve, until
from tests.support.upstream import Upstream, vector


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def embed(server: RunningServer, text: str) -> httpx.Response:
    return server.client.post("/embed", json={"input": text})


def waiting(server: RunningServer) -> int:
    text = server.client.get("/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("carpool_queue_items{"))
    return int(float(line.split()[-1]))


def occupy(server: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    """Have a first batch wait at the upstream, so that what comes next must queue."""
    upstream.hold()
    first = pool.submit(embed, server, "first")
    assert upstream.arrived.acquire(timeout=30)
    return first


def test_requests_that_wait_leave_together_and_each_gets_its_own_vector(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """Two hundred callers, one text each: full batches, no one's answer at anyone else's."""
    texts = [f"text number {number}" for number in range(200)]

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=proxy.url, timeout=60, limits=limits, trust_env=False) as client:
            requests = [asyncio.create_task(client.post("/embed", json={"input": text})) for text in texts]
            while await asyncio.to_thread(waiting, proxy) < len(texts):
                await asyncio.sleep(0)
            upstream.let_go()
            return list(await asyncio.gather(*requests))

    first = occupy(proxy, upstream, pool)
    replies = asyncio.run(main())
    assert first.result().json() == {"embedding": vector("first")}
    assert [reply.json() for reply in replies] == [{"embedding": vector(text)} for text in texts]
    assert [len(batch) for batch in upstream.batches] == [1, 32, 32, 32, 32, 32, 32, 8]


def test_bad_input_in_the_middle_touches_nobody(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """It is refused before it can join a batch."""
    occupy(proxy, upstream, pool)
    texts = ["a", "", "b", " ", "c"]
    replies = [pool.submit(embed, proxy, text) for text in texts]
    until(lambda: waiting(proxy) == 3)
    upstream.let_go()
    assert [reply.result().status_code for reply in replies] == [200, 400, 200, 400, 200]
    assert upstream.batches[0] == ["first"]
    assert sorted(upstream.batches[1]) == ["a", "b", "c"]


def test_callers_whose_credentials_are_forwarded_are_told_apart(
    upstream: Upstream, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """The same text of two callers is computed for each with their own; who is refused fails nobody else."""

    def ask(text: str, authorization: str) -> httpx.Response:
        headers = {"authorization": authorization} if authorization else {}
        return server.client.post("/embed", json={"input": text}, headers=headers)

    arguments = [
        "--inference-url",
        upstream.url,
        "--upstream-api-key",
        "own",
        "--forward-authorization",
        "true",
    ]
    with carpool_serve(tmp_path, [*arguments, "--max-concurrent-workers", "1"]) as server:
        first = occupy(server, upstream, pool)
        calls = [("a", "Bearer one"), ("a", "Bearer two"), ("b", "Bearer one"), ("c", ""), ("d", "Bearer bad")]
        replies = [pool.submit(ask, *call) for call in calls]
        until(lambda: waiting(server) == len(calls))
        upstream.forbids = "Bearer bad"
        upstream.let_go()
        assert first.result().status_code == 200
        assert [reply.result().status_code for reply in replies] == [200, 200, 200, 200, 403]
        assert "no access to this model" in replies[-1].result().json()["error"]["detail"]
        sent = {
            tuple(sorted(batch)): who
            for batch, who in zip(upstream.batches, upstream.authorizations, strict=True)
        }
        assert sent == {
            ("first",): "Bearer own",
            ("a", "b"): "Bearer one",
            ("a",): "Bearer two",
            ("c",): "Bearer own",
            ("d",): "Bearer bad",
        }
        assert server.client.get("/health").status_code == 200


def test_a_text_that_only_the_upstream_refuses_is_its_own_callers_mistake(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """It is found among its companions, who are answered; its caller gets the upstream's words and no 5xx."""
    occupy(proxy, upstream, pool)
    replies = [pool.submit(embed, proxy, text) for text in ("a", "b", "too long", "c")]
    until(lambda: waiting(proxy) == 4)
    upstream.refuses = "too long"
    upstream.let_go()
    assert [reply.result().status_code for reply in replies] == [200, 200, 400, 200]
    assert "Input validation error: too long" in replies[2].result().text


def test_a_reply_of_the_wrong_count_is_an_error_for_all_and_an_answer_for_none(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """Two vectors for three texts could be anybody's."""
    occupy(proxy, upstream, pool)
    replies = [pool.submit(embed, proxy, text) for text in "abc"]
    until(lambda: waiting(proxy) == 3)
    upstream.answer_with = (200, b"[[1.0],[2.0]]")
    upstream.let_go()
    for reply in replies:
        assert reply.result().status_code == 502
        assert "2 results for 3 inputs" in reply.result().text


def test_a_full_queue_is_429_with_retry_after(
    upstream: Upstream, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Who is in stays in."""
    arguments = ["--inference-url", upstream.url, "--max-concurrent-workers", "1", "--max-queue-size", "2"]
    with carpool_serve(tmp_path, arguments) as server:
        occupy(server, upstream, pool)
        queued = [pool.submit(embed, server, text) for text in "ab"]
        until(lambda: waiting(server) == 2)
        refused = embed(server, "c")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "at most 2 may wait" in refused.json()["error"]["detail"]
        assert server.client.post("/predict", json={"data": "c"}).status_code == 429
        upstream.let_go()
        assert [reply.result().status_code for reply in queued] == [200, 200]


def test_who_waits_too_long_is_408_while_the_batch_in_front_goes_on(
    upstream: Upstream, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """And its text is never sent."""
    arguments = [
        "--inference-url",
        upstream.url,
        "--max-concurrent-workers",
        "1",
        "--queue-timeout-ms",
        "200",
    ]
    with carpool_serve(tmp_path, arguments) as server:
        first = occupy(server, upstream, pool)
        late = embed(server, "late")
        assert late.status_code == 408
        assert late.json()["error"]["code"] == 408
        upstream.let_go()
        assert first.result().status_code == 200
        assert upstream.batches == [["first"]]


def test_the_default_limits_of_a_body(proxy: RunningServer) -> None:
    """2 MiB for texts, 32 MiB for /predict."""
    text = "x" * (2 * 1024**2)
    assert proxy.client.post("/embed", json={"input": text}).status_code == 413
    assert proxy.client.post("/embed", json={"input": text[: -len('{"input":""}')]}).status_code == 200
    assert proxy.client.post("/predict", json={"data": text * 15}).status_code == 200
    assert proxy.client.post("/predict", json={"data": text * 16}).status_code == 413


def test_a_caller_that_hangs_up_while_sending_is_no_error_of_the_server(proxy: RunningServer) -> None:
    """Nothing is logged and the next caller is served."""
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
    assert embed(proxy, "next").status_code == 200
    assert proxy.stop() == 0
    assert '"level": "error"' not in proxy.log.read_text()


def test_the_timeout_policy_over_http(upstream: Upstream, tmp_path: Path) -> None:
    """A lone request leaves when its wait is over, and no sooner."""
    arguments = ["--inference-url", upstream.url, "--policy", "timeout", "--max-wait-time-ms", "300"]
    with carpool_serve(tmp_path, arguments) as server:
        reply = server.client.post("/predict", json={"data": "alone"})
        assert reply.json()["processing_time"] >= 0.3


def test_a_stop_answers_everything_admitted_and_says_so_meanwhile(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """Health turns 503, new requests are refused, the old ones are answered, the exit status is 0."""
    first = occupy(proxy, upstream, pool)
    queued = [pool.submit(embed, proxy, text) for text in "abc"]
    until(lambda: waiting(proxy) == 3)
    proxy.process.send_signal(signal.SIGTERM)
    until(lambda: proxy.client.get("/health").status_code == 503)
    assert proxy.client.get("/health").json()["reason"] == "shutting down"
    assert embed(proxy, "new").status_code == 503
    assert proxy.client.post("/predict", json={"data": "new"}).status_code == 503
    upstream.let_go()
    assert [reply.result().json()["embedding"] for reply in [first, *queued]] == [
        vector(text) for text in ["first", "a", "b", "c"]
    ]
    assert proxy.process.wait(30) == 0


def test_an_idle_server_stops_at_once_on_ctrl_c(proxy: RunningServer) -> None:
    """SIGINT is as good as SIGTERM."""
    proxy.process.send_signal(signal.SIGINT)
    assert proxy.process.wait(30) == 0


def test_a_second_signal_ends_the_process_at_once(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """For who does not want to wait for the upstream."""
    first = occupy(proxy, upstream, pool)
    proxy.process.send_signal(signal.SIGTERM)
    until(lambda: proxy.client.get("/health").status_code == 503)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(30) == 128 + signal.SIGTERM
    assert isinstance(first.exception(30), httpx.TransportError)


def test_an_upstream_that_is_not_there_is_unhealthy_with_the_reason(tmp_path: Path) -> None:
    """The proxy starts all the same."""
    with carpool_serve(tmp_path, ["--inference-url", "http://127.0.0.1:1"]) as server:
        reply = server.client.get("/health")
        assert reply.status_code == 503
        assert reply.json()["status"] == "unhealthy"
        until(lambda: "cannot be reached" in server.client.get("/health").json()["reason"])
        assert embed(server, "x").status_code == 503


def test_one_upstream_that_is_well_is_enough(upstream: Upstream, tmp_path: Path) -> None:
    """Health is 200 and tells of the other; so do the metrics."""
    with carpool_serve(tmp_path, ["--inference-url", f"{upstream.url},http://user:pw@127.0.0.1:1"]) as server:
        until(lambda: server.client.get("/health").status_code == 200)
        until(lambda: "cannot be reached" in str(server.client.get("/health").json()["upstreams"][1]))
        assert embed(server, "a").status_code == 200
        well, gone = server.client.get("/health").json()["upstreams"]
        assert well == {"url": upstream.url, "status": "healthy"}
        assert (gone["url"], gone["status"]) == ("http://127.0.0.1:1", "unhealthy")
        shown = server.client.get("/metrics").text
        assert f'carpool_replica_up{{model="default",replica="{upstream.url}"}} 1.0' in shown
        assert 'carpool_replica_up{model="default",replica="http://127.0.0.1:1"} 0.0' in shown
        assert (
            f'carpool_replica_batches_total{{model="default",outcome="ok",replica="{upstream.url}"}}' in shown
        )


def test_when_all_callers_of_a_batch_hang_up_the_next_batch_need_not_wait(
    proxy: RunningServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    """The upstream holds the first for ever and there is one slot: it was given up, and is not an error."""
    upstream.hold()
    with pytest.raises(httpx.ReadTimeout):
        proxy.client.post("/embed", json={"input": "a"}, timeout=0.5)
    assert upstream.arrived.acquire(timeout=30)
    second = pool.submit(embed, proxy, "b")
    assert upstream.arrived.acquire(timeout=30)
    upstream.let_go()
    assert second.result(30).json() == {"embedding": vector("b")}
    assert upstream.batches == [["a"], ["b"]]
    assert 'outcome="Abandoned"' in proxy.client.get("/metrics").text
    assert "batch failed" not in proxy.log.read_text()


def test_a_killed_worker_is_replaced_and_health_tells_the_truth(model_server: RunningServer) -> None:
    """The embedded model's process dies; the server does not."""
    assert embed(model_server, "before").status_code == 200
    (worker,) = model_server.children()
    os.kill(worker, signal.SIGKILL)
    until(lambda: model_server.client.get("/health").status_code == 503)
    assert "being replaced" in model_server.client.get("/health").json()["reason"]
    assert embed(model_server, "after").status_code == 200
    until(lambda: model_server.client.get("/health").status_code == 200)
    assert model_server.children() != [worker]
