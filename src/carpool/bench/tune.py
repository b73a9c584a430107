"""Tuning for real: batch times measured on a server, trials that start one, and what is written down."""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from carpool.bench import plots
from carpool.bench.curve import Line
from carpool.bench.dialects import Target
from carpool.bench.goal import Goal
from carpool.bench.run import TRIES, Plan, run
from carpool.bench.search import Search, Setting, Trial
from carpool.bench.serving import serve
from carpool.errors import CarpoolError, Unreachable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALIBRATED = (1, 2, 4, 8, 16, 32, 64)
_CALLS = 5  # of each size, after one that does not count
_LONGEST_CALL, _LONGEST_CALIBRATION = 2.0, 15.0  # seconds: larger batches are left out then
_CALL_PATIENCE = 60.0

Tell = Callable[[str], None]


def measure_batches(target: Target, texts: Sequence[str]) -> dict[int, float]:
    """The median milliseconds of a batch, by its size, until they are refused or take too long.

    No text is sent twice, since a server may remember it.
    """
    fresh = iter(texts)
    times: dict[int, float] = {}
    started = time.monotonic()
    for size in CALIBRATED:
        calls = [_call(target, [next(fresh) for _ in range(size)]) for _ in range(_CALLS + 1)]
        good = [seconds for seconds in calls[1:] if seconds is not None]
        if len(good) < _CALLS:
            break
        times[size] = statistics.median(good) * 1000
        if max(good) > _LONGEST_CALL or time.monotonic() - started > _LONGEST_CALIBRATION:
            break
    if not times:
        raise CarpoolError(f"{target.url} does not answer a batch of one", f"it was asked in {target.dialect}")
    return times


def _call(target: Target, texts: Sequence[str]) -> float | None:
    """The seconds that a request took; none if it was refused."""
    kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = kind(*target.address, timeout=_CALL_PATIENCE)
    try:
        connection.connect()
        request = target.encode(*texts)
        started = time.perf_counter()
        connection.send(request)
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        response.read()
        return time.perf_counter() - started if 200 <= response.status < 300 else None
    except OSError as error:
        raise Unreachable(f"{target.url} cannot be reached", str(error)) from None
    finally:
        connection.close()


class Live:
    """Trials on `carpool serve`, which runs until another setting is tried."""

    def __init__(self, arguments: Sequence[str], texts: Sequence[str], plan: Plan, tell: Tell) -> None:
        self._arguments = arguments
        self._texts = texts
        self._plan = plan
        self._tell = tell
        self._stack = ExitStack()
        self._setting: Setting | None = None
        self._url = ""

    def __call__(self, setting: Setting, users: int) -> Trial:
        """One run. One that cannot be believed, not even when it is done again, counts as a failure."""
        if setting != self._setting:
            self.close()
            self._url = self._stack.enter_context(serve([*self._arguments, *flags(setting)]))
            self._setting = setting
        trial = self._try(setting, users) or _nothing(setting, users)
        self._tell(describe(trial))
        return trial

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()
        self._setting = None

    def _try(self, setting: Setting, users: int) -> Trial | None:
        target = Target(self._url)
        requests = [target.encode(text) for text in self._texts]
        try:
            results = run(target, requests, replace(self._plan, users=users), tries=TRIES)
        except CarpoolError as error:
            self._tell(f"{users} users: {error}")
            return None
        latency = results.latency
        share = results.failed / max(1, results.requests)
        return Trial(setting, users, results.throughput, latency.p50, latency.p95, latency.p99, share)


def _nothing(setting: Setting, users: int) -> Trial:
    return Trial(setting, users, 0.0, inf, inf, inf, 1.0)


def flags(setting: Setting) -> list[str]:
    """The setting on a command line."""
    written = [
        "--max-batch-size",
        str(setting.max_batch_size),
        "--max-concurrent-workers",
        str(setting.in_flight),
    ]
    return written + (["--latency-objective-ms", str(setting.objective_ms)] if setting.objective_ms else [])


