"""Worker processes behind one queue: they die, hang and grow, and only the caller to blame pays for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from carpool.backends.process import parent, shared
from carpool.backends.process.parent import ProcessBackend
from carpool.backends.process.placement import Place
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import BackendError, BatchFailed, ModelError
from carpool.observe.observer import BatchLeft, Fact
from carpool.runtime.batcher import Batcher
from carpool.wire.base import Item
from tests.backends.test_process import run, turns_until

MIB = 2**20


@pytest.fixture(autouse=True)
def _toy_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


class Seen:
    """The sizes of the batches that have left."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, BatchLeft):
            self.sizes.append(fact.items)


def worker(number: int = 0, most: int = 1000, **more: Any) -> ProcessBackend:
    return ProcessBackend("toy_model:load", {"most": most}, Place(f"worker-{number}"), **more)


@asynccontextmanager
async def batching(
    *backends: ProcessBackend, seen: Seen | None = None, most: int = 32
) -> AsyncIterator[Batcher[Item, Any]]:
    observers = [] if seen is None else [seen]
    async with Batcher(
        backends, BatchPolicy(max_batch_size=most), Limits(20, patience=30), observers=observers
    ) as batcher:  # which is ready once one of them is
        await turns_until(lambda: all(each.trouble() != "the model is not loaded yet" for each in backends))
        yield batcher


async def ask(batcher: Batcher[Item, Any], *texts: str) -> list[Any]:
    """All at once, so that they share a batch; what each was answered, or its error."""
    answers = (batcher.submit(json.dumps(text).encode()) for text in texts)
    return await asyncio.gather(*answers, return_exceptions=True)


def texts_in(answers: list[Any]) -> list[str]:
    return [json.loads(answer)[0] for answer in answers]


def pids_in(answers: list[Any]) -> set[int]:
    return {json.loads(answer)[1] for answer in answers}


@pytest.mark.parametrize("count", [1, 2])
def test_the_callers_of_a_worker_that_was_killed_are_answered_all_the_same(count: int) -> None:
    """By the other one, or by the new one; nobody sees an error."""

    async def main() -> None:
        async with batching(*map(worker, range(count))) as batcher:
            for number in range(2):
                (pid,) = pids_in(await ask(batcher, "warm"))
                asked = asyncio.ensure_future(ask(batcher, "sleep", f"text {number}"))
                await turns_until(lambda: any(each.in_flight for each in batcher.replicas()))
                os.kill(pid, signal.SIGKILL)
                assert texts_in(await asked) == ["sleep", f"text {number}"]

    run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_of_two_batches_at_a_worker_that_is_killed_neither_is_lost_or_blamed(count: int) -> None:
    """One ran, the other was only brought to it: large ones come so, again and again under load."""

    async def main() -> None:
        backends = [worker(each) for each in range(count)]
        async with batching(*backends, most=2) as batcher:
            for _ in range(3):
                (pid,) = pids_in(await ask(batcher, "x" * shared.LEAST))
                texts = ["sleep", *(f"text {number:{shared.LEAST}}" for number in range(7))]
                asked = asyncio.ensure_future(ask(batcher, *texts))
                # Or all is over: on two replicas the second batch may have gone to the other one.
                while not (asked.done() or any(each.in_flight > 1 for each in batcher.replicas())):
                    await asyncio.sleep(0)
                os.kill(pid, signal.SIGKILL)
                assert texts_in(await asked) == texts

    run(main())


@pytest.mark.parametrize(
    ("count", "poison", "why"),
    [
        (1, "die", "the worker process died"),
        (2, "hang", "the worker process took more than 0.5 s for a batch"),
        (2, "hog", "the worker process took more than 150 MiB of memory"),
    ],
)
def test_an_input_that_ends_workers_is_named_and_its_companions_are_answered(
    count: int, poison: str, why: str
) -> None:
    """Whether it kills the process, makes it hang, or takes more memory than there is."""

    async def main() -> None:
        timeout = 0.5 if poison == "hang" else None
        backends = [worker(each, batch_timeout=timeout, max_memory=150 * MIB) for each in range(count)]
        async with batching(*backends) as batcher:
            texts = ["a", "b", poison, "c", "d", "e", "f", "g"]
            answers = await ask(batcher, *texts)
            error = answers.pop(texts.index(poison))
            assert isinstance(error, BatchFailed)
            assert "this input kills the worker process" in str(error)
            assert why in str(error)
            texts.remove(poison)
            assert texts_in(answers) == texts

    run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_an_input_that_kills_in_preparing_is_named_and_not_what_ran_meanwhile(count: int) -> None:
    """Whichever of the two was blamed first: what is run again is alone at its worker."""

    async def main() -> None:
        backends = [ProcessBackend("toy_model:ahead", {}, Place(f"worker-{each}")) for each in range(count)]
        async with batching(*backends, most=2) as batcher:
            long = " " * shared.LEAST
            texts = ["sleep", f"a{long}", "die early", f"b{long}", "sleep", f"c{long}", "sleep", f"d{long}"]
            await ask(batcher, long)
            answers = await ask(batcher, *texts)
            error = answers.pop(2)
            assert "this input kills the worker process" in str(error)
            assert texts_in(answers) == [text for text in texts if text != "die early"]

    run(main())


