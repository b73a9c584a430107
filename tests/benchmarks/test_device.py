"""The synthetic upstream of the benchmarks answers every client that is pointed at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

DEVICE = Path(__file__).parents[2] / "benchmarks" / "device.py"


@pytest.fixture(scope="module", params=["0", "1"])
def device(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """One that takes no time, and one whose batches take 1 ms: they run on different loops."""
    command = [sys.executable, str(DEVICE), "--a-ms", request.param, "--c-ms", "0", "--floats", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip(), trust_env=False) as client:
            yield client
        process.terminate()


@pytest.mark.parametrize(
    ("body", "texts"),
    [({"inputs": ["a", "b"]}, 2), ({"inputs": "a"}, 1), ({"input": "a"}, 1), ({"inputs": ["a"] * 32}, 32)],
)
def test_as_many_vectors_as_texts(device: httpx.Client, body: dict[str, object], texts: int) -> None:
    """TEI's list and string and carpool's own request are all counted for what they hold."""
    vectors = device.post("/embed", json=body).json()
    assert [len(vector) for vector in vectors] == [3] * texts


def test_what_is_no_text_is_refused(device: httpx.Client) -> None:
    """A malformed request is an error and not a cheap success that would flatter a measurement."""
    assert device.post("/embed", json={"inputs": [1]}).status_code == 422


def test_it_tells_what_ran(device: httpx.Client) -> None:
    """Batches and items since it was last asked."""
    device.get("/statistics")
    device.post("/embed", json={"inputs": ["a", "b"]})
    told = device.get("/statistics").json()
    assert (told["batches"], told["items"]) == (1, 2)
