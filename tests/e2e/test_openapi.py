"""What `/openapi.json` says is true: its examples work, and nothing gets an answer that is not in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import RunningServer, carpool_serve, environment

# What MiniLM cannot do: it has neither a vector for each token in its output, nor sparse ones, nor labels.
CANNOT = {"/embed_all", "/embed_sparse", "/predict"}

# To KServe's clients a queue that is too long for a deadline of a microsecond is 503: no fault of the server.
SETTINGS = """
[checks]
enabled = false
not_a_server_error = { enabled = true, expected-statuses = ["2xx", "4xx", "503"] }
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_schema_conformance.enabled = true
allow_header_conformance.enabled = true
"""


def test_every_route_has_an_example_that_works(model_server: RunningServer) -> None:
    """For each dialect that meets on its path; a GET route shows what it answers."""
    paths = model_server.client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        if "post" in operations:
            body = operations["post"]["requestBody"]["content"]["application/json"]
            assert body["examples"]
            for asked, example in body["examples"].items():
                status = model_server.client.post(path, json=example["value"]).status_code
                assert status == (424 if path in CANNOT and asked == "inputs" else 200), (path, example)
        if path not in ("/", "/ping", "/metrics") and "get" in operations:
            answer = operations["get"]["responses"]["200"]["content"]["application/json"]["example"]
            assert answer.keys() == model_server.client.get(path).json().keys()


def test_generated_requests_get_only_what_is_documented(model_server: RunningServer, tmp_path: Path) -> None:
    """By schemathesis: no server error, and no status, content type or body that OpenAPI does not tell of."""
    generate(model_server, tmp_path, most=5)


def test_generated_requests_to_a_proxy(model_server: RunningServer, tmp_path: Path) -> None:
    """The same where an upstream answers, also of what only that refuses: a token id that it lacks.

    One at a time: so many bad inputs are more than may be searched for, and their companions would get 502.
    """
    with carpool_serve(tmp_path, ["--inference-url", model_server.url]) as proxy:
        generate(proxy, tmp_path, "--exclude-path-regex=/versions/|/embed_", most=2, workers=1)


def generate(server: RunningServer, folder: Path, *given: str, most: int, workers: int = 4) -> None:
    """Have schemathesis ask, for each route, all that is at an edge and up to `most` other requests."""
    pytest.importorskip("schemathesis")
    (folder / "schemathesis.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    options = [
        "--phases=coverage,fuzzing",
        f"--max-examples={most}",
        "--seed=1",
        f"--workers={workers}",
        "--no-color",
    ]
    run = subprocess.run(
        [*command, *options, *given],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
