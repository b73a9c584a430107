"""Settings: precedence, ranges, and errors that are enough to mend them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from carpool.config import (
    MODEL_SETTINGS,
    SERVER_SETTINGS,
    Config,
    ModelSettings,
    load_config,
    unknown_variables,
)
from carpool.errors import ConfigError


def load(
    folder: Path, toml: str = "", flags: Mapping[str, str] = {}, environment: Mapping[str, str] = {}
) -> Config:
    file = folder / "settings.toml"
    file.write_text(toml)
    return load_config(file, flags, environment)


def only_model(config: Config) -> ModelSettings:
    (model,) = config.models.values()
    return model


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing config.toml is no error."""
    monkeypatch.chdir(tmp_path)
    config = load_config(environment={})
    model = only_model(config)
    assert (config.server.host, config.server.port) == ("127.0.0.1", 3000)
    assert (model.max_batch_size, model.max_wait_time_ms, model.max_concurrent_workers) == (32, 100, 20)
    assert (model.model, model.policy) == ("minilm", "adaptive")
    assert set(config.sources.values()) == {"default"}


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    """A typing error in --config must not mean the defaults."""
    with pytest.raises(ConfigError, match=r"prod\.toml: there is no such file"):
        load_config(tmp_path / "prod.toml", environment={})


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each source is used in turn, and said."""
    toml = "max_batch_size = 1"
    environment = {"MAX_BATCH_SIZE": "2"}
    flags = {"max_batch_size": "3"}
    for given, value, source in [
        (load(tmp_path, toml, flags, environment), 3, "flag --max-batch-size"),
        (load(tmp_path, toml, {}, environment), 2, "environment MAX_BATCH_SIZE"),
        (load(tmp_path, toml), 1, f"{tmp_path / 'settings.toml'}"),
        (load(tmp_path), 32, "default"),
    ]:
        assert only_model(given).max_batch_size == value
        assert given.sources["default", "max_batch_size"] == source


def test_carpools_own_variable_beats_the_inherited_name(tmp_path: Path) -> None:
    """CARPOOL_PORT is more to the point than PORT; an empty variable is as good as none."""
    assert load(tmp_path, environment={"CARPOOL_PORT": "1", "PORT": "2"}).server.port == 1
    assert load(tmp_path, environment={"CARPOOL_PORT": "", "PORT": "2"}).server.port == 2


def test_tables_beside_flat_keys(tmp_path: Path) -> None:
    """[server] holds the process, [models.NAME] a model, which may differ from the flat keys."""
    config = load(
        tmp_path,
        """
        max_batch_size = 8
        max_wait_time_ms = 5
        [server]
        port = 4000
        [models.small]
        max_batch_size = 16
        """,
    )
    assert config.server.port == 4000
    assert list(config.models) == ["small"]
    assert (config.models["small"].max_batch_size, config.models["small"].max_wait_time_ms) == (16, 5)
    assert config.sources["small", "max_batch_size"].endswith("[models.small]")


SEVERAL = """
max_batch_size = 8
inference_url = "http://gateway"
[models.local]
model = "minilm"
max_batch_size = 16
[models."org/far:1"]
upstream_model = "far"
"""


def test_of_several_models_each_says_what_is_its_own(tmp_path: Path) -> None:
    """What it says goes first; flags, variables and flat keys are for all that do not say otherwise."""
    flags, environment = {"max_batch_size": "4"}, {"MAX_WAIT_TIME": "0.05"}
    config = load(tmp_path, SEVERAL, flags, environment)
    local, far = config.models.values()
    assert list(config.models) == ["local", "org/far:1"]
    assert (local.max_batch_size, far.max_batch_size) == (16, 4)
    assert (local.max_wait_time_ms, far.max_wait_time_ms) == (50, 50)
    assert config.sources["org/far:1", "max_batch_size"] == "flag --max-batch-size"
    assert config.sources["local", "max_batch_size"].endswith("[models.local]")
    assert load(tmp_path, SEVERAL).models["org/far:1"].max_batch_size == 8


def test_one_of_several_inherits_not_both_a_model_and_an_upstream(tmp_path: Path) -> None:
    """One that says which of the two it is stays that, whatever all of them were told."""
    for environment in ({}, {"INFERENCE_URL": "http://gateway"}):
        local, far = load(tmp_path, SEVERAL, environment=environment).models.values()
        assert (local.model, local.inference_url) == ("minilm", ())
        assert (far.inference_url, far.upstream_model) == (("http://gateway",), "far")
    both = '[models.a]\nmodel = "x"\ninference_url = "http://a"\n[models.b]'
    with pytest.raises(ConfigError, match=r"both model \(.*\[models.a\]\) and inference_url"):
        load(tmp_path, both)


def test_the_default_model_is_the_first_or_the_one_that_is_named(tmp_path: Path) -> None:
    """It comes first in the configuration."""
    assert next(iter(load(tmp_path, SEVERAL).models)) == "local"
    assert next(iter(load(tmp_path, SEVERAL, {"default_model": "org/far:1"}).models)) == "org/far:1"


@pytest.mark.parametrize(
    ("environment", "key", "value"),
    [
        ({"MAX_WAIT_TIME": "0.01"}, "max_wait_time_ms", 10),
        ({"MAX_BATCH_SIZE": "64"}, "max_batch_size", 64),
        ({"MODEL_PATH": "/srv/model"}, "model", "/srv/model"),
        ({"INFERENCE_URL": "http://tei:80"}, "inference_url", ("http://tei:80",)),
    ],
)
def test_the_inherited_variables_of_a_model(
    tmp_path: Path, environment: dict[str, str], key: str, value: object
) -> None:
    """MAX_WAIT_TIME is in seconds, as it always was."""
    assert getattr(only_model(load(tmp_path, environment=environment)), key) == value


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({"LOG_LEVEL": "DEBUG"}, "debug"),
        ({"LOG_LEVEL": "warn"}, "warning"),
        ({"RUST_LOG": "debug"}, "debug"),
        ({"RUST_LOG": "hyper=info,trace"}, "debug"),
        ({"RUST_LOG": "hyper=debug"}, "info"),
        ({"LOG_LEVEL": "error", "RUST_LOG": "debug"}, "error"),
    ],
)
def test_the_log_level_and_its_old_name(tmp_path: Path, environment: dict[str, str], level: str) -> None:
    """RUST_LOG directives for other programs are not ours to refuse."""
    assert load(tmp_path, environment=environment).server.log_level == level


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("max_batch_size = 1001", "max_batch_size = 1001 is out of range: allowed: 1 to 1000"),
        ("max_batch_size = 0", "max_batch_size = 0 is out of range: allowed: 1 to 1000"),
        ("max_wait_time_ms = 10001", "max_wait_time_ms = 10001 is out of range: allowed: 1 to 10000"),
        ("max_concurrent_workers = 0", "max_concurrent_workers = 0 is out of range: allowed: 1 to 1000"),
        ('max_batch_size = "many"', 'max_batch_size = "many" is not a whole number: allowed: 1 to 1000'),
        ("max_batch_size = 1.5", "max_batch_size = 1.5 is not a whole number: allowed: 1 to 1000"),
        ("max_batch_size = true", "max_batch_size = true is not a whole number: allowed: 1 to 1000"),
        ('policy = "magic"', 'policy = "magic" is not known: allowed: adaptive, timeout'),
        (
            'inference_url = "tei:80"',
            'inference_url = "tei:80" is not a URL: allowed: an http:// or https:// URL',
        ),
        (
            'inference_url = ["http://a", "b"]',
            'inference_url = "b" is not a URL: allowed: an http:// or https:// URL, or several',
        ),
        ("inference_url = 7", "inference_url = 7 is not a text or a list of texts"),
        ("inference_url = [7]", "inference_url = [7] is not a text or a list of texts"),
        (
            'inference_url = ["http://a", "http://a"]',
            'inference_url = ["http://a", "http://a"] names one twice',
        ),
        ('upstream = "grpc"', 'upstream = "grpc" is not known: allowed: auto, tei, openai, kserve_v2'),
        ('upstream_api_key = "a b"', 'upstream_api_key = "..." cannot be sent: allowed: printable ASCII'),
        (
            "max_batchsize = 3",
            "max_batchsize = 3 is not a setting: did you mean max_batch_size? allowed: model,",
        ),
        ("port = 3000", "port = 3000 is in the wrong place: write it in [server]"),
        ("server = 3", "server = 3 is not a table"),
        ('[models."a b"]', '[models."a b"]: no name of a model: allowed: letters, digits'),
        ('[models.a]\n[models."a/b"]', '[models.a] and [models."a/b"]: one name goes on from the other'),
        ('[models.a]\n[server]\ndefault_model = "b"', 'default_model = "b" is no model here: allowed: a'),
        ("[models]\na = 3", "a = 3 is not a table"),
        ("max_batch_size = ", "not a TOML file"),
    ],
)
def test_a_bad_file_is_one_line_with_key_value_range_and_file(tmp_path: Path, toml: str, message: str) -> None:
    """The message is enough to mend it."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    assert str(tmp_path / "settings.toml") in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"port": "99999"}, {}, 'flag --port: port = "99999" is out of range: allowed: 0 to 65535'),
        ({"port": "x"}, {}, 'flag --port: port = "x" is not a whole number: allowed: 0 to 65535'),
        ({}, {"MAX_WAIT_TIME": "20"}, 'environment MAX_WAIT_TIME: max_wait_time_ms = "20" is out of range'),
        (
            {},
            {"MAX_WAIT_TIME": "soon"},
            'environment MAX_WAIT_TIME: max_wait_time_ms = "soon" is not a number',
        ),
        ({}, {"LOG_LEVEL": "loud"}, 'log_level = "loud" is not known: allowed: debug, info, warning, error'),
        ({"max_wait_time_ms": "nan"}, {}, 'max_wait_time_ms = "nan" is out of range'),
    ],
)
def test_a_bad_flag_or_variable_is_named_as_it_was_written(
    tmp_path: Path, flags: dict[str, str], environment: dict[str, str], message: str
) -> None:
    """The user sees the text that they wrote, under the name that they wrote it."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", flags, environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "flags", "environment", "urls"),
    [
        ('inference_url = "http://a"', {}, {}, ("http://a",)),
        ('inference_url = ["http://a", "http://b:81/embed"]', {}, {}, ("http://a", "http://b:81/embed")),
        ('inference_url = ""', {}, {}, ()),
        ("inference_url = []", {}, {}, ()),
        ("", {}, {"INFERENCE_URL": "http://a, http://b"}, ("http://a", "http://b")),
        ("", {"inference_url": "http://a,http://b"}, {"INFERENCE_URL": "http://c"}, ("http://a", "http://b")),
    ],
)
def test_one_upstream_or_several(
    tmp_path: Path, toml: str, flags: dict[str, str], environment: dict[str, str], urls: tuple[str, ...]
) -> None:
    """A text or a list in the file, commas elsewhere."""
    assert only_model(load(tmp_path, toml, flags, environment)).inference_url == urls


def test_a_model_and_an_upstream_exclude_each_other(tmp_path: Path) -> None:
    """Which one was meant cannot be known, so both sources are named."""
    with pytest.raises(ConfigError, match=r"both model \(flag --model\) and inference_url \(environment INF"):
        load(tmp_path, flags={"model": "x"}, environment={"INFERENCE_URL": "http://a"})


def test_an_unknown_variable_is_told_with_the_one_that_may_have_been_meant() -> None:
    """Those that Kubernetes sets for a Service of that name are nobody's mistake."""
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR"]
    links += ["METRICS_SERVICE_HOST", "METRICS_PORT_9090_TCP_PROTO"]
    fine = ["CARPOOL_MAX_BATCH_SIZE", "CARPOOL_LOG_LEVEL", "CARPOOL_CONFIG", "CARPOOL_CACHE", "MAX_BATCHSIZE"]
    fine += [f"CARPOOL_{link}" for link in links]
    given = dict.fromkeys([*fine, "CARPOOL_MAX_BATCHSIZE", "CARPOOL_XYZZY"], "1")
    assert list(unknown_variables(given)) == [
        "environment CARPOOL_MAX_BATCHSIZE is not a setting: did you mean CARPOOL_MAX_BATCH_SIZE?",
        "environment CARPOOL_XYZZY is not a setting",
    ]


def test_the_documentation_lists_every_setting_as_it_is() -> None:
    """Each row of docs/settings.md is what the code says; a changed setting fails here with its new row."""
    rows = []
    for setting in (*MODEL_SETTINGS, *SERVER_SETTINGS):
        default = "none" if setting.default in ("", ()) else setting.default
        names = ", ".join(f"`{alias.name}`" for alias in setting.rule.aliases)
        rows.append(f"| `{setting.key}` | {default} | {setting.rule.allowed} | {names} | {setting.rule.help} |")
    written = (Path(__file__).parent.parent / "docs" / "settings.md").read_text().splitlines()
    assert [line for line in written if line.startswith("| `")] == rows
