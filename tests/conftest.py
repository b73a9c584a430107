"""What several folders of tests share: the real model, and servers that run for a whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from carpool.models import pull
from carpool.models.catalog import CATALOG
from tests.support.servers import RunningServer, carpool_serve
from tests.support.upstream import Upstream


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The embedded model's directory; the first test that asks for it pulls it for real."""
    return pull.pull(CATALOG["minilm"])


@pytest.fixture(scope="session")
def model_server(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`carpool serve` with no arguments but a free port: the embedded model."""
    with carpool_serve(tmp_path_factory.mktemp("model_server")) as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An upstream inference server to proxy to."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def proxy(upstream: Upstream, tmp_path: Path) -> Iterator[RunningServer]:
    """`carpool serve` in front of the upstream, with one batch in flight so that batches form."""
    arguments = ["--inference-url", upstream.url, "--max-concurrent-workers", "1"]
    with carpool_serve(tmp_path, arguments) as server:
        yield server
