"""`carpool bench` and what belongs to it, as a person types it: flags to plans, and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from carpool.bench import plots, report, units
from carpool.bench.arrivals import KINDS
from carpool.bench.compare import (
    BASELINE,
    Load,
    Pair,
    as_json,
    draw_production,
    draw_qps,
    markdown,
    measure_sides,
    pairs,
)
from carpool.bench.curve import Line, fit
from carpool.bench.dialects import DIALECTS, Target
from carpool.bench.goal import ALLOWED, Goal
from carpool.bench.inputs import generate_texts, images, read_texts
from carpool.bench.run import TRIES, CouldNotKeepUp, Plan, run
from carpool.bench.search import BATCH_SIZES, IN_FLIGHT, USERS, Search, Space
from carpool.bench.serving import serve, subject
from carpool.bench.summary import Results
from carpool.bench.tune import CALIBRATED, Live, as_config, draw, measure_batches
from carpool.errors import CarpoolError, ConfigError, Raised

Command = TypeVar("Command", bound=Callable[..., Any])

_WARM_UP_SHARE, _LONGEST_WARM_UP = 0.1, 5.0  # of the duration; seconds
_PATIENCE_OF_SWEEPS = 5.0  # seconds: under too high a rate the last ones wait for what nobody wants to know
FAILED, WRONG, LATE = 1, 2, 3  # exit statuses


class _Bench(click.Group):
    """A group whose first word may be a URL instead of a command: then it is a run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`carpool bench URL` is `carpool bench run URL`."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What went wrong is one line; the exit status says whose fault it was: 3 is the load generator's own.

    Behind the line comes where a model raised, if that was it.
    """
    try:
        yield
    except CarpoolError as error:
        click.echo(f"carpool: {error}", err=True)
        if isinstance(error.__cause__, Raised) and error.__cause__.traceback:
            click.echo(error.__cause__.traceback, err=True)
        sys.exit(
            LATE if isinstance(error, CouldNotKeepUp) else WRONG if isinstance(error, ConfigError) else FAILED
        )


def _tell_of_pictures() -> None:
    """Say that there will be none before a long run, so that it can be ended for them, and not after it."""
    if (missing := plots.missing()) is not None:
        click.echo(f"carpool: there will be no pictures: {missing}", err=True)


@click.group("bench", cls=_Bench)
def bench() -> None:
    """Measure an inference server: `carpool bench URL`, under a load of your choice.

    With --rate it is an open loop: requests are sent when they are due, and latency counts from there.
    With --users it is a closed one: so many users, each of whom asks again at once.
    """


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options at once."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_tokens = click.option(
    "--tokens", default="10-50", show_default=True, help="Length of made-up texts: 128, or 10-50."
)
_late_limit = click.option(
    "--late-limit", default="10ms", show_default=True, help="How late (p99) the generator itself may be."
)
_what = _options(
    _tokens,
    click.option("--texts", type=Path, help="Texts from this file, one a line."),
)
_how = _options(
    click.option("--dialect", type=click.Choice(DIALECTS), help="Default: native, or predict for pictures."),
    click.option("--model", default="default", show_default=True, help="For openai and kserve."),
    click.option("--header", multiple=True, help="Another header, as in 'Authorization: Bearer KEY'."),
)


@bench.command("run")
@click.argument("url")
@click.option("--rate", type=float, default=0.0, help="Open loop: requests a second.")
@click.option("--users", type=click.IntRange(1), help="Closed loop: users. 64 if no rate is given.")
@click.option("--duration", default="30s", show_default=True, help="500ms, 60s, 2m, 1h.")
@click.option("--warm-up", help="Time before that which does not count. A tenth of it, at most 5s.")
@click.option("--arrivals", type=click.Choice(KINDS), default="poisson", show_default=True)
@click.option("--trace", type=Path, help="Arrivals as in this CSV file, stretched to --rate if there is one.")
@click.option("--seed", default="1", show_default=True, help="Another seed, other arrivals.")
@click.option(
    "--connections", type=click.IntRange(1), default=4096, show_default=True, help="At most (open loop)."
)
@click.option("--patience", default="30s", show_default=True, help="How long the last answers are waited for.")
@_late_limit
@_what
@click.option(
    "--images", help="Pictures instead of texts: a file, a directory, or a size: 224x224, 500x375.jpg."
)
@_how
@click.option("--out", type=Path, help="Write results.json, report.html and pictures into this directory.")
def run_command(url: str, out: Path | None, **options: Any) -> None:
    """Put a load on URL and report. URL is a server, whose route the dialect knows, or a route."""
    with one_line_errors():
        if out is not None:
            _tell_of_pictures()
        dialect = options["dialect"] or ("predict" if options["images"] else "native")
        target = Target(url, dialect, options["model"], options["header"])
        requests, what = encode_inputs(target, options)
        plan = read_plan(options)
        results = run(target, requests, plan)
        click.echo(report.lines(results))
        if out is not None:
            about = {
                "url": url,
                "load": plan.title,
                "sends": what,
                "dialect": target.dialect,
                "seed": plan.seed,
            }
            report.write(out, results, about)
            click.echo(f"report     {out / 'report.html'}")


def encode_inputs(target: Target, options: dict[str, Any]) -> tuple[list[bytes], str]:
    """The requests, and what is in them, in words."""
    if what := options.get("images"):
        pictures = images(what)
        return [target.encode_image(picture) for picture in pictures], f"{len(pictures)} pictures, {what}"
    if file := options["texts"]:
        texts, what = read_texts(file), f"texts from {file}"
    else:
        texts, what = (
            generate_texts(*units.span(options["tokens"])),
            f"made-up texts of {options['tokens']} tokens",
        )
    return [target.encode(text) for text in texts], f"{len(texts)} different {what}"


def read_plan(options: dict[str, Any]) -> Plan:
    """The load that the flags describe."""
    duration = units.seconds(options["duration"])
    trace, rate, users = options["trace"], options["rate"], options["users"]
    if users and (rate or trace):
        raise ConfigError("a load has a rate or users", "pass one of --rate, --trace, --users")
    warm_up = options["warm_up"]
    return Plan(
        duration=duration,
        warm_up=units.seconds(warm_up, may_be_none=True)
        if warm_up
        else min(_WARM_UP_SHARE * duration, _LONGEST_WARM_UP),
        users=0 if rate or trace else users or 64,
        rate=rate,
        arrivals="trace" if trace else options["arrivals"],
        trace=trace,
        seed=options["seed"],
        patience=units.seconds(options["patience"]),
        connections=options["connections"],
        late_limit=units.seconds(options["late_limit"]),
    )


_server = _options(
    click.argument("model_or_url", default=""),
    click.argument("arguments", nargs=-1, type=click.UNPROCESSED),
)


@bench.command("compare")
@_server
@click.option("--users", default="200..1000", show_default=True, help="Closed loops of so many users.")
@click.option("--qps", help="Open loops at these rates instead, for each length of --tokens.")
@click.option("--tokens", default=None, help="Length of made-up texts. 10-50; with --qps 10-50,128,512.")
@click.option("--duration", default="60s", show_default=True, help="For each side, over all loads.")
@_late_limit
@click.option("--out", type=Path, required=True, help="Write the table and the pictures into this directory.")
def compare_command(
    model_or_url: str,
    arguments: tuple[str, ...],
    users: str,
    qps: str | None,
    tokens: str | None,
    duration: str,
    late_limit: str,
    out: Path,
) -> None:
    """What batching gains: `carpool serve` with batches of one, then as it is, under the same loads.

    MODEL_OR_URL is a model to serve or an inference server to stand in front of; without it the embedded model.
    What follows `--` are more flags for both servers.
    """
    with one_line_errors():
        _tell_of_pictures()
        lengths = (tokens or ("10-50,128,512" if qps else "10-50")).split(",")
        loads = [Load(amount, length) for length in lengths for amount in units.numbers(qps or users)]
        base = Plan(units.seconds(duration) / len(loads), 0.0, late_limit=units.seconds(late_limit))
        requests = {length: generate_texts(*units.span(length)) for length in lengths}

        def start(side: str) -> AbstractContextManager[str]:
            limit = ["--max-batch-size", "1"] if side == BASELINE else []
            return serve([*subject(model_or_url), *arguments, *limit])

        def measure(url: str, load: Load, side: str) -> Results:
            target = Target(url)
            encoded = [target.encode(text) for text in requests[load.tokens]]
            return run(
                target, encoded, _part(base, load.amount, is_open=bool(qps)), f"{side}, {load.amount}", TRIES
            )

        compared = pairs(measure_sides(loads, start, measure))
        click.echo(_write_comparison(compared, out, "req/s offered" if qps else "users"), nl=False)


def _part(base: Plan, amount: int, is_open: bool) -> Plan:
    """The plan of one load, a tenth of whose time is the warm-up."""
    warm_up = _WARM_UP_SHARE * base.duration
    amounts = {"rate": float(amount), "patience": _PATIENCE_OF_SWEEPS} if is_open else {"users": amount}
    return replace(base, duration=base.duration - warm_up, warm_up=warm_up, **amounts)


def _write_comparison(compared: Sequence[Pair], out: Path, amount: str) -> str:
    """All files, and the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(compared, amount)
    about = report.machine()
    name = "comparison" if amount == "users" else "bench"
    heading = "".join(f"- {key}: {value}\n" for key, value in about.items())
    (out / f"{name}.md").write_text(f"{table}\n{heading}", encoding="utf-8")
    report.write_json(out / f"{name}.json", {"machine": about, "loads": as_json(compared)})
    if plots.missing() is not None:
        return table
    if amount == "users":
        for picture, figure in draw_production(compared):
            plots.png(figure, out / f"{picture}.png")
    else:
        plots.png(draw_qps(compared), out / "bench.png")
    return table


