"""What `deploy/` says agrees with what carpool is: settings, ports, paths, and how long a shutdown may take.

No container is started here; the commands that run inside one are run for real.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from carpool.config import MODEL_SETTINGS, SERVER_SETTINGS, ModelSettings, ServerSettings, load_config
from tests.support.servers import RunningServer, environment
from tests.support.upstream import Upstream

DEPLOY = Path(__file__).parents[2] / "deploy"
PORT = ServerSettings().port
VARIABLES = {variable.name for setting in MODEL_SETTINGS + SERVER_SETTINGS for variable in setting.variables}
# How long what was admitted may take by default, in seconds: queue, batch, and clients that read slowly.
SHUTDOWN = (ModelSettings().queue_timeout_ms + ModelSettings().batch_timeout_ms) / 1000 + 5


def without_variables(text: str) -> str:
    """Compose's `${NAME:-default}` with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The services of the compose file."""
    services: dict[str, Any] = yaml.safe_load(without_variables((DEPLOY / "compose.yaml").read_text()))
    return services["services"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod of the Kubernetes deployment."""
    return documents()["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def documents() -> dict[str, Any]:
    """The Kubernetes objects by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, its continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line]


def image_environment() -> dict[str, str]:
    """What the image sets for carpool."""
    pairs = [pair.split("=", 1) for kind, text in dockerfile() if kind == "ENV" for pair in text.split()]
    return {name: value for name, value in pairs if name in VARIABLES or name.startswith("CARPOOL")}


def variables_of(container: dict[str, Any]) -> dict[str, str]:
    """The environment of a Kubernetes container."""
    return {one["name"]: one["value"] for one in container["env"]}


def option(arguments: list[str], name: str) -> str:
    """The value of a flag."""
    return arguments[arguments.index(name) + 1]


