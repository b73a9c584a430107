"""Memory that workers read: what is lent of it, and what is written there."""

from __future__ import annotations

import gc
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from carpool.backends.process import shared
from carpool.backends.process.shared import Intake

MEBIBYTE = 1 << 20
ROOM = 256 * MEBIBYTE


def test_shared_memory_takes_more_buffers_than_one_system_call() -> None:
    """And reads back what was written last, also where there was more before."""
    memory = shared.SharedMemory()
    reader = shared.Reader(memory.fd)
    for count in (3, 2000, 10):
        items = [b"%d," % number * 1000 for number in range(count)]
        memory.write(items)
        sizes = list(map(len, items))
        assert reader.read(list(accumulate(sizes[:-1], initial=0)), sizes) == items


@given(
    lengths=st.lists(st.integers(1, 90 * MEBIBYTE), min_size=1, max_size=30),
    forgotten=st.lists(st.integers(0, 29)),
)
def test_no_byte_is_lent_twice_and_all_are_had_back(lengths: list[int], forgotten: list[int]) -> None:
    """Whoever has an item is found to have it, where it is; an item that is gone makes room, whole again."""
    intake = Intake()
    lent: dict[int, memoryview] = {}
    for number, length in enumerate(lengths):
        item = intake.lend(length)
        assert item is None or len(item) == length >= shared.LEAST
        if item is not None:
            lent[number] = item
        del item
        if number < len(forgotten):
            lent.pop(forgotten[number], None)
        starts = intake.find(list(lent.values()))
        assert starts is not None
        places = sorted(zip(starts, map(len, lent.values()), strict=True))
        assert all(start + size <= following for (start, size), (following, _) in pairwise(places))
    lent.clear()
    assert intake.lend(ROOM) is not None


def test_what_is_lent_is_read_where_it_is_and_known_by_no_copy() -> None:
    """A reader finds it there. Equal bytes, and a slice, are not it."""
    intake = Intake()
    first, item = intake.lend(MEBIBYTE), intake.lend(MEBIBYTE)
    assert first is not None
    assert item is not None
    item[:] = b"x" * MEBIBYTE
    starts = intake.find([item, first])
    assert starts is not None
    copy, other = shared.Reader(intake.memory.fd).read(starts, [MEBIBYTE, MEBIBYTE])
    assert copy == item
    assert other == bytes(MEBIBYTE)
    for stranger in (bytes(item), item[:], copy):
        assert intake.find([first, stranger]) is None


def test_an_item_that_only_the_garbage_collector_frees_makes_room() -> None:
    """As one does whose request is in a cycle; until then there is none."""
    intake = Intake()
    cycle: list[object] = [intake.lend(ROOM)]
    cycle.append(cycle)
    assert intake.lend(MEBIBYTE) is None
    del cycle
    gc.collect()
    assert intake.lend(ROOM) is not None