def test_a_model_that_always_dies_is_an_outage_and_not_a_search_through_everybody() -> None:
    """32 callers cost a few processes, not 64, and are told; the server lives on."""

    async def main() -> None:
        async with batching(worker(0), worker(1)) as batcher:
            answers = await ask(batcher, *["die"] * 16)
            assert all(isinstance(answer, BackendError) for answer in answers)
            assert texts_in(await ask(batcher, "a")) == ["a"]

    run(main())


def test_a_worker_that_has_grown_too_large_is_replaced_between_batches() -> None:
    """Its callers are answered, and so are the next."""

    async def main() -> None:
        async with batching(worker(max_memory=150 * MIB)) as batcher:
            pids = set()
            for _ in range(4):
                answers = await ask(batcher, "grow")
                assert texts_in(answers) == ["grow"]
                pids |= pids_in(answers)
            assert len(pids) > 1

    run(main())


def test_a_worker_that_was_stopped_is_replaced_before_anybody_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And until then `trouble()` says why there is none."""
    monkeypatch.setattr(parent, "_PING_SECONDS", 0.05)

    async def main() -> None:
        backend = worker(batch_timeout=0.5)
        async with batching(backend) as batcher:
            (before,) = pids_in(await ask(batcher, "a"))
            os.kill(before, signal.SIGSTOP)
            await turns_until(lambda: "did not answer for 0.5 s" in str(backend.trouble()))
            await turns_until(lambda: backend.trouble() is None)
            assert before not in pids_in(await ask(batcher, "a"))

    run(main())


def test_asking_whether_a_worker_answers_disturbs_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked all the time, where small batches and large ones follow, of which the next is read meanwhile."""
    monkeypatch.setattr(parent, "_PING_SECONDS", 0.0)

    async def main() -> None:
        backend = ProcessBackend("toy_model:ahead", {}, Place("worker-0"), batch_timeout=50)
        async with batching(backend, most=8) as batcher:
            pids = set()
            for number in range(200):
                texts = [f"{number} {place}" for place in range(1 + number % 20)]
                answers = await ask(batcher, *texts)
                assert texts_in(answers) == texts
                pids |= pids_in(answers)
            assert len(pids) == 1

    run(main())


def test_running_out_of_memory_halves_the_batch_and_keeps_it_small() -> None:
    """Nobody sees an error; the batches after are of a size that fits."""

    async def main() -> None:
        seen = Seen()
        async with batching(worker(most=5), seen=seen) as batcher:
            texts = [f"text {number}" for number in range(16)]
            assert texts_in(await ask(batcher, *texts)) == texts
            assert seen.sizes == [16, 8, 8, 4, 4, 4, 4]
            seen.sizes.clear()
            assert texts_in(await ask(batcher, *texts)) == texts
            assert max(seen.sizes) <= 5

    run(main())


def test_a_replica_that_cannot_be_started_leaves_the_others_to_serve() -> None:
    """It says why, and is tried again; that all fail is the operator's to know at once."""

    def on(device: str) -> ProcessBackend:
        return ProcessBackend("toy_model:load", {"only": "good"}, Place(f"on {device}", device))

    async def main() -> None:
        async with batching(on("good"), on("bad")) as batcher:
            assert [replica.trouble for replica in batcher.replicas()] == [
                None,
                "there is no device bad: there is good",
            ]
            assert texts_in(await ask(batcher, "a")) == ["a"]
        with pytest.raises(ModelError, match="there is no device worse"):
            async with batching(on("worse"), on("bad")):
                pass

    run(main())


def test_a_replica_that_is_dead_is_told_of_alone() -> None:
    """Of two, the other is well and serves meanwhile; then both are."""

    async def main() -> None:
        first, second = worker(0), worker(1)
        async with batching(first, second) as batcher:
            (pid,) = pids_in([(await first.run([b'"a"']))[0]])
            os.kill(pid, signal.SIGKILL)
            await turns_until(lambda: first.trouble())
            states = {replica.name: replica.trouble for replica in batcher.replicas()}
            assert "the worker process died" in str(states["worker-0"])
            assert states["worker-1"] is None
            assert texts_in(await ask(batcher, "b")) == ["b"]
            await turns_until(lambda: first.trouble() is None)

    run(main())


def test_the_device_and_the_cores_reach_the_model() -> None:
    """The loader is told the device if it takes one, and sees only its own cores."""
    core = min(os.sched_getaffinity(0))

    async def main() -> None:
        backend = ProcessBackend("toy_model:load", {}, Place("worker", "cuda:7", (core,)))
        await backend.start(lambda: None)
        assert backend.info == {"name": "toy", "device": "cuda:7", "cores": [core]}
        await backend.close()
        backend = ProcessBackend("toy_model:on_cpu", {}, Place("worker", "cuda:7"))
        with pytest.raises(ModelError, match="the model cannot run on cuda:7"):
            await backend.start(lambda: None)
        await backend.close()

    run(main())