def test_every_variable_is_a_setting(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """A setting that was renamed, or a value that is out of range, is found here and not at a user's."""
    for variables in (compose["carpool"]["environment"], variables_of(pod["containers"][0])):
        assert set(variables) | set(image_environment()) <= VARIABLES
        config = load_config(environment=image_environment() | variables)
        assert (config.server.host, config.server.port) == ("0.0.0.0", PORT)


def test_carpool_looks_where_tei_listens(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """The upstream's URL names the service, and the port, of the other container."""
    url = urlsplit(compose["carpool"]["environment"]["INFERENCE_URL"])
    assert url.hostname in compose
    assert f"/127.0.0.1/{url.port} " in compose["tei"]["healthcheck"]["test"][-1]
    (tei,) = pod["initContainers"]
    port = int(option(tei["args"], "--port"))
    assert variables_of(pod["containers"][0])["INFERENCE_URL"] == f"http://127.0.0.1:{port}"
    assert tei["ports"][0]["containerPort"] == port


def test_no_batch_is_larger_than_tei_takes(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """TEI refuses a larger batch as a whole."""
    flag = "--max-client-batch-size"
    assert option(compose["tei"]["command"], flag) == compose["carpool"]["environment"]["MAX_BATCH_SIZE"]
    assert (
        option(pod["initContainers"][0]["args"], flag)
        == (variables_of(pod["containers"][0])["CARPOOL_MAX_BATCH_SIZE"])
    )


def test_ports_agree(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """The image exposes what carpool listens on, and everything else leads there."""
    assert ("EXPOSE", str(PORT)) in dockerfile()
    assert compose["carpool"]["ports"] == [f"127.0.0.1:3000:{PORT}"]  # it authenticates nobody
    (port,) = pod["containers"][0]["ports"]
    assert port["containerPort"] == PORT
    service = documents()["Service"]["spec"]
    assert service["ports"] == [{"name": "http", "port": 3000, "targetPort": port["name"]}]
    labels = documents()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_a_token_is_handed_on_only_where_there_is_one(compose: dict[str, Any]) -> None:
    """TEI takes an empty one for a token, and sends it."""
    assert compose["tei"]["environment"] == {"HF_TOKEN": None}


def test_carpool_waits_for_a_healthy_tei(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """Neither starts in front of a server that is still loading its model."""
    assert compose["carpool"]["depends_on"] == {"tei": {"condition": "service_healthy"}}
    (tei,) = pod["initContainers"]
    assert tei["restartPolicy"] == "Always"
    assert tei["startupProbe"]["httpGet"]["path"] == "/health"


def test_a_shutdown_has_the_time_it_may_need(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    """Everything admitted is answered before the process is killed."""
    assert float(compose["carpool"]["stop_grace_period"].removesuffix("s")) >= SHUTDOWN
    leaving = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= SHUTDOWN + leaving


def test_a_service_of_its_name_does_not_configure_it(pod: dict[str, Any]) -> None:
    """Kubernetes would set CARPOOL_PORT to tcp://10.0.0.1:3000, which is not a port."""
    assert documents()["Service"]["metadata"]["name"] == "carpool"
    assert pod["enableServiceLinks"] is False


def test_the_image_runs_as_nobody_in_particular() -> None:
    """The last stage sets a numeric user, which Kubernetes can check, before it says what runs."""
    kinds = [kind for kind, _ in dockerfile()]
    last = dockerfile()[len(kinds) - 1 - kinds[::-1].index("FROM") :]
    (user,) = [text for kind, text in last if kind == "USER"]
    assert int(user.split(":")[0]) > 0


def healthcheck() -> list[str]:
    """The image's health check as a command of this interpreter."""
    (text,) = [text for kind, text in dockerfile() if kind == "HEALTHCHECK"]
    *command, path = json.loads(text.partition("CMD ")[2])
    (source,) = [text.split()[0] for kind, text in dockerfile() if kind == "COPY" and text.split()[-1] == path]
    return [sys.executable, *command[1:], str(DEPLOY.parent / source)]


def test_the_image_knows_when_it_is_healthy(proxy: RunningServer, upstream: Upstream) -> None:
    """Its check, run for real: nothing listens, all is well, shutting down."""
    port = str(urlsplit(proxy.url).port)
    assert subprocess.run(healthcheck(), env=environment({"PORT": port}), check=False).returncode == 0
    nobody = environment({"CARPOOL_PORT": "9", "PORT": port})
    assert subprocess.run(healthcheck(), env=nobody, capture_output=True, check=False).returncode != 0


def test_the_health_check_knows_a_port_in_the_file(proxy: RunningServer, tmp_path: Path) -> None:
    """In the folder where it is run, as carpool is; a variable goes before it."""
    (tmp_path / "config.toml").write_text(f"[server]\nport = {urlsplit(proxy.url).port}\n")
    for extra, status in (({}, 0), ({"PORT": "9"}, 1)):
        variables = environment(extra)
        run = subprocess.run(healthcheck(), env=variables, cwd=tmp_path, capture_output=True, check=False)
        assert run.returncode == status


def test_tei_is_known_to_be_healthy_without_curl(compose: dict[str, Any], upstream: Upstream) -> None:
    """The check of the compose file, run for real: a server, and a path that it does not have."""
    _, bash, flag, script = compose["tei"]["healthcheck"]["test"]
    script = script.replace("/127.0.0.1/80 ", f"/127.0.0.1/{upstream.port} ")
    assert subprocess.run([bash, flag, script], check=False).returncode == 0
    missing = script.replace("/health", "/nothing")
    assert subprocess.run([bash, flag, missing], check=False).returncode != 0


def test_what_the_image_is_built_from_is_not_ignored() -> None:
    """Every path that the Dockerfile copies exists and is let through."""
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = [text.split()[:-1] for kind, text in dockerfile() if kind == "COPY" and "--from" not in text]
    for name in itertools.chain.from_iterable(copied):
        assert (DEPLOY.parent / name).exists()
        assert f"!{name}" in allowed


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    """Debian's docker-compose reads it, with and without the variables."""
    command = ["docker-compose", "--file", str(DEPLOY / "compose.yaml"), "config"]
    for extra in ({}, {"MODEL": "BAAI/bge-small-en-v1.5", "PORT": "8000", "MAX_BATCH_SIZE": "64"}):
        variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **extra}
        result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert extra.get("MODEL", "Qwen/Qwen3-Embedding-0.6B") in result.stdout
