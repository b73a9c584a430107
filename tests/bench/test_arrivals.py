"""When an open loop sends."""

from __future__ import annotations

import gzip
from itertools import islice, pairwise, takewhile
from pathlib import Path

import pytest

from carpool.bench.arrivals import KINDS, arrivals
from carpool.errors import ConfigError

COUNT = 5000


@pytest.mark.parametrize("kind", ["poisson", "bursts", "constant"])
def test_every_kind_keeps_its_rate_and_repeats_itself(kind: str) -> None:
    """Two servers are compared under the same arrivals, at the rate that was asked for."""
    times = list(islice(arrivals(kind, 200.0, 60.0, "a"), COUNT))
    assert times == list(islice(arrivals(kind, 200.0, 60.0, "a"), COUNT))
    assert times == sorted(times)
    assert COUNT / times[-1] == pytest.approx(200.0, rel=0.06)


def test_another_seed_is_another_load() -> None:
    """And bursts are no Poisson process: their gaps vary more."""
    first, second = (list(islice(arrivals("poisson", 10.0, 60.0, seed), 20)) for seed in "ab")
    assert first != second
    assert _variation("bursts") > 1.2 * _variation("poisson")


def _variation(kind: str) -> float:
    gaps = [later - earlier for earlier, later in pairwise(islice(arrivals(kind, 200.0, 60.0, "a"), COUNT))]
    mean = sum(gaps) / len(gaps)
    return float((sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean)


def test_a_ramp_climbs_to_its_rate() -> None:
    """A quarter of the requests fall into the first half of the time, and half the rate is the mean."""
    times = list(takewhile(lambda time: time < 20.0, arrivals("ramp", 400.0, 20.0, "a")))
    assert len(times) == pytest.approx(400 * 20 / 2, rel=0.05)
    assert sum(time < 10.0 for time in times) / len(times) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_trace_is_replayed_as_it_was_or_at_another_rate(tmp_path: Path, name: str) -> None:
    """Timestamps with more digits than datetime reads, a header, and gzip: as public traces come."""
    text = "TIMESTAMP,Tokens\n" + "".join(
        f"2023-11-16 18:15:{at}0,5\n" for at in ("46.000000", "46.500000", "48.000000")
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert list(islice(arrivals("trace", 0.0, 9.0, "a", path), 5)) == pytest.approx([0, 0.5, 2, 2.5, 4])
    assert list(islice(arrivals("trace", 10.0, 9.0, "a", path), 5)) == pytest.approx([0, 0.05, 0.2, 0.25, 0.4])


def test_what_is_wrong_with_a_load_is_said(tmp_path: Path) -> None:
    """Each refusal names what was given."""
    path = tmp_path / "trace.csv"
    path.write_text("time\n1\nsoon\n")
    with pytest.raises(ConfigError, match='"soon" is no time'):
        arrivals("trace", 0.0, 9.0, "a", path)
    with pytest.raises(ConfigError, match="a rate of 0 a second"):
        arrivals("poisson", 0.0, 9.0, "a")
    with pytest.raises(ConfigError, match=KINDS[0]):
        arrivals("monthly", 1.0, 9.0, "a")