@click.command("tune")
@_server
@click.option(
    "--goal", "text", default="max throughput with p99 < 100 ms", show_default=True, help=f"As in: {ALLOWED}."
)
@click.option("--duration", default="5s", show_default=True, help="Of each run.")
@_tokens
@click.option(
    "--batch-sizes", help="Try only these, as in 8,16,32. Powers of 2 up to what is answered in time."
)
@click.option("--in-flight", help="Try only these. 1,2,4,8 at a URL; a local model runs one batch at a time.")
@click.option("--most-users", type=click.IntRange(1), default=max(USERS), show_default=True)
@click.option(
    "--dialect",
    type=click.Choice(["tei", "openai", "kserve"]),
    default="tei",
    show_default=True,
    help="What the inference server at the URL speaks.",
)
@_late_limit
@click.option("--out", type=Path, required=True, help="Write tuned.toml, tuning.png and tuning.json here.")
def tune(
    model_or_url: str,
    arguments: tuple[str, ...],
    text: str,
    duration: str,
    tokens: str,
    batch_sizes: str | None,
    in_flight: str | None,
    most_users: int,
    dialect: str,
    late_limit: str,
    out: Path,
) -> None:
    """Find the settings for a goal: for a model, or in front of an inference server at a URL.

    It measures how long batches take, starts `carpool serve` with one setting after the other, and stops
    looking where more does not help. What follows `--` are more flags for every server.
    """
    with one_line_errors():
        _tell_of_pictures()
        goal = Goal.parse(text)
        texts = generate_texts(*units.span(tokens))
        flags = [*subject(model_or_url), *arguments]
        is_url = "://" in model_or_url
        times = _measure_batches(model_or_url if is_url else "", flags, dialect, texts)
        line = fit(times)
        click.echo(f"a batch of b takes about {line.a:.3g} + {line.c:.3g} b ms", err=True)
        seconds = units.seconds(duration)
        warm_up = _WARM_UP_SHARE * seconds
        plan = Plan(seconds - warm_up, warm_up, late_limit=units.seconds(late_limit))
        space = _space(times, is_url, batch_sizes, in_flight, most_users)
        live = Live(flags, texts, plan, lambda words: click.echo(words, err=True))
        search = Search(live, goal, space, line)
        try:
            best = search.find()
        finally:
            live.close()
        written = _write_tuning(
            search, goal, line, times, model_or_url, f"Texts of {tokens} tokens, {duration} a run", out
        )
        click.echo(written)
        if not goal.score(best)[0]:
            raise CarpoolError("no setting that was tried reaches the goal", "the nearest is above")


