"""Pictures of runs. matplotlib is imported where one is drawn, so that everything else works without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from carpool.bench.summary import Results, Window
from carpool.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw: TypeAlias = "Callable[[Axes, Sequence[float], Sequence[Window]], None]"
Ways: TypeAlias = "tuple[tuple[str, Sequence[Window]], ...]"

INK, FAINT, GRID = "#222222", "#777777", "#e8e8e8"
ORANGE, BLUE, GREY, RED = "#d1450b", "#1f5fa8", "#8a8a8a", "#b3261e"
_DPI = 150
_HEADROOM = 1.15  # above the highest peak: the legend is there
_LOOK: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def missing() -> MissingExtra | None:
    """What keeps pictures from being drawn, with the line that installs it."""
    return None if find_spec("matplotlib") else MissingExtra("matplotlib", "bench")


@contextmanager
def canvas(columns: int, title: str, width: float = 10.0, height: float = 3.6) -> Iterator[tuple[Figure, Any]]:
    """A figure with panels side by side, in the house style. Raises `MissingExtra`."""
    if (error := missing()) is not None:
        raise error
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, columns, squeeze=False)[0]
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
        yield figure, panels


def png(figure: Figure, path: Path) -> None:
    """Write a picture."""
    figure.savefig(path, dpi=_DPI)


def svg(figure: Figure) -> bytes:
    """A picture as a document of its own, on whatever ground it stands."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue()


def draw_run(results: Results) -> Iterator[tuple[str, Figure]]:
    """All pictures of a run, by the names of their files."""
    ways = _ways(results)
    for name, title, draw in _CURVES:
        yield name, _curves(title, draw, ways, width=10.0)
    yield "latency_histogram", _histogram(results, width=10.0)
    if any(results.batch_sizes.values()):
        yield "batch_sizes", _batch_sizes(results.batch_sizes, results.average_batch, width=10.0)


def draw_panels(results: Results) -> Iterator[Figure]:
    """The same, each panel by itself, so that they can stand side by side or below each other."""
    for _, title, draw in _CURVES:
        for way in _ways(results):
            yield _curves(title, draw, (way,), width=5.0)
    yield _histogram(results, width=5.0)
    if any(results.batch_sizes.values()):
        yield _batch_sizes(results.batch_sizes, results.average_batch, width=5.0)


def _ways(results: Results) -> Ways:
    """The same curves are drawn over time and over the requests so far."""
    return ("seconds", results.over_time), ("requests answered so far", results.over_requests)


def _curves(title: str, draw: Draw, ways: Ways, width: float) -> Figure:
    with canvas(len(ways), title, width) as (figure, panels):
        from matplotlib.ticker import EngFormatter

        for axes, (label, windows) in zip(panels, ways, strict=True):
            answered = [window for window in windows if window.rate or window.errors]
            draw(axes, [window.end for window in answered], answered)
            axes.set_xlabel(label)
            axes.set_ylim(0, _HEADROOM * axes.get_ylim()[1])
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _draw_throughput(axes: Axes, ends: Sequence[float], windows: Sequence[Window]) -> None:
    _area(axes, ends, [window.rate for window in windows], ORANGE, "good answers")
    if any(window.errors for window in windows):
        axes.plot(ends, [window.errors for window in windows], color=RED, linewidth=1.4, label="errors")
        axes.legend(loc="upper right")


def _draw_median(axes: Axes, ends: Sequence[float], windows: Sequence[Window]) -> None:
    _area(axes, ends, [window.p50 for window in windows], BLUE, "p50")


def _draw_tail(axes: Axes, ends: Sequence[float], windows: Sequence[Window]) -> None:
    axes.plot(ends, [window.p99 for window in windows], color=ORANGE, linewidth=1.6, label="p99")
    axes.plot(ends, [window.p95 for window in windows], color=BLUE, linewidth=1.6, label="p95")
    axes.legend(loc="upper right", ncols=2)


def _area(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    axes.fill_between(x, 0, y, color=colour, alpha=0.12, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.8, label=label)


_CURVES: tuple[tuple[str, str, Draw], ...] = (
    ("throughput", "Throughput, requests a second", _draw_throughput),
    ("latency_p50", "Median latency, ms", _draw_median),
    ("latency_tail", "Tail latency, ms", _draw_tail),
)


def _histogram(results: Results, width: float) -> Figure:
    """How many requests took how long, on a logarithmic scale, with the percentiles marked."""
    with canvas(1, "Latency", width) as (figure, (axes,)):
        from matplotlib.ticker import LogLocator

        bounds = [bucket.upto for bucket in results.histogram]
        ratio = bounds[1] / bounds[0] if len(bounds) > 1 else 1.1
        lefts = [bound / ratio for bound in bounds]
        widths = [0.94 * (bound - left) for bound, left in zip(bounds, lefts, strict=True)]
        answers = [bucket.answers for bucket in results.histogram]
        axes.bar(lefts, answers, widths, align="edge", color=BLUE, alpha=0.75)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("milliseconds")
        axes.set_ylabel("requests")
        top = 1.18 * max(answers, default=1)
        axes.set_ylim(0, top)
        latency = results.latency
        for name, value in (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99)):
            axes.axvline(value, color=ORANGE, linewidth=1.2)
            axes.text(
                value, top * 0.97, f" {name} ", color=ORANGE, va="top", ha="right", rotation=90, fontsize=8
            )
    return figure


def _batch_sizes(sizes: Mapping[str, int], average: float | None, width: float) -> Figure:
    """How large the server's batches were."""
    with canvas(1, f"Batch sizes, {average:.1f} on average", width) as (figure, (axes,)):
        last = max(place for place, count in enumerate(sizes.values()) if count)
        shown = list(sizes.items())[: last + 1]
        bounds = [0, *(int(float(bound)) for bound, _ in shown if bound != "+Inf")]
        labels = [f"{low + 1}" if high == low + 1 else f"{low + 1}-{high}" for low, high in pairwise(bounds)]
        labels += [f"> {bounds[-1]}"] * (len(shown) - len(labels))
        axes.bar(labels, [count for _, count in shown], color=ORANGE, alpha=0.8, width=0.75)
        axes.set_xlabel("inputs in a batch, as the server counts them")
        axes.set_ylabel("batches")
        axes.grid(axis="x", visible=False)
    return figure
