"""Requests a second of carpool and its peers, as a picture, from the committed tables: `peers.png` beside them.

python benchmarks/peers/figure.py [--output FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.peers.cases import CASES, RESULTS
from benchmarks.peers.loads import USERS
from benchmarks.peers.servers import ENGINES
from carpool.bench.plots import FAINT, INK, ORANGE

TITLES = {
    "noop": "a model that takes no time",
    "minilm": "MiniLM, real sentences",
    "resnet18": "ResNet-18, 3 MB of JSON each",
    "resnet18-jpeg": "ResNet-18, JPEGs",
}
OURS, THEIRS = ORANGE, "#a8a8a8"


def read_rates(report: str) -> dict[str, float]:
    """Requests a second with many users, by server, as a committed table has them."""
    _, _, behind = report.partition(f"\n## {USERS} users\n")
    lines = [line for line in behind.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: float(row[1].replace(",", "")) for row in rows if not row[0].startswith("---")}


def draw(axes: Axes, title: str, rates: Mapping[str, float]) -> None:
    """One panel, the fastest on top."""
    names = sorted(rates, key=rates.__getitem__)
    colours = [OURS if name in ENGINES else THEIRS for name in names]
    bars = axes.barh(names, [rates[name] for name in names], color=colours, height=0.7)
    figures = [f"{rates[name]:,.{1 if rates[name] < 100 else 0}f}" for name in names]
    axes.bar_label(bars, figures, padding=3, fontsize=9, color=FAINT)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlim(0, max(rates.values()) * 1.15)  # the figures are beside the bars
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9, colors=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.png")
    options = parser.parse_args()
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, panels = plt.subplots(2, 2, figsize=(11.5, 6.2), height_ratios=(9, 7))
    for axes, (case, title) in zip(panels.flat, TITLES.items(), strict=True):
        draw(axes, title, read_rates(CASES[case].table.read_text(encoding="utf-8")))
    figure.suptitle(f"Requests a second, {USERS} users", x=0.012, ha="left", fontsize=14, color=INK)
    figure.tight_layout(w_pad=3)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    main()