def _measure_batches(url: str, flags: Sequence[str], dialect: str, texts: Sequence[str]) -> dict[int, float]:
    """At the inference server itself, or at a server of ours that lets batches through whole."""
    if url:
        return measure_batches(Target(url, dialect), texts)
    with serve([*flags, "--max-batch-size", str(max(CALIBRATED))]) as ours:
        return measure_batches(Target(ours, "tei"), texts)


def _space(
    times: Mapping[int, float], is_url: bool, batch_sizes: str | None, in_flight: str | None, most_users: int
) -> Space:
    """What is worth trying: no larger batches than were answered in time; a local model runs one at a time."""
    largest = max(times)
    sizes = [size for size in BATCH_SIZES if size <= largest or largest == max(CALIBRATED)]
    return Space(
        sorted(units.numbers(batch_sizes)) if batch_sizes else sizes,
        sorted(units.numbers(in_flight)) if in_flight else IN_FLIGHT if is_url else IN_FLIGHT[:1],
        [count for count in USERS if count <= most_users],
    )


def _write_tuning(
    search: Search,
    goal: Goal,
    line: Line,
    times: Mapping[int, float],
    model_or_url: str,
    about: str,
    out: Path,
) -> str:
    """All files, and the settings."""
    out.mkdir(parents=True, exist_ok=True)
    key = "inference_url" if "://" in model_or_url else "model"
    written = as_config(search, goal, line, f'{key} = "{model_or_url}"' if model_or_url else "", about)
    (out / "tuned.toml").write_text(written, encoding="utf-8")
    if plots.missing() is None:
        plots.png(draw(search, goal), out / "tuning.png")
    content = {
        "machine": report.machine(),
        "goal": goal.text,
        "batch_ms": times,
        "line_ms": vars(line),
        "best": asdict(search.best),
        "trials": [asdict(trial) for trial in search.trials],
    }
    report.write_json(out / "tuning.json", content)
    return written
