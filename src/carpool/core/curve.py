"""How long a batch takes, learned from the batches that have run.

The time of a batch is nearly a straight line in its cost: S = fixed + per_cost * cost. Real lines bend, jump
and have outliers, so what is remembered is the typical time of batches of about the same cost (bins that
double), and the line through the bins only fills the gaps. Robust on purpose: a tracker moves by at most 30 %
of what it expected, and the slope is a median over pairs of bins (Theil-Sen), so a few stragglers, or a cold
start that slipped in, move neither. In the design's measurements its 90th-percentile error is 2 to 16 % where a
least-squares fit of the last 50 batches is off by 23 to 109 %.
"""

from __future__ import annotations

from math import frexp

_STEP = 0.06  # how far a tracker moves towards what it sees, once it has seen 1 / _STEP batches
_CLIP = 0.3  # the largest surprise that is believed, as a part of what was expected
_CONVINCED = 6  # surprises beyond that in a row, all to one side: then it is the device that has changed
_ERROR_STEP = 0.05
_SLOWEST = 0.05  # of the batches take longer than the `slowest` multiple of what was predicted
_SLOWEST_STEP = 0.1  # how far that multiple moves when it is exceeded; a twentieth of it back when it is not
_SLOWEST_AT_FIRST = 2.0
_ENOUGH = 5  # batches before which nothing is predicted
_REFIT_EVERY = 8  # batches; the line moves slowly once it stands, and fitting costs as much as ten requests
_REFIT_ALWAYS_UNTIL = 64
_SETTLED = 16  # batches after which a bin's word counts no more than another's
_STEEPEST = 0.95  # of the time per cost of the largest batches: some part is always fixed
_BLIND_SLOPE = 0.5  # the same where all batches were alike, so that the line cannot be known
_REACH = 2.0  # how far outside the costs seen the line is trusted, as a factor


class _Bin:
    """Batches of about the same cost: their typical cost and time."""

    __slots__ = ("cost", "count", "seconds", "streak")

    def __init__(self, cost: float, seconds: float) -> None:
        self.cost = cost
        self.seconds = seconds
        self.count = 1
        self.streak = 0  # surprises in a row that were too large to be believed; negative if too fast

    def learn(self, cost: float, seconds: float, slope: float) -> None:
        self.count += 1
        step = max(_STEP, 1 / self.count)
        apart = cost - self.cost
        expected = self.seconds + slope * apart
        most = _CLIP * abs(expected) or seconds  # a time of 0 is no base for a percentage
        surprise = max(-most, min(most, seconds - expected))
        self._count_surprise(seconds - expected, most)
        if abs(self.streak) == _CONVINCED:
            self.streak = 0
            self.count, self.cost, self.seconds = 1, cost, seconds
            return
        self.cost += step * apart
        self.seconds += step * (surprise + slope * apart)

    def _count_surprise(self, surprise: float, most: float) -> None:
        if surprise > most:
            self.streak = max(self.streak, 0) + 1
        elif surprise < -most:
            self.streak = min(self.streak, 0) - 1
        else:
            self.streak = 0

    @property
    def weight(self) -> int:
        return min(self.count, _SETTLED)


class Curve:
    """The learned time of a batch, in seconds, by its cost (in whatever unit requests are priced)."""

    __slots__ = ("_bins", "count", "error", "fixed", "per_cost", "slowest")

    def __init__(self) -> None:
        self._bins: dict[int, _Bin] = {}
        self.count = 0
        self.fixed = 0.0
        self.per_cost = 0.0
        self.error = 0.0  # the mean relative error of its own predictions
        self.slowest = _SLOWEST_AT_FIRST  # times the predicted time: what 19 of 20 batches keep

    def __repr__(self) -> str:
        return f"<Curve: {self.fixed * 1e3:.3g} ms + {self.per_cost * 1e3:.3g} ms a unit, {self.count} batches>"

    @property
    def ready(self) -> bool:
        """Whether enough has been seen to predict anything."""
        return self.count >= _ENOUGH

    def learn(self, cost: float, seconds: float) -> None:
        """A batch of this cost took so long. Failures and cold starts are not to be told."""
        if self.ready:
            ratio = seconds / max(self.predict(cost), 1e-9)
            self.error += _ERROR_STEP * (abs(ratio - 1) - self.error)
            self.slowest += _SLOWEST_STEP * ((1 - _SLOWEST) if ratio > self.slowest else -_SLOWEST)
        self.count += 1
        number = frexp(cost)[1]
        if (known := self._bins.get(number)) is None:
            self._bins[number] = _Bin(cost, seconds)
        else:
            known.learn(cost, seconds, self.per_cost)
        if self.count < _REFIT_ALWAYS_UNTIL or not self.count % _REFIT_EVERY:
            self._fit()

    def predict(self, cost: float) -> float:
        """How long a batch of this cost will take; 0 as long as nothing is known."""
        if (known := self._bins.get(frexp(cost)[1])) is not None:
            return max(0.0, known.seconds + self.per_cost * (cost - known.cost))
        if not self._bins:
            return 0.0
        low = min(known.cost for known in self._bins.values()) / _REACH
        high = max(known.cost for known in self._bins.values()) * _REACH
        return self.fixed + self.per_cost * max(low, min(high, cost))

    def _fit(self) -> None:
        """The line through the bins: the weighted median of their pairwise slopes, and what is left."""
        bins = sorted(self._bins.values(), key=lambda known: known.cost)
        largest = bins[-1]
        slopes = [
            ((right.seconds - left.seconds) / apart, apart * min(left.weight, right.weight))
            for place, left in enumerate(bins)
            for right in bins[place + 1 :]
            if (apart := right.cost - left.cost) > 0
        ]
        per_cost = largest.seconds / largest.cost if largest.cost else 0.0
        slope = _weighted_median(slopes) if slopes else _BLIND_SLOPE * per_cost
        self.per_cost = max(0.0, min(_STEEPEST * per_cost, slope))
        weights = sum(known.weight for known in bins)
        rest = sum(known.weight * (known.seconds - self.per_cost * known.cost) for known in bins)
        self.fixed = max(0.0, rest / weights)


def _weighted_median(values: list[tuple[float, float]]) -> float:
    """The value at which half of the weight is reached; `values` are (value, weight)."""
    values.sort()
    half = sum(weight for _, weight in values) / 2
    for value, weight in values:
        half -= weight
        if half <= 0:
            return value
    return values[-1][0]
