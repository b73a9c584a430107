"""`carpool bench` as a person types it, against a real server."""

from __future__ import annotations

import json
import re
import shutil
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from carpool.bench.dialects import DIALECTS
from carpool.bench.inputs import generate_images
from carpool.cli import main
from tests.support import own_models
from tests.support.servers import RunningServer, carpool_serve
from tests.support.upstream import Upstream

LOAD = ["--duration", "400ms", "--late-limit", "10s"]  # a busy machine must not fail these tests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`carpool serve` in front of an upstream."""
    with (
        Upstream() as upstream,
        carpool_serve(tmp_path_factory.mktemp("server"), ["--inference-url", upstream.url]) as server,
    ):
        yield server


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


def test_a_run_leaves_figures_pictures_and_a_report_that_needs_nothing_else(
    server: RunningServer, tmp_path: Path
) -> None:
    """The batch sizes are the server's own; the report refers to no other file and to no network."""
    out = tmp_path / "out"
    result = invoke(server.url, "--rate", "150", *LOAD, "--duration", "1s", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert "errors     none" in result.stdout
    content = json.loads((out / "results.json").read_text())
    results = content["results"]
    assert results["errors"] == {}
    assert results["requests"] == pytest.approx(150, abs=60)
    assert sum(results["batch_sizes"].values()) > 0
    assert content["about"]["load"] == "150/s poisson"
    for name in ("throughput", "latency_p50", "latency_tail", "latency_histogram", "batch_sizes"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    html = (out / "report.html").read_text()
    pictures = re.findall('alt="(.+?)" src="data:image/svg\\+xml;base64,(.+?)"', html)
    assert len(pictures) == 8  # a panel each, so that a narrow window has them below each other
    assert pictures[0][0] == "Throughput, requests a second"
    size = re.search(r'<svg [^>]*width="(\d+)', b64decode(pictures[0][1]).decode())
    assert size is not None
    assert int(size[1]) <= 360  # points: what is written in it can be read on a telephone
    assert not re.search(r'(src|href)="(?!data:)', html)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_answered_by_a_server_that_speaks_it(server: RunningServer, dialect: str) -> None:
    """Carpool itself speaks them all; a wrong body would be a 4xx, and no good answer an error."""
    result = invoke(server.url, "--users", "4", "--dialect", dialect, *LOAD)
    assert result.exit_code == 0, result.stderr
    assert "errors     none" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["http://127.0.0.1:1"], 1, "http://127.0.0.1:1 cannot be reached"),
        (["--users", "3", "--rate", "4", "http://127.0.0.1:1"], 2, "a load has a rate or users"),
        (["http://127.0.0.1:1", "--duration", "soon"], 2, 'duration "soon" is not one'),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], status: int, words: str) -> None:
    """The exit status says whether the command or the server is to blame."""
    result = invoke(*arguments)
    assert result.exit_code == status
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_in_which_it_could_not_keep_up_is_not_reported(server: RunningServer, tmp_path: Path) -> None:
    """One connection for more than it can carry: the server would look slower than it is. Status 3."""
    arguments = ["--rate", "5000", "--connections", "1", "--patience", "500ms", "--duration", "500ms"]
    result = invoke(server.url, *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert "this run cannot be believed: requests were sent" in result.stderr
    assert not (tmp_path / "out").exists()
    assert result.stdout == ""


def test_a_server_that_fails_everything_has_no_figures(server: RunningServer) -> None:
    """What it answered is said instead."""
    result = invoke(f"{server.url}/health", "--users", "2", *LOAD)
    assert result.exit_code == 1
    assert re.search(r"gave no good answer: \d+ x 405 Method Not Allowed", result.stderr)


NO_PICTURES = "there will be no pictures: matplotlib is not installed: pip install 'carpool[bench]'"


def test_without_the_extra_there_is_everything_but_pictures(
    monkeypatch: pytest.MonkeyPatch, server: RunningServer, tmp_path: Path
) -> None:
    """The line that installs it is said before the run, and is in the report."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    result = invoke(server.url, "--users", "4", *LOAD, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"carpool: {NO_PICTURES}\n")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.json"]
    assert "<p>No pictures: matplotlib is not installed" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "loads", "written"),
    [
        (["bench", "compare"], ["--users", "4", "--duration", "1s"], ["comparison.json", "comparison.md"]),
        (
            ["tune"],
            ["--duration", "500ms", "--batch-sizes", "8", "--in-flight", "1", "--most-users", "4"],
            ["tuned.toml", "tuning.json"],
        ),
    ],
)
def test_comparing_and_tuning_need_no_pictures_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], loads: list[str], written: list[str]
) -> None:
    """The tables and the settings are what they are for."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with Upstream() as upstream:
        arguments = [*command, upstream.url, *loads, "--late-limit", "10s", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert NO_PICTURES in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model that takes pictures."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copy(own_models.__file__, folder)
    with carpool_serve(folder, ["--model", "own_models:sizes"]) as server:
        yield server


@pytest.mark.parametrize("source", ["32x24", "32x24.jpg", "a directory"])
def test_pictures_reach_the_model_as_pictures(gallery: RunningServer, source: str, tmp_path: Path) -> None:
    """Made up as PNG or JPEG, or from files: the server decodes them all."""
    if source == "a directory":
        for number, image in enumerate(generate_images(32, 24, 2, "image/jpeg")):
            (tmp_path / f"{number}.jpeg").write_bytes(image.content)
        source = str(tmp_path)
    result = invoke(gallery.url, "--users", "4", "--warm-up", "0", "--images", source, *LOAD)
    assert result.exit_code == 0, result.stderr
    assert "errors     none" in result.stdout


def test_a_classifier_by_name_answers_pictures_in_batches(tmp_path: Path) -> None:
    """`carpool bench` on `carpool serve --model resnet18?weights=none`, as a person would try it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with carpool_serve(tmp_path, ["--model", "resnet18?weights=none"]) as server:
        arguments = ["--users", "8", "--dialect", "predict", "--images", "64x48.jpg", *LOAD, "--duration", "2s"]
        result = invoke(server.url, *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert "errors     none" in result.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"]["average_batch"] > 1
