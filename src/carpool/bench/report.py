"""What a run leaves behind: results.json, pictures, and a report in one HTML file."""

from __future__ import annotations

import base64
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from carpool.bench import plots
from carpool.bench.summary import Results

_STYLE = Path(__file__).with_name("report.css")


def machine() -> dict[str, Any]:
    """Where and when this runs."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "carpool": version("carpool"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "command": " ".join(["carpool", *sys.argv[1:]]),
    }


def write(folder: Path, results: Results, about: Mapping[str, Any]) -> None:
    """Everything about one run, but for pictures where they cannot be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"about": about, "machine": machine(), "results": asdict(results)})
    pictures = []
    if plots.missing() is None:
        for name, figure in plots.draw_run(results):
            plots.png(figure, folder / f"{name}.png")
        pictures = [(figure.get_suptitle(), plots.svg(figure)) for figure in plots.draw_panels(results)]
    (folder / "report.html").write_text(html(results, about, pictures), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """JSON that a person can read; what is no number is null."""
    path.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if hasattr(value, "_asdict"):
        return _finite(value._asdict())
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def html(results: Results, about: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    """The report: it needs nothing but a browser."""
    title = f"{about.get('url', '')} under {about.get('load', '')}"
    details = {**about, **machine(), "the generator's own lateness, p99": _ms(results.generator.late_p99_ms)}
    details["the generator's share of a core"] = f"{results.generator.cpu_share:.0%}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text()}</style>"
        f'<h1>{escape(str(about.get("url", "")))}</h1><p class="sub">{escape(str(about.get("load", "")))}, '
        f"{results.seconds:g} s, {results.requests:,} requests</p>"
        f'<div class="cards">{_cards(results)}</div><h2>How it went</h2>{_pictures(pictures)}'
        f"<h2>Errors</h2>{_table(results.errors) if results.errors else '<p>None.</p>'}"
        f"<h2>How it was measured</h2>{_table(details)}</html>\n"
    )


def _pictures(pictures: Sequence[tuple[str, bytes]]) -> str:
    if not pictures:
        return f"<p>No pictures: {escape(str(plots.missing()))}</p>"
    images = "".join(
        f'<div><img alt="{escape(title)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(content).decode()}"></div>'
        for title, content in pictures
    )
    return f'<div class="pictures">{images}</div>'


def _cards(results: Results) -> str:
    latency = results.latency
    cards = [
        ("main", f"{results.throughput:,.0f}", "good answers / s"),
        ("", _ms(latency.p50), "p50"),
        ("", _ms(latency.p95), "p95"),
        ("", _ms(latency.p99), "p99"),
        ("", f"{results.failed:,}", "failed"),
    ]
    if results.average_batch:
        cards.append(("", f"{results.average_batch:.1f}", "inputs in a batch"))
    return "".join(
        f'<div class="card {kind}"><b>{value}</b><span>{label}</span></div>' for kind, value, label in cards
    )


def _table(rows: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def lines(results: Results) -> str:
    """The figures for a terminal."""
    latency, generator = results.latency, results.generator
    errors = ", ".join(f"{count} x {name}" for name, count in results.errors.items()) or "none"
    shown = [
        f"answered   {results.throughput:,.1f} req/s for {results.seconds:g} s, {results.requests:,} requests",
        f"latency    p50 {_ms(latency.p50)}, p95 {_ms(latency.p95)}, p99 {_ms(latency.p99)}, "
        f"longest {_ms(latency.max)}",
        f"errors     {errors}",
        f"generator  {_ms(generator.late_p99_ms)} late (p99), {generator.cpu_share:.0%} of a core",
    ]
    if results.average_batch:
        shown.insert(3, f"batches    {results.average_batch:.1f} inputs on average")
    return "\n".join(shown)