def describe(trial: Trial) -> str:
    """A run, in words."""
    setting = trial.setting
    told = f", told {setting.objective_ms} ms" if setting.objective_ms else ""
    return (
        f"batches of {setting.max_batch_size}, {setting.in_flight} in flight{told}, {trial.users} users: "
        f"{trial.throughput:,.0f} req/s, p99 {trial.p99:,.3g} ms"
    )


def as_config(search: Search, goal: Goal, line: Line, subject: str, about: str) -> str:
    """The recommendation as a settings file, with the reasons as comments."""
    best = search.best
    parts = [
        f"# {goal.text}\n# {about}\n# A batch of b takes about {line.a:.3g} + {line.c:.3g} b ms. "
        f"{len(search.trials)} runs.",
        subject,
        f"# {_reason(search, goal, 'max_batch_size')}\nmax_batch_size = {best.setting.max_batch_size}",
        f"# {_reason(search, goal, 'in_flight')}\nmax_concurrent_workers = {best.setting.in_flight}",
    ]
    if best.setting.objective_ms:
        parts.append(
            f"# The goal. Told so, it did no worse, and at lower load it keeps batches small.\n"
            f"latency_objective_ms = {best.setting.objective_ms}"
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _reason(search: Search, goal: Goal, axis: str) -> str:
    """What the best did, and what its neighbours on an axis did at their best, as far as they were tried."""
    best = search.best
    found = f"{getattr(best.setting, axis)}: {_figures(best, goal)} with {best.users} users."
    others = {
        getattr(trial.setting, axis): search.best_of(trial.setting)
        for trial in search.trials
        if replace(trial.setting, **{axis: getattr(best.setting, axis)})
        == replace(best.setting, objective_ms=0)
        and getattr(trial.setting, axis) != getattr(best.setting, axis)
    }
    return "\n# ".join(
        [found, *(f"{level}: {_figures(trial, goal)}." for level, trial in sorted(others.items()) if trial)]
    )


def _figures(trial: Trial, goal: Goal) -> str:
    figures = f"{trial.throughput:,.0f} req/s, {goal.latency} {getattr(trial, goal.latency):,.3g} ms"
    return figures if goal.score(trial)[0] else f"{figures}, which misses the goal"


def draw(search: Search, goal: Goal) -> Figure:
    """The trade-off: throughput against latency, a line for each setting, the recommended one marked."""
    with plots.canvas(1, f"{goal.text}: {len(search.trials)} runs", width=8.0, height=4.6) as (figure, (axes,)):
        best = search.best
        for setting in dict.fromkeys(trial.setting for trial in search.trials):
            runs = [trial for trial in search.trials if trial.setting == setting and trial.throughput]
            runs.sort(key=lambda trial: trial.users)
            chosen = replace(setting, objective_ms=best.setting.objective_ms) == best.setting
            colour = plots.ORANGE if chosen else plots.GREY
            x, y = [run.throughput for run in runs], [getattr(run, goal.latency) for run in runs]
            axes.plot(
                x, y, "o-", color=colour, linewidth=1.8 if chosen else 0.9, markersize=4, zorder=2 + chosen
            )
            if runs and not setting.objective_ms:
                label = f" {setting.max_batch_size}" + (
                    f" x {setting.in_flight}" if setting.in_flight > 1 else ""
                )
                axes.annotate(label, (x[-1], y[-1]), fontsize=8, color=colour, va="bottom")
        axes.plot(
            [best.throughput], [getattr(best, goal.latency)], "*", color=plots.RED, markersize=16, zorder=4
        )
        if goal.most_ms < inf:
            axes.axhline(goal.most_ms, color=plots.BLUE, linewidth=1, linestyle="--")
        if goal.least:
            axes.axvline(goal.least, color=plots.BLUE, linewidth=1, linestyle="--")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests a second; each line is a max_batch_size, its points are numbers of users")
        axes.set_ylabel(f"{goal.latency}, ms")
    return figure
