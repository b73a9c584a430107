"""Every setting: its default, its range, and where its value came from.

The fields of `ModelSettings` and `ServerSettings` are the single list: file keys, flags, environment
variables, checks, `carpool config` and the reference in the docs all derive from them. A value is taken
from the first of: flag, environment, file (`[models.NAME]` before flat keys), default. With several
`[models.NAME]` what one says of itself goes first: flags and the environment are then for all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

from carpool.core.policy import PolicyName
from carpool.errors import ConfigError
from carpool.observe.log import LEVELS
from carpool.wire.upstream import UpstreamName

DEFAULT_FILE = Path("config.toml")
DEFAULT_MODEL = "minilm"
DEFAULT_NAME = "default"  # of the one model that the flat keys describe

# Names stand in paths and in OpenAI's `model`, where "owner/name:tag" is usual.
_NAME = re.compile(r"\w[\w.:-]*(/\w[\w.:-]*)*", re.ASCII)
_PASSWORD = re.compile(r"(://[^:@/?#]*):[^/?#]*@")
_PREFIX = "CARPOOL_"  # of the environment variables
_NO_SETTINGS = ("CARPOOL_CONFIG", "CARPOOL_CACHE")  # but known all the same
# What Kubernetes tells of a Service called carpool: CARPOOL_SERVICE_HOST, CARPOOL_PORT_80_TCP_ADDR, ...
_SERVICE_LINK = re.compile(r"CARPOOL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_EXCLUSIVE = {"model": "inference_url", "inference_url": "model"}

ENGINES = ("auto", "openvino", "onnxruntime", "torch")


class Alias(NamedTuple):
    """An environment variable beside `CARPOOL_<KEY>`, and how its text becomes the key's text."""

    name: str
    convert: Callable[[str], str] = str.strip


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting means and what it may be."""

    help: str
    between: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    url: bool = False
    secret: bool = False
    truth: bool = False
    aliases: tuple[Alias, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.between:
            return "{} to {}".format(*self.between)
        if self.choices:
            return ", ".join(self.choices)
        if self.truth:
            return "true or false"
        if self.url:
            return "an http:// or https:// URL, or several"
        return "printable ASCII without spaces" if self.secret else "a text"


def _setting(default: Any, help_text: str, **rule: Any) -> Any:
    truth = isinstance(default, bool)
    return dataclasses.field(default=default, metadata={"rule": Rule(help_text, truth=truth, **rule)})


def _seconds_to_ms(text: str) -> str:
    try:
        return f"{float(text) * 1000:g}"
    except ValueError:
        return text  # refused as what it is, under its own name


def _rust_level(text: str) -> str:
    """The plain level among `RUST_LOG` directives such as `warn,hyper=info`; nothing of it is an error."""
    names = {"trace": "debug", "warn": "warning", "off": "error"}
    levels = [word.strip().lower() for word in text.split(",") if "=" not in word]
    level = next((names.get(word, word) for word in levels), "")
    return level if level in LEVELS else ""


def _python_level(text: str) -> str:
    return {"warn": "warning", "trace": "debug"}.get(text.strip().lower(), text.strip().lower())


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model: what is served and how its batches are formed."""

    model: str = _setting(
        DEFAULT_MODEL,
        "A catalogue name, a directory, a file, torchvision:NAME or package.module:name: see docs/models.md.",
        aliases=(Alias("MODEL_PATH"),),
    )
    inference_url: tuple[str, ...] = _setting(
        (),
        "Proxy to this inference server instead of running a model, or to several that serve the same one.",
        url=True,
        aliases=(Alias("INFERENCE_URL"),),
    )
    upstream: UpstreamName = _setting(
        "auto",
        "What the inference server speaks; auto goes by its URL and by what it says of itself.",
        choices=get_args(UpstreamName),
    )
    upstream_model: str = _setting("", "The model to ask the inference server for, where it has several.")
    upstream_api_key: str = _setting("", "Sent to the inference server as a bearer token.", secret=True)
    forward_authorization: bool = _setting(
        False,
        "Send each caller's Authorization to the inference server, in place of `upstream_api_key`; "
        "only callers with the same one share a batch.",
    )
    engine: str = _setting("auto", "What runs a local model.", choices=ENGINES)
    replicas: int = _setting(1, "Worker processes that run a local model, each a copy of it.", between=(1, 256))
    devices: tuple[str, ...] = _setting(
        (), "What they run on, such as cuda:0, in turn; one worker process at least for each."
    )
    pin_cores: bool = _setting(True, "Several worker processes share the cores evenly, each on its own.")
    max_memory_mb: int = _setting(
        0,
        "Replace a worker process that takes more MiB of memory than this; 0 for no limit.",
        between=(0, 16 * 1024**2),
    )
    policy: PolicyName = _setting("adaptive", "When a batch leaves.", choices=get_args(PolicyName))
    max_batch_size: int = _setting(
        32, "Most inputs in one batch.", between=(1, 1000), aliases=(Alias("MAX_BATCH_SIZE"),)
    )
    max_wait_time_ms: float = _setting(
        100.0,
        "Longest that the oldest request is held for company.",
        between=(1, 10_000),
        aliases=(Alias("MAX_WAIT_TIME", _seconds_to_ms),),
    )
    max_concurrent_workers: int = _setting(
        20,
        "Most batches in flight at each upstream; a local model takes no more than it can run at once.",
        between=(1, 1000),
    )
    max_batch_tokens: int = _setting(
        0,
        "Most tokens in one batch, estimated as bytes / 4, or as a model's own `cost` counts; 0 for no limit.",
        between=(0, 10_000_000),
    )
    latency_objective_ms: int = _setting(
        0,
        "Keep batches small enough for this latency, as far as the load allows; 0 for none.",
        between=(0, 3_600_000),
    )
    dedupe: bool = _setting(True, "Equal inputs that wait or run at the same time share one computation.")
    isolate: bool = _setting(
        True, "Run a batch that failed on what is in it again in halves, until only the bad inputs fail."
    )
    hedge: bool = _setting(
        False,
        "Send a batch that takes longer than 19 of 20 do to another upstream as well; the first answer counts.",
    )
    upstream_patience_ms: int = _setting(
        2000,
        "How long requests wait when no upstream can be reached, before they end with 503.",
        between=(1, 3_600_000),
    )
    max_queue_size: int = _setting(
        10_000, "Most inputs that may wait; more are refused with 429.", between=(1, 1_000_000)
    )
    queue_timeout_ms: int = _setting(
        30_000,
        "Longest that a request may wait in the queue before it ends with 408.",
        between=(1, 3_600_000),
    )
    load_timeout_ms: int = _setting(
        600_000,
        "Longest that a worker process may load its model before it is ended, and another tries.",
        between=(1, 86_400_000),
    )
    batch_timeout_ms: int = _setting(
        60_000, "Longest that a batch may run before it ends with 502.", between=(1, 3_600_000)
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The process that listens."""

    host: str = _setting("127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    port: int = _setting(
        3000, "Port to listen on; 0 for any free one.", between=(0, 65_535), aliases=(Alias("PORT"),)
    )
    log_level: str = _setting(
        "info",
        "How much is logged.",
        choices=LEVELS,
        aliases=(Alias("LOG_LEVEL", _python_level), Alias("RUST_LOG", _rust_level)),
    )
    max_text_bytes: int = _setting(
        2 * 1024**2, "Largest body of a route that takes texts.", between=(1, 1024**3)
    )
    max_predict_bytes: int = _setting(32 * 1024**2, "Largest body of /predict.", between=(1, 1024**3))
    default_model: str = _setting("", "Of several models, the one for requests that name none; else the first.")


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings. `sources` tells for each (table, key) where its value came from.

    The first of the models is the default one.
    """

    server: ServerSettings
    models: Mapping[str, ModelSettings]
    sources: Mapping[tuple[str, str], str]


class Setting(NamedTuple):
    """One setting as the command line and the docs see it."""

    key: str
    kind: type
    default: Any
    rule: Rule

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def variables(self) -> tuple[Alias, ...]:
        """Its environment variables, the first of which wins."""
        return (Alias(_PREFIX + self.key.upper()), *self.rule.aliases)


def settings_of(table: type) -> Iterator[Setting]:
    """The settings of a table, in order."""
    for field in dataclasses.fields(table):
        yield Setting(field.name, type(field.default), field.default, field.metadata["rule"])


MODEL_SETTINGS = tuple(settings_of(ModelSettings))
SERVER_SETTINGS = tuple(settings_of(ServerSettings))


def load_config(
    file: Path = DEFAULT_FILE,
    flags: Mapping[str, str] = MappingProxyType({}),
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """The effective settings from all sources; `flags` maps keys to texts.

    Raises `ConfigError` with one line that names the source, the key, the value and what is allowed.
    """
    flat = _read(file)
    server_table = _pop_table(flat, "server", file)
    tables = _pop_models(flat, file)
    _refuse_unknown(flat, MODEL_SETTINGS, f"{file}", is_top=True)
    _refuse_unknown(server_table, SERVER_SETTINGS, f"{file} [server]")
    sources = _Sources(flags, environment)
    server = ServerSettings(
        **sources.values("server", SERVER_SETTINGS, shared=((f"{file} [server]", server_table),))
    )
    models = {}
    for name, table in tables.items():
        own, inherited = (f"{file} {header_of(name)}", table), (str(file), flat)
        models[name] = _resolve_model(sources, name, own, inherited, is_only=len(tables) == 1)
    _refuse_unknown_default(server.default_model, models, sources.found["server", "default_model"])
    by_default = sorted(models, key=lambda name: name != server.default_model)
    return Config(server, {name: models[name] for name in by_default}, sources.found)


Table = tuple[str, Mapping[str, Any]]  # one of a file, with what it is called in messages


def _resolve_model(sources: _Sources, name: str, own: Table, flat: Table, is_only: bool) -> ModelSettings:
    """One model's settings. One of several that says what it runs, or is a proxy to, inherits not the other."""
    _refuse_unknown(own[1], MODEL_SETTINGS, own[0])
    if is_only:
        values = sources.values(name, MODEL_SETTINGS, shared=(own, flat))
    else:
        skip = {other for key, other in _EXCLUSIVE.items() if own[1].get(key) and other not in own[1]}
        values = sources.values(name, MODEL_SETTINGS, own=(own,), shared=(flat,), skip=skip)
    model = ModelSettings(**values)
    _refuse_two_models(model, sources.found[name, "model"], sources.found[name, "inference_url"])
    return model


def unknown_variables(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What is to be said of each variable that is named like a setting and is none.

    It is no error, as in a file: who sets variables for a process may not be who runs it.
    """
    keys = [setting.key for setting in (*MODEL_SETTINGS, *SERVER_SETTINGS)]
    known = {*_NO_SETTINGS, *(_PREFIX + key.upper() for key in keys)}
    for name in environment:
        if name.startswith(_PREFIX) and name not in known and not _SERVICE_LINK.fullmatch(name):
            near = difflib.get_close_matches(name.removeprefix(_PREFIX).lower(), keys, n=1)
            hint = f": did you mean {_PREFIX}{near[0].upper()}?" if near else ""
            yield f"environment {name} is not a setting{hint}"


def differences(before: Config, after: Config) -> set[tuple[str, str]]:
    """The settings that are not the same, each with its table, among the models that are in both."""
    in_both = before.models.keys() & after.models.keys()
    tables: list[tuple[str, Any, Any]] = [("server", before.server, after.server)]
    tables += [(name, before.models[name], after.models[name]) for name in in_both]
    return {
        (table, setting.key)
        for table, one, other in tables
        for setting in settings_of(type(one))
        if getattr(one, setting.key) != getattr(other, setting.key)
    }


class _Sources:
    """Looks for values, and remembers in `found` where each of them was."""

    def __init__(self, flags: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.found: dict[tuple[str, str], str] = {}
        self._flags = flags
        self._environment = environment

    def values(
        self,
        name: str,
        settings: tuple[Setting, ...],
        own: tuple[Table, ...] = (),
        shared: tuple[Table, ...] = (),
        skip: Container[str] = (),
    ) -> dict[str, Any]:
        """The value of each setting: from the tables `own`, a flag, the environment, the tables `shared`."""
        values = {}
        for setting in settings:
            found = None
            if setting.key not in skip:
                found = _said(setting, own) or self._given(setting) or _said(setting, shared)
            values[setting.key], self.found[name, setting.key] = found or (setting.default, "default")
        return values

    def _given(self, setting: Setting) -> tuple[Any, str] | None:
        if (text := self._flags.get(setting.key)) is not None:
            return _parse(setting, text, text, source := f"flag {setting.flag}"), source
        for variable in setting.variables:
            if text := variable.convert(self._environment.get(variable.name, "")):
                shown = self._environment[variable.name]
                return _parse(setting, text, shown, source := f"environment {variable.name}"), source
        return None


def _said(setting: Setting, tables: tuple[Table, ...]) -> tuple[Any, str] | None:
    """The value of the first table that has one, checked, and the table."""
    for source, table in tables:
        if setting.key in table:
            return _check(setting, table[setting.key], table[setting.key], source), source
    return None


def _parse(setting: Setting, text: str, shown: str, source: str) -> Any:
    """A text's value. `shown` is what the user wrote, where that differs."""
    try:
        value = _read_text(setting.kind, text)
    except (ValueError, KeyError):
        raise _refusal(setting, shown, source, f"is not {_NAMES[setting.kind]}") from None
    return _check(setting, value, shown, source)


def _read_text(kind: type, text: str) -> Any:
    """What a text means as a value of this kind. Raises `ValueError` or `KeyError`."""
    if kind is bool:
        return _TRUTHS[text.lower()]
    if kind is tuple:
        return [part.strip() for part in text.split(",")]
    return kind(text)


def _check(setting: Setting, value: Any, shown: Any, source: str) -> Any:
    """The value, if it is of the right type and in range. A whole number is a number; a truth is neither."""
    if setting.kind is tuple:
        return _check_list(setting, [value] if isinstance(value, str) else value, shown, source)
    kinds: Any = (int, float) if setting.kind is float else setting.kind
    if not isinstance(value, kinds) or isinstance(value, bool) != (setting.kind is bool):
        raise _refusal(setting, shown, source, f"is not {_NAMES[setting.kind]}")
    rule = setting.rule
    if rule.between and not rule.between[0] <= value <= rule.between[1]:
        raise _refusal(setting, shown, source, "is out of range")
    if rule.choices and value not in rule.choices:
        raise _refusal(setting, shown, source, "is not known")
    if rule.secret and not (value.isascii() and value.isprintable() and " " not in value):
        raise _refusal(setting, shown, source, "cannot be sent")
    return value


def _check_list(setting: Setting, values: Any, shown: Any, source: str) -> tuple[str, ...]:
    """The texts, each of which is checked on its own. A single empty one is as good as none."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _refusal(setting, shown, source, f"is not {_NAMES[setting.kind]}")
    values = [] if values == [""] else values
    for value in values:
        if setting.rule.url and not _is_url(value):
            raise _refusal(setting, value, source, "is not a URL")
    if len(set(values)) != len(values):
        raise _refusal(setting, shown, source, "names one twice")
    return tuple(values)


_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a text or a list of texts",
}
_TRUTHS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def _refusal(setting: Setting, value: Any, source: str, problem: str) -> ConfigError:
    shown = '"..."' if setting.rule.secret else as_toml(without_passwords(value))
    return ConfigError(f"{source}: {setting.key} = {shown} {problem}", f"allowed: {setting.rule.allowed}")


def as_toml(value: Any) -> str:
    """A value as a settings file has it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON text is a TOML text
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return str(value).lower() if value is True or value is False else str(value)


def without_passwords(value: Any) -> Any:
    """A value as it may be shown: in a URL, or in each of several, the password is `***`."""
    if isinstance(value, list | tuple):
        return [without_passwords(part) for part in value]
    return _PASSWORD.sub(r"\1:***@", value) if isinstance(value, str) else value


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file == DEFAULT_FILE:  # the one that is looked for without being asked for
            return {}
        raise ConfigError(f"{file}: there is no such file", "pass --config with an existing one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a TOML file", str(error)) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read", error.strerror or str(error)) from None


def _pop_table(tables: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    table = tables.pop(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {key} = {table!r} is not a table", f"write [{key}] and its keys below it")
    return table


def _pop_models(tables: dict[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The models by their names: the one that the flat keys describe, where there is no table of any."""
    models = _pop_table(tables, "models", file)
    for name in models:
        if not _NAME.fullmatch(name):
            allowed = "letters, digits, and . _ - : / between them"
            raise ConfigError(f"{file}: {header_of(name)}: no name of a model", f"allowed: {allowed}")
        for other in models:
            if name.startswith(f"{other}/"):
                both = f"{header_of(other)} and {header_of(name)}"
                raise ConfigError(
                    f"{file}: {both}: one name goes on from the other", "allowed: paths of their own"
                )
    return {name: _pop_table(dict(models), name, file) for name in models} or {DEFAULT_NAME: {}}


def header_of(name: str) -> str:
    """How a model's table begins."""
    return f"[models.{name}]" if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'[models."{name}"]'


def _refuse_unknown(
    table: Mapping[str, Any], settings: tuple[Setting, ...], source: str, is_top: bool = False
) -> None:
    known = [setting.key for setting in settings]
    for key in (key for key in table if key not in known):
        written = f"{source}: {key} = {table[key]!r}"
        if is_top and key in [setting.key for setting in SERVER_SETTINGS]:
            raise ConfigError(f"{written} is in the wrong place", "write it in [server]")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        tables = ", [server], [models.NAME]" if is_top else ""
        raise ConfigError(f"{written} is not a setting", f"{hint}allowed: {', '.join(known)}{tables}")


def _refuse_two_models(model: ModelSettings, model_source: str, url_source: str) -> None:
    if model.inference_url and model_source != "default":
        raise ConfigError(
            f"both model ({model_source}) and inference_url ({url_source}) are set",
            "allowed: one of the two",
        )


def _refuse_unknown_default(name: str, models: Mapping[str, object], source: str) -> None:
    if name and name not in models:
        known = ", ".join(models)
        raise ConfigError(f'{source}: default_model = "{name}" is no model here', f"allowed: {known}")
