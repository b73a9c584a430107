"""The command line: `carpool serve`, `pull`, `check`, `config`; `bench` and `tune` are in carpool.bench.

It reads flags and prints; what happens is decided elsewhere. Every setting has a flag of its own name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from carpool.assemble import assemble_both
from carpool.bench.commands import bench, one_line_errors, tune
from carpool.check import TOLERANCE, check
from carpool.config import (
    DEFAULT_FILE,
    ENGINES,
    MODEL_SETTINGS,
    SERVER_SETTINGS,
    Config,
    ModelSettings,
    Setting,
    as_toml,
    header_of,
    load_config,
    unknown_variables,
    without_passwords,
)
from carpool.errors import CarpoolError
from carpool.models import pull as models
from carpool.models.catalog import CATALOG
from carpool.models.spec import check_installed, resolve
from carpool.observe.log import configure_logging
from carpool.reload import Reload
from carpool.server.models import ServedModel
from carpool.server.run import listen, serve
from carpool.server.service import Service

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("carpool"), message="carpool %(version)s")
def main() -> None:
    """Auto-batching for machine-learning inference: requests that arrive alone leave together."""


main.add_command(bench)
main.add_command(tune)


def _settings_options(command: Command) -> Command:
    """`--config`, and a flag for every setting; values come as text and are checked with all the others."""
    for setting in reversed((*SERVER_SETTINGS, *MODEL_SETTINGS)):
        many = setting.kind is tuple
        option = click.option(setting.flag, setting.key, metavar="VALUE", multiple=many, help=_help(setting))
        command = option(command)
    file = click.option("--config", "file", type=Path, default=DEFAULT_FILE, help="The settings file (TOML).")
    return file(command)


def _help(setting: Setting) -> str:
    allowed = f" Allowed: {setting.rule.allowed}." if setting.rule.between or setting.rule.choices else ""
    names = ", ".join(variable.name for variable in setting.variables)
    default = "none" if setting.default in ("", ()) else setting.default
    return f"{setting.rule.help}{allowed} Default: {default}. Environment: {names}."


@main.command("serve")
@_settings_options
def serve_command(file: Path, **flags: str | tuple[str, ...] | None) -> None:
    """Serve a model, or an upstream inference server, with batching.

    Without any argument: all-MiniLM-L6-v2 on http://127.0.0.1:3000. SIGHUP, or a change of the settings
    file, adds and removes upstreams.
    """
    with one_line_errors():
        config = load_config(file, _given(flags))
        configure_logging(config.server.log_level)
        for words in unknown_variables():
            logger.warning(words)
        with listen(config.server.host, config.server.port) as listener:
            for settings in config.models.values():
                _pull_if_needed(settings, is_only=len(config.models) == 1)
            service, upstreams = assemble_both(config)
            host, port = listener.getsockname()[:2]
            reload = Reload(config, file, partial(load_config, file, _given(flags)), service, upstreams)
            try:
                serve(service, listener, lambda: click.echo(_banner(host, port, service)), reload)
            except KeyboardInterrupt:  # before there was anything to drain
                sys.exit(130)


@main.command("pull")
@click.argument("name", default="minilm")
def pull_command(name: str) -> None:
    """Fetch a catalogue model into the cache, verified, so that it works offline from then on."""
    with one_line_errors():
        model = models.find(name)
        if not models.is_cached(model):
            _pull(ModelSettings(model=name))
        click.echo(f"{model.name}: {model.title} ({model.licence})\n{models.location(model)}")


@main.command("check")
@click.argument("model")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="What runs the model.")
@click.option("--input", "files", type=Path, multiple=True, help="Inputs: JSON lines, .npy, JPEG or PNG.")
@click.option("--tolerance", type=float, default=TOLERANCE, show_default=True, help="The most that may differ.")
def check_command(model: str, engine: str, files: tuple[Path, ...], tolerance: float) -> None:
    """Whether a model answers in a batch what it answers alone, and how long its batches take.

    It runs at several batch sizes and paddings; exit status 1 where an answer differs or fails.
    """
    with one_line_errors():
        report = check(resolve(model, engine), files, tolerance=tolerance)
    click.echo("\n".join(report.lines()))
    for fault in report.faults:
        click.echo(f"carpool: {fault}", err=True)
    sys.exit(1 if report.faults else 0)


@main.command("config")
@_settings_options
def config_command(file: Path, **flags: str | tuple[str, ...] | None) -> None:
    """Print the effective settings and where each comes from, as a settings file."""
    with one_line_errors():
        click.echo(_as_toml(load_config(file, _given(flags))))
    for words in unknown_variables():
        click.echo(f"carpool: {words}", err=True)


def _given(flags: dict[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """The flags that were given; one that was given several times is a list."""
    given = {key: text for key, text in flags.items() if text is not None and text != ()}
    return {key: text if isinstance(text, str) else ",".join(text) for key, text in given.items()}


def _pull_if_needed(settings: ModelSettings, is_only: bool) -> None:
    """Fetch a local model that is not here. That it cannot be had is raised where it is the only one."""
    proxied = bool(settings.inference_url)
    if not proxied and settings.model in CATALOG and not models.is_cached(CATALOG[settings.model]):
        with nullcontext() if is_only else suppress(CarpoolError):  # what is missing is said when it is started
            check_installed(settings.engine)
            _pull(settings)


def _pull(settings: ModelSettings) -> None:
    """Fetch a catalogue model behind a progress bar."""
    total = models.total_bytes(CATALOG[settings.model])
    with click.progressbar(length=total, label=f"pulling {settings.model}", file=sys.stderr) as bar:
        models.pull(CATALOG[settings.model], lambda done: bar.update(done - bar.pos))


def _banner(host: str, port: int, service: Service) -> str:
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    reachable = where.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    lines = [f"carpool {version('carpool')} is serving"]
    lines += [f"  where   {where} (docs at /docs, numbers at /metrics)"]
    is_only = service.models.only is not None
    for model in service.models:
        title = model.title if is_only else f"{model.name}: {model.title}{_not_yet(service, model.name)}"
        lines += [f"  model   {title}", f"  policy  {model.batcher.policy}"]
    route, body = _TRIES[_operation(service.models.default)]
    lines += [f"  try     curl {reachable}{route} -H 'content-type: application/json' -d '{body}'"]
    return "\n".join(lines)


# A request of each operation, by its route.
_TRIES = {
    "infer": ("/predict", '{"data": ...}'),
    "embed": ("/embed", '{"input": "What is vector search?"}'),
    "rerank": (
        "/rerank",
        '{"query": "What is a batch?", "texts": ["Inputs that travel together.", "A fruit."]}',
    ),
}


def _operation(model: ServedModel) -> str:
    """One that a model has: the first that it tells of, which a team's own does once it is loaded."""
    usual = "infer" if model.takes == "data" else "embed"
    return str(next(iter(model.told().get("can", ())), usual))


def _not_yet(service: Service, name: str) -> str:
    """Why a model does not serve with the others."""
    reason = service.models.unready(name)
    return "" if reason is None else f" ({reason})"


def _as_toml(config: Config) -> str:
    """The settings as the file that would give them, each with its source. Of a proxy `model` means nothing."""
    lines = ["[server]"]
    lines += [_toml_line(config, "server", setting, config.server) for setting in SERVER_SETTINGS]
    for name, settings in config.models.items():
        lines += ["", header_of(name)]
        used = [one for one in MODEL_SETTINGS if one.key != "model" or not settings.inference_url]
        lines += [_toml_line(config, name, setting, settings) for setting in used]
    return "\n".join(lines)


def _toml_line(config: Config, table: str, setting: Setting, settings: object) -> str:
    value, source = getattr(settings, setting.key), config.sources[table, setting.key]
    if setting.rule.secret and value:
        return f"# {setting.key} is set, and not shown: {source}"
    return f"{setting.key + ' = ' + as_toml(without_passwords(value)):<44} # {source}"
