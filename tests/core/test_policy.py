"""The settings of a policy: what is allowed, and how it describes itself."""

from __future__ import annotations

from typing import Any

import pytest

from carpool import BatchPolicy, ConfigError, Limits


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "magic"}, "policy 'magic' is unknown: allowed: adaptive, timeout"),
        ({"max_batch_size": 0}, "max_batch_size 0 is out of range: allowed: 1 and more"),
        ({"max_wait": -1.0}, "max_wait -1.0 is out of range: allowed: 0 s and more"),
    ],
)
def test_a_bad_setting_names_itself_and_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    """The message is enough to mend it."""
    with pytest.raises(ConfigError) as caught:
        BatchPolicy(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["max_in_flight", "max_queue_size", "queue_timeout", "batch_timeout"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    """A limit of 0 would let nothing through; no limit is None."""
    with pytest.raises(ConfigError, match=f"{name} 0 is out of range"):
        Limits(**{name: 0})


def test_a_policy_says_what_it_does() -> None:
    """Start-up prints this line."""
    assert str(BatchPolicy()) == "adaptive: leave when a slot is free, with 32 items at most"
    assert str(BatchPolicy("timeout", 8, 0.005)) == "timeout: leave at 8 items or after 5 ms"
