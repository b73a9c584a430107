"""Tuning: what is wanted, how long batches take, the search, and what is written down."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from benchmarks.scheduler.simulator import Device
from benchmarks.tuning import simulated
from click.testing import CliRunner

from carpool.bench.curve import Line, fit
from carpool.bench.goal import Goal
from carpool.bench.search import Run, Search, Setting, Space, Trial
from carpool.bench.tune import as_config
from carpool.cli import main
from carpool.config import load_config
from carpool.errors import ConfigError
from tests.support.upstream import Upstream

DEVICE = Device(slots=1, a=0.008, c=0.0005)
LINE = Line(8.0, 0.5)
SPACE = Space((1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 4), (4, 8, 16, 24, 32, 48, 64, 96, 128))
REQUESTS = 500  # of a run: enough for a 99th percentile, few enough for a grid of runs


def grid_of(run: Run) -> list[Trial]:
    return [
        run(Setting(size, in_flight), users)
        for size, in_flight, users in product(SPACE.batch_sizes, SPACE.in_flight, SPACE.users)
    ]


@pytest.mark.parametrize("text", ["max throughput with p99 < 100 ms", "max throughput with p99 < 40 ms"])
def test_it_finds_the_best_of_a_grid_in_less_than_a_quarter_of_its_runs(text: str) -> None:
    """Within 3 % on a simulated device with the real scheduler; `benchmarks/tuning.py` has more cases."""
    goal, run = Goal.parse(text), simulated(DEVICE, REQUESTS)
    search = Search(run, goal, SPACE, LINE)
    keeps, found = goal.score(search.find())
    assert keeps
    assert found >= 0.97 * max(map(goal.score, grid_of(run)))[1]
    assert len(search.trials) < SPACE.size / 4


def invented(setting: Setting, users: int) -> Trial:
    """A device without chance: two batches in flight are a little better than one, more are not."""
    size = min(setting.max_batch_size, users)
    overlap = {1: 1.0, 2: 1.1}.get(setting.in_flight, 1.05)
    throughput = 1000 * size / LINE(size) * overlap
    latency = 1000 * users / throughput
    return Trial(setting, users, throughput, latency, latency, latency)


@pytest.mark.parametrize("line", [LINE, None], ids=["measured", "unknown"])
@pytest.mark.parametrize(
    "text", ["max throughput", "max throughput with p95 < 50 ms", "min p50 with throughput > 500"]
)
def test_a_search_ends_at_the_optimum_and_runs_nothing_twice(text: str, line: Line | None) -> None:
    """For every kind of goal, also without knowing how long batches take."""
    goal = Goal.parse(text)
    ran: list[tuple[Setting, int]] = []

    def run(setting: Setting, users: int) -> Trial:
        ran.append((setting, users))
        return invented(setting, users)

    search = Search(run, goal, SPACE, line)
    best = search.find()
    assert goal.score(best)[1] == pytest.approx(max(map(goal.score, grid_of(invented)))[1], rel=0.03)
    assert len(ran) == len(set(ran)) == len(search.trials) < SPACE.size / 3


def test_a_goal_is_a_sentence() -> None:
    """What breaks a limit loses to what keeps it, the nearer the better; failures lose to all."""
    goal = Goal.parse("max throughput  with p95 < 50 ms")
    slow, slower, failing, good = (
        Trial(Setting(8), 1, throughput, 1.0, p95, 1.0, failed)
        for throughput, p95, failed in ((900, 60, 0.0), (999, 90, 0.0), (999, 1, 0.5), (10, 49, 0.0))
    )
    assert sorted([good, slow, failing, slower], key=goal.score) == [failing, slower, slow, good]
    assert Goal.parse("min p50").score(good) == (True, -1.0)
    with pytest.raises(ConfigError, match=r'goal "be fast" is not understood: allowed: max throughput'):
        Goal.parse("be fast")


def test_the_line_weighs_small_batches_as_much_as_large_ones() -> None:
    """A bend at the large end must not move the fixed cost; one size alone is no slope."""
    assert vars(fit({size: 8 + 0.5 * size for size in (1, 2, 4, 64)})) == pytest.approx({"a": 8, "c": 0.5})
    bent = fit({1: 8.5, 2: 9.0, 4: 10.0, 8: 12.0, 16: 16.0, 64: 60.0})
    assert bent.a == pytest.approx(8, rel=0.1)
    assert fit({1: 5.0}) == Line(5.0, 0.0)


def test_the_settings_are_a_file_that_the_server_reads_with_the_reasons(tmp_path: Path) -> None:
    """Each value says what it gave and what its neighbours gave."""
    goal = Goal.parse("max throughput with p99 < 50 ms")
    search = Search(invented, goal, SPACE, LINE)
    best = search.find()
    file = tmp_path / "tuned.toml"
    file.write_text(as_config(search, goal, LINE, 'inference_url = "http://h:1"', "on paper"))
    settings = load_config(file, environment={}).models["default"]
    assert settings.inference_url == ("http://h:1",)
    assert settings.max_batch_size == best.setting.max_batch_size
    assert settings.max_concurrent_workers == best.setting.in_flight == 2
    assert settings.latency_objective_ms == best.setting.objective_ms == 50
    text = file.read_text()
    assert "# max throughput with p99 < 50 ms\n# on paper\n# A batch of b takes about 8 + 0.5 b ms." in text
    assert f"# 2: {best.throughput:,.0f} req/s, p99 {best.p99:.3g} ms with {best.users} users.\n# 1: " in text


def test_a_server_is_tuned_and_the_answer_is_written_down(tmp_path: Path) -> None:
    """`carpool tune URL` on a real one, in a space of one setting so that it does not take long."""
    with Upstream() as upstream:
        space = ["--batch-sizes", "8", "--in-flight", "1", "--most-users", "2"]
        arguments = [*space, "--duration", "300ms", "--late-limit", "10s", "--out", str(tmp_path)]
        goal = "max throughput with p99 < 9000 ms"
        result = CliRunner().invoke(main, ["tune", upstream.url, *arguments, "--goal", goal])
    assert result.exit_code == 0, result.stderr
    assert "a batch of b takes about" in result.stderr
    settings = load_config(tmp_path / "tuned.toml", environment={}).models["default"]
    assert (settings.inference_url, settings.max_batch_size) == ((upstream.url,), 8)
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
