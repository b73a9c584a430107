"""The command line, as a person types it."""

from __future__ import annotations

import socket
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from carpool.cli import main
from carpool.config import load_config
from carpool.models import pull


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PORT", "LOG_LEVEL", "INFERENCE_URL", "MODEL_PATH", "MAX_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_config_prints_a_file_that_gives_the_same_settings_with_their_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its output can be saved and used."""
    (tmp_path / "config.toml").write_text("max_batch_size = 8\n")
    monkeypatch.setenv("PORT", "4000")
    result = invoke("config", "--policy", "timeout")
    assert result.exit_code == 0
    lines = dict(line.split(" # ") for line in result.stdout.splitlines() if " # " in line)
    sources = {line.split()[0]: source for line, source in lines.items()}
    assert sources["max_batch_size"] == "config.toml"
    assert sources["port"] == "environment PORT"
    assert sources["policy"] == "flag --policy"
    assert sources["host"] == "default"
    written = tomllib.loads(result.stdout)
    assert written["models"]["default"]["max_batch_size"] == 8
    (tmp_path / "config.toml").write_text(result.stdout)
    monkeypatch.delenv("PORT")
    assert load_config(environment={}).models["default"].policy == "timeout"


def test_config_prints_every_model(tmp_path: Path) -> None:
    """Also one whose name TOML wants in quotes; the default one comes first."""
    models = '[models.a]\n[models."org/b:1"]\ninference_url = "http://b"\n'
    (tmp_path / "config.toml").write_text(models)
    written = tomllib.loads(invoke("config", "--default-model", "org/b:1").stdout)
    assert list(written["models"]) == ["org/b:1", "a"]
    assert written["models"]["org/b:1"]["inference_url"] == ["http://b"]
    assert written["server"]["default_model"] == "org/b:1"


@pytest.mark.parametrize(
    ("toml", "flags"),
    [
        ("", ["--inference-url", "http://h:1"]),
        ('[models.a]\n[models.b]\ninference_url = "http://b"', []),
        (r"""model = 'odd "name" in C:\models'""", []),
    ],
)
def test_what_config_prints_can_be_read_back(tmp_path: Path, toml: str, flags: list[str]) -> None:
    """Of a proxy too, which has no `model`."""
    (tmp_path / "config.toml").write_text(toml)
    (tmp_path / "printed.toml").write_text(invoke("config", *flags).stdout)
    given = {"inference_url": flags[1]} if flags else {}
    before, after = load_config(flags=given, environment={}), load_config(tmp_path / "printed.toml", {}, {})
    assert (after.server, after.models) == (before.server, before.models)


def test_the_password_of_an_upstream_is_not_shown() -> None:
    """Neither in the settings nor in an error; what only looks like one stays."""
    urls = ["http://user:pw@a:1/x", "http://:p@w@b", "http://user@c", "http://d:80/e@f"]
    result = invoke("config", *[part for url in urls for part in ("--inference-url", url)])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("inference_url")]
    shown = '["http://user:***@a:1/x", "http://:***@b", "http://user@c", "http://d:80/e@f"]'
    assert line == f"inference_url = {shown} # flag --inference-url"
    twice = ["--inference-url", "http://user:pw@a"] * 2
    assert (
        'inference_url = "http://user:***@a,http://user:***@a" names one twice'
        in invoke("config", *twice).stderr
    )


def test_config_tells_of_a_variable_that_is_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the settings, which can be read back all the same."""
    monkeypatch.setenv("CARPOOL_MAX_BATCHSIZE", "1")
    result = invoke("config")
    assert result.exit_code == 0
    assert "did you mean CARPOOL_MAX_BATCH_SIZE?" in result.stderr
    assert "max_batch_size = 32" in result.stdout


def test_a_flag_may_be_given_for_each_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is a secret is not printed."""
    monkeypatch.setenv("CARPOOL_UPSTREAM_API_KEY", "hush")
    result = invoke("config", "--inference-url", "http://a", "--inference-url", "http://b")
    assert 'inference_url = ["http://a", "http://b"]' in result.stdout
    assert "# upstream_api_key is set, and not shown: environment CARPOOL_UPSTREAM_API_KEY" in result.stdout
    assert "hush" not in result.stdout
    assert tomllib.loads(result.stdout)["models"]["default"]["inference_url"] == ["http://a", "http://b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["serve", "--max-batch-size", "5000"],
            'flag --max-batch-size: max_batch_size = "5000" is out of range',
        ),
        (["serve", "--config", "no.toml"], "no.toml: there is no such file"),
        (
            ["serve", "--model", "no-such"],
            "model 'no-such' is no name, directory, file or Python that is known",
        ),
        (["pull", "no-such"], "model 'no-such' is not in the catalogue: it has: minilm"),
    ],
)
def test_what_the_operator_must_mend_is_one_line_and_status_2(arguments: list[str], words: str) -> None:
    """No traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("carpool: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_in_use_is_said_before_a_model_is_loaded() -> None:
    """It names the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("serve", "--port", str(port), "--inference-url", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["check", "minilm"]])
@pytest.mark.parametrize(
    ("missing", "engine", "extra"),
    [
        (["tokenizers"], "auto", "local"),
        (["onnxruntime"], "onnxruntime", "onnx"),
        (["openvino", "onnxruntime"], "auto", "local"),
    ],
)
def test_no_model_is_pulled_that_could_not_be_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    missing: list[str],
    engine: str,
    extra: str,
) -> None:
    """What is to be installed is said at once, and not after a download."""
    monkeypatch.setenv("CARPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pull, "pull", lambda *arguments: pytest.fail("it is pulled"))
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    result = invoke(*command, "--engine", engine)
    assert result.exit_code == 2
    assert f"{missing[0]} is not installed: pip install 'carpool[{extra}]'" in result.stderr


def test_help_names_every_setting_with_its_range_and_its_variable() -> None:
    """A person finds MAX_BATCH_SIZE without the docs."""
    text = " ".join(invoke("serve", "--help").stdout.split())
    assert "--max-batch-size VALUE Most inputs in one batch. Allowed: 1 to 1000. Default: 32." in text
    assert "CARPOOL_MAX_BATCH_SIZE, MAX_BATCH_SIZE" in text
