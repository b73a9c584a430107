"""Which devices and cores the replicas of a model get."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from carpool.backends.process.placement import Place, places


def test_a_single_replica_is_left_alone() -> None:
    """It has all cores, which the operator may have chosen already, and the name that it always had."""
    assert places(1, [], [0, 1, 2]) == [Place("worker")]
    assert places(1, ["cuda:0"], [0, 1, 2]) == [Place("worker", "cuda:0")]


@pytest.mark.parametrize(
    ("replicas", "cores", "shares"),
    [
        (2, [0, 1], [(0,), (1,)]),
        (2, [3, 4, 5, 8, 9], [(3, 4), (5, 8, 9)]),
        (3, [0, 1, 2, 3, 4, 5, 6], [(0, 1), (2, 3), (4, 5, 6)]),
        (3, [0, 1], [(0,), (1,), (0,)]),
        (2, [], [(), ()]),
    ],
)
def test_cores_are_dealt_out_evenly(replicas: int, cores: Sequence[int], shares: list[tuple[int, ...]]) -> None:
    """Each to one replica, as long as there are enough; none at all where pinning is off."""
    assert [place.cores for place in places(replicas, [], cores)] == shares


def test_every_device_has_a_replica_and_more_replicas_take_turns() -> None:
    """`devices` alone is enough to say how many replicas there are."""
    assert [place.device for place in places(1, ["cuda:0", "cuda:1"], [])] == ["cuda:0", "cuda:1"]
    assert [place.device for place in places(3, ["a", "b"], [])] == ["a", "b", "a"]
    assert [place.name for place in places(3, ["a", "b"], [])] == ["worker-0", "worker-1", "worker-2"]
