"""Whether the slots lead to one device, told from when batches come back; every time is in seconds."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from carpool.core.batch import Batch
from carpool.core.device import Device
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler

D, OVERLAP = 0.010, 0.004  # device time of a batch, and what passes beside it


def serial(sent: float, before: float) -> float:
    return max(sent + OVERLAP, before) + D


def independent(sent: float, before: float) -> float:
    return sent + OVERLAP + D


def taught(answers: Callable[[float, float], float], batches: int, device: Device | None = None) -> Device:
    """A device that has seen so many batches, sent in pairs a moment apart, which varies."""
    device = device or Device()
    now, before = max(0.0, device._last_end + 1), 0.0
    for number in range(batches // 2):
        first, second = now, now + (0.002, 0.008, 0.005, 0.011)[number % 4]
        ends = []
        for sent in (first, second):
            before = answers(sent, before)
            batch = Batch(number, [(Request(["x"]), 0, 1)], sent, "")
            batch.cost = 1.0
            ends.append((before, batch))
        for end, batch in ends:
            device.learn(end, batch)
            device.ended(end)
        now = before + 0.05
    return device


def test_a_device_is_believed_to_be_independent_slots_at_first() -> None:
    """What was configured holds until it is refuted."""
    device = Device()
    assert not device.serial
    assert device.overlap == 0


def test_answers_that_follow_one_another_tell_a_serial_device_and_its_overlap() -> None:
    """A few dozen batches are enough, and the curve is the device's part alone."""
    device = taught(serial, 200)
    assert device.serial
    assert abs(device.overlap - OVERLAP) < 0.001
    assert abs(device.curve.predict(1.0) - D) < 0.001


def test_independent_slots_stay_what_they_are() -> None:
    """And the curve is all of a batch's time."""
    device = taught(independent, 400)
    assert not device.serial
    assert abs(device.curve.predict(1.0) - D - OVERLAP) < 0.001


def test_a_judgement_is_overturned_when_the_upstream_is_swapped() -> None:
    """Whoever puts replicas where one device was gets the use of them."""
    device = Device()
    for answers in (serial, independent):
        assert taught(answers, 400, device).serial == (answers is serial)


def test_what_left_before_the_first_answer_teaches_nothing() -> None:
    """All slots may have met the same cold start."""
    device = Device()
    for number in range(8):
        batch = Batch(number, [(Request(["x"]), 0, 1)], 0.0, "")
        batch.cost = 1.0
        device.learn(30.0 + number, batch)
        device.ended(30.0 + number)
    assert device.curve.count == 0


def drive(name: Any, slots: int, items: int, gap: float) -> tuple[Scheduler, list[tuple[float, float]]]:
    """One item every `gap`, and a serial device; for every batch when it left, and when it came back."""
    scheduler = Scheduler(BatchPolicy(name, 8, max_wait=0.0), Limits(slots))
    events: list[tuple[float, int, Batch | None]] = [(index * gap, index, None) for index in range(items)]
    batches: list[tuple[float, float]] = []
    before = 0.0
    while events:
        now, number, batch = heappop(events)
        if batch is not None:
            scheduler.complete(now, batch, batch.items)
        elif number < items:
            scheduler.submit(now, Request([number]))
        while (taken := scheduler.take_batch(now)) is not None:
            before = serial(now, before)
            batches.append((now, before))
            heappush(events, (before, items + len(batches), taken))
        if (wakeup := scheduler.next_wakeup()) is not None and wakeup > now:
            heappush(events, (wakeup, 10 * items, None))
    return scheduler, batches


def test_the_next_batch_reaches_a_serial_device_as_the_one_before_ends() -> None:
    """Neither earlier, when it could have grown, nor later, when the device would idle."""
    _, batches = drive("adaptive", 4, 4000, 0.003)
    waits = [before - (sent + OVERLAP) for (_, before), (sent, _) in pairwise(batches[500:])]
    assert all(abs(wait) < 0.004 for wait in waits)


def test_a_named_timeout_knows_no_gate() -> None:
    """Whoever asks for the classical rule gets it: every slot is used at once."""
    scheduler, batches = drive("timeout", 2, 1000, 0.003)
    waits = [before - (sent + OVERLAP) for (_, before), (sent, _) in pairwise(batches)]
    assert max(waits[100:]) > 0.005
    assert not scheduler._pool.replicas[0].device.serial


def test_one_slot_needs_no_judgement() -> None:
    """Where one batch is out at a time nothing can overlap."""
    scheduler, _ = drive("adaptive", 1, 500, 0.003)
    assert not scheduler._pool.replicas[0].device.serial


def test_times_of_a_batch_that_went_ahead_count_from_the_end_of_the_one_before() -> None:
    """Waiting there is not what it costs."""
    device = Device()
    device.declare(is_serial=True)
    assert device.serial
    taught(lambda sent, before: max(sent, before) + D, 60, device)
    assert device.overlap == 0
    assert abs(device.curve.predict(1.0) - D) < 1e-4
