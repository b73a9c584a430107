"""Batches of one against batches, on real servers where what is compared is a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from carpool.bench.compare import BASELINE, BATCHED, Load, markdown, measure_sides, pairs
from carpool.bench.run import CouldNotKeepUp
from carpool.bench.summary import Results
from carpool.cli import main
from tests.bench.test_summary import record_of, results_of
from tests.support.upstream import Upstream


def test_one_side_runs_after_the_other_and_a_gap_costs_only_itself() -> None:
    """Both get the same loads; ratios say how many times better; why a run has no figures stands below."""
    loads = [Load(200, "128"), Load(400, "128")]
    happened: list[str] = []

    @contextmanager
    def serve(side: str) -> Iterator[str]:
        happened.append(f"start {side}")
        yield "http://h"
        happened.append(f"stop {side}")

    def measure(url: str, load: Load, side: str) -> Results:
        happened.append(f"{load.amount} {side}")
        if side == BASELINE and load.amount == 400:
            raise CouldNotKeepUp("it was late")
        return results_of(record_of([40.0] * 100 if side == BASELINE else [10.0] * 300, step=0.0))

    compared = pairs(measure_sides(loads, serve, measure))
    assert happened == [
        f"{what} {side}" for side in (BASELINE, BATCHED) for what in ("start", 200, 400, "stop")
    ]
    assert compared[0].ratios == pytest.approx({"throughput": 3, "p50": 4, "p95": 4, "p99": 4})
    table = markdown(compared, "users")
    assert "| 200 | 128 | 10 | 30 | **3 x** | 40 | 10 | **4 x** |" in table
    assert "| 400 | 128 | - | 30 | **- x** |" in table
    assert table.endswith("- batch size 1, 400 users: it was late\n")


@pytest.mark.parametrize(
    ("load", "files"),
    [
        (
            ["--users", "4,8"],
            [
                "production_throughput.png",
                "production_latency_p50.png",
                "production_latency_p95.png",
                "comparison.md",
            ],
        ),
        (["--qps", "20,40", "--tokens", "10-50"], ["bench.png", "bench.md"]),
    ],
    ids=["users", "qps"],
)
def test_the_servers_are_started_measured_and_stopped(
    load: list[str], files: list[str], tmp_path: Path
) -> None:
    """The baseline has batches of one, the other side has not, and the pictures are there."""
    with Upstream() as upstream:
        arguments = [*load, "--duration", "2s", "--late-limit", "10s", "--out", str(tmp_path)]
        result = CliRunner().invoke(
            main, ["bench", "compare", upstream.url, *arguments, "--", "--max-concurrent-workers", "1"]
        )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("| users |" if load[0] == "--users" else "| req/s offered |")
    for name in files:
        assert (tmp_path / name).stat().st_size > 500
    compared = json.loads(next(tmp_path.glob("*.json")).read_text())["loads"]
    assert [row[side]["refused"] for row in compared for side in ("baseline", "batched")] == [""] * 4
    assert [row["baseline"]["average_batch"] for row in compared] == [1, 1]
    if load[0] == "--users":
        assert all(row["batched"]["average_batch"] > 1 for row in compared)
