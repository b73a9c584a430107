"""A local model, and a proxy in front of it, for clients that other people wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import RunningServer, carpool_serve


@pytest.fixture(scope="package", params=["local", "proxied"])
def server(
    request: pytest.FixtureRequest, model_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    if request.param == "local":
        yield model_server
        return
    folder = tmp_path_factory.mktemp("proxied")
    with carpool_serve(folder, ["--inference-url", model_server.url]) as proxy:
        yield proxy
