"""Where the replicas of a model run: which device and which cores each of them has. It knows no process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Of one replica: its name, its device, empty for the loader's own choice, and its cores, empty for all."""

    name: str = "worker"
    device: str = ""
    cores: tuple[int, ...] = ()


ANYWHERE = Place()


def places(replicas: int, devices: Sequence[str], cores: Sequence[int]) -> list[Place]:
    """A place for each replica: one for each device at least, in turn where there are more replicas.

    `cores` are dealt out evenly, neighbours together, which mostly share a cache; a core is shared only where
    there are more replicas than cores.
    """
    count = max(replicas, len(devices))
    if count == 1:
        return [Place(device=devices[0] if devices else "")]
    return [
        Place(
            f"worker-{number}", devices[number % len(devices)] if devices else "", _share(number, count, cores)
        )
        for number in range(count)
    ]


def _share(number: int, count: int, cores: Sequence[int]) -> tuple[int, ...]:
    if count > len(cores):
        return (cores[number % len(cores)],) if cores else ()
    first, after = (len(cores) * edge // count for edge in (number, number + 1))
    return tuple(cores[first:after])
