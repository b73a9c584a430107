from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.engines.grouping import INFERENCE_TOKENS, MAX_TOKENS, WIDTH_STEP, padded, plan

LENGTHS = st.lists(st.integers(2, 600), max_size=70)


def padded_tokens(lengths: list[int], group: list[int]) -> int:
    return padded(max(lengths[index] for index in group)) * len(group)


def work(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(INFERENCE_TOKENS + padded_tokens(lengths, group) for group in groups)


@given(LENGTHS, st.integers(1, 8), st.booleans())
def test_every_text_is_in_one_group(lengths: list[int], streams: int, are_more: bool) -> None:
    """Whatever the lengths, nothing is left out and nothing is run twice."""
    groups = plan(lengths, streams, are_more)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(groups)


@given(LENGTHS, st.integers(1, 8), st.booleans())
def test_no_group_is_too_large_for_the_cache(lengths: list[int], streams: int, are_more: bool) -> None:
    """More tokens than the bound are only allowed to a text that has them alone."""
    for group in plan(lengths, streams, are_more):
        assert len(group) == 1 or padded_tokens(lengths, group) <= MAX_TOKENS


@given(LENGTHS, st.integers(1, 8))
def test_the_heaviest_group_goes_first(lengths: list[int], streams: int) -> None:
    """Streams take groups in order, and only starting with the long work lets them end together."""
    weights = [padded_tokens(lengths, group) for group in plan(lengths, streams)]
    assert weights == sorted(weights, reverse=True)


def test_among_others_a_batch_is_less_work() -> None:
    """To end together costs work, and is worth nothing where the streams go on with the next batch."""
    rng = random.Random(3)
    batches = [[min(256, int(rng.lognormvariate(3.2, 0.6))) for _ in range(32)] for _ in range(50)]
    among_others = sum(work(lengths, plan(lengths, 2, are_more=True)) for lengths in batches)
    by_themselves = sum(work(lengths, plan(lengths, 2)) for lengths in batches)
    assert among_others < 0.995 * by_themselves


@pytest.mark.parametrize("streams", [2, 8])
def test_among_others_no_stream_is_left_without_work(streams: int) -> None:
    """A batch in few large groups would leave the others idle until the next one comes."""
    assert len(plan([12] * 32, streams, are_more=True)) >= streams


def test_one_long_text_does_not_pad_all_the_others() -> None:
    """A batch of short texts and a long one costs little more than its own tokens."""
    lengths = [10] * 31 + [250]
    groups = plan(lengths, streams=1)
    assert [31] in groups
    assert work(lengths, groups) < 1.25 * sum(map(padded, lengths))


@pytest.mark.parametrize("count", [2, 8, 32])
def test_equal_texts_are_shared_out_evenly(count: int) -> None:
    """No stream idles while another does its work."""
    assert [len(group) for group in plan([12] * count, streams=2)] == [count // 2] * 2


def test_equal_texts_stay_together_on_one_stream() -> None:
    """Where nothing runs side by side, cutting would only cost."""
    assert plan([12] * 8, streams=1) == [list(range(8))]


def test_a_text_alone_is_one_group() -> None:
    """The common request needs no arithmetic."""
    assert plan([7], streams=4) == [[0]]
    assert plan([], streams=4) == []


@pytest.mark.parametrize(("length", "width"), [(0, 16), (1, 16), (16, 16), (17, 32), (250, 256)])
def test_widths_are_whole_steps(length: int, width: int) -> None:
    """The engine sees few different shapes."""
    assert padded(length) == width
    assert width % WIDTH_STEP == 0
