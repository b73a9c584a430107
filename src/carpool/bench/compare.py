"""What batching gains: the same server with and without it, one after the other, under the same loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

from carpool.bench import plots
from carpool.bench.summary import Results
from carpool.errors import CarpoolError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE, BATCHED = "batch size 1", "batched"
_COLOURS = {BASELINE: plots.GREY, BATCHED: plots.ORANGE}


@dataclass(frozen=True)
class Load:
    """One cell of the table: so many users, or so many texts a second of so many tokens."""

    amount: int
    tokens: str


@dataclass(frozen=True)
class Cell:
    """One side under one load. `refused` says why there are no figures."""

    side: str
    load: Load
    throughput: float = nan
    p50: float = nan
    p95: float = nan
    p99: float = nan
    failed: int = 0
    average_batch: float | None = None
    refused: str = ""


Serve = Callable[[str], AbstractContextManager[str]]
Measure = Callable[[str, Load, str], Results]


def measure_sides(loads: Sequence[Load], serve: Serve, measure: Measure) -> list[Cell]:
    """Start one side, put every load on it, stop it; then the other."""
    cells = []
    for side in (BASELINE, BATCHED):
        with serve(side) as url:
            cells += [_cell(side, load, url, measure) for load in loads]
    return cells


def _cell(side: str, load: Load, url: str, measure: Measure) -> Cell:
    """A load that cannot be measured leaves a gap and does not cost the others."""
    try:
        results = measure(url, load, side)
    except CarpoolError as error:
        return Cell(side, load, refused=str(error))
    latency = results.latency
    return Cell(
        side,
        load,
        results.throughput,
        latency.p50,
        latency.p95,
        latency.p99,
        results.failed,
        results.average_batch,
    )


@dataclass(frozen=True)
class Pair:
    """Both sides under one load."""

    baseline: Cell
    batched: Cell

    @property
    def ratios(self) -> Mapping[str, float]:
        """How many times the throughput, and how many times shorter the latencies."""
        one, many = self.baseline, self.batched
        return {
            "throughput": _ratio(many.throughput, one.throughput),
            "p50": _ratio(one.p50, many.p50),
            "p95": _ratio(one.p95, many.p95),
            "p99": _ratio(one.p99, many.p99),
        }


def pairs(cells: Sequence[Cell]) -> list[Pair]:
    """The two sides of every load, in order."""
    batched = {cell.load: cell for cell in cells if cell.side == BATCHED}
    return [Pair(cell, batched[cell.load]) for cell in cells if cell.side == BASELINE]


def _ratio(larger: float, smaller: float) -> float:
    return larger / smaller if smaller else nan


def markdown(compared: Sequence[Pair], amount: str) -> str:
    """The table. A gap is a run that was refused; why stands below."""
    lines = [
        f"| {amount} | tokens | req/s: {BASELINE} | {BATCHED} | ratio | p50 ms: {BASELINE} | {BATCHED} | ratio "
        f"| p95 ms: {BASELINE} | {BATCHED} | ratio | batch | failed |",
        "|" + " --- |" * 13,
    ]
    lines += [_row(pair) for pair in compared]
    refused = [cell for pair in compared for cell in (pair.baseline, pair.batched) if cell.refused]
    lines += ["", *(f"- {cell.side}, {cell.load.amount} {amount}: {cell.refused}" for cell in refused)]
    return "\n".join(lines).rstrip() + "\n"


def _row(pair: Pair) -> str:
    one, many, ratios = pair.baseline, pair.batched, pair.ratios
    figures = [
        text
        for name in ("throughput", "p50", "p95")
        for text in (
            _number(getattr(one, name)),
            _number(getattr(many, name)),
            f"**{_number(ratios[name])} x**",
        )
    ]
    batch = _number(many.average_batch or nan)
    failed = f"{one.failed} / {many.failed}"
    return f"| {' | '.join([str(one.load.amount), one.load.tokens, *figures, batch, failed])} |"


def _number(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(compared: Sequence[Pair]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {"load": vars(pair.baseline.load), "ratios": pair.ratios}
        | {name: {**vars(cell), "load": None} for name, cell in vars(pair).items()}
        for pair in compared
    ]


def draw_production(compared: Sequence[Pair]) -> Iterator[tuple[str, Figure]]:
    """Throughput and latency against users, by the names of their files."""
    for name, title in (
        ("throughput", "Throughput, requests a second"),
        ("p50", "Median latency, ms"),
        ("p95", "95th percentile of latency, ms"),
    ):
        with plots.canvas(1, title, width=7.5, height=4.0) as (figure, (axes,)):
            _bars(axes, compared, name)
        yield f"production_{name if name == 'throughput' else f'latency_{name}'}", figure


def _bars(axes: Axes, compared: Sequence[Pair], name: str) -> None:
    """Both sides beside each other, each with its figure, and the ratio over them."""
    for side, shift in ((BASELINE, -0.2), (BATCHED, 0.2)):
        values = [getattr(pair.baseline if side == BASELINE else pair.batched, name) for pair in compared]
        places = [place + shift for place in range(len(compared))]
        bars = axes.bar(places, values, 0.38, color=_COLOURS[side], label=side)
        labels = [_number(value) for value in values]
        if side == BATCHED:
            labels = [
                f"{text}\n{pair.ratios[name]:.1f} x {'' if name == 'throughput' else 'shorter'}"
                for text, pair in zip(labels, compared, strict=True)
            ]
        axes.bar_label(bars, labels, padding=2, fontsize=8, color=_COLOURS[side])
    axes.set_xticks(range(len(compared)), [str(pair.baseline.load.amount) for pair in compared])
    axes.set_xlabel("users")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.18)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def draw_qps(compared: Sequence[Pair]) -> Figure:
    """Latency against the offered rate, a panel for each length of text."""
    lengths = list(dict.fromkeys(pair.baseline.load.tokens for pair in compared))
    title = "Latency in ms against requests a second: median, and 99th percentile dashed"
    with plots.canvas(len(lengths), title, width=max(7.5, 3.6 * len(lengths) + 0.6), height=3.8) as (
        figure,
        panels,
    ):
        for axes, tokens in zip(panels, lengths, strict=True):
            chosen = [pair for pair in compared if pair.baseline.load.tokens == tokens]
            _lines(axes, chosen)
            axes.set_title(f"{tokens} tokens")
        for axes in panels[1:]:
            axes.sharey(panels[0])
        panels[0].legend(loc="upper left")
    return figure


def _lines(axes: Axes, compared: Sequence[Pair]) -> None:
    rates = [pair.baseline.load.amount for pair in compared]
    for side in (BASELINE, BATCHED):
        cells = [pair.baseline if side == BASELINE else pair.batched for pair in compared]
        colour = _COLOURS[side]
        axes.plot(rates, [cell.p50 for cell in cells], "o-", color=colour, markersize=4, label=side)
        axes.plot(rates, [cell.p99 for cell in cells], "o--", color=colour, markersize=3, linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlim(left=0)
    axes.set_xlabel("requests a second")
