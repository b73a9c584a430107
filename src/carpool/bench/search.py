"""Find the best setting in few runs. What a run is, the caller knows: a server under load, or a simulation.

Starting from where the curve of the batch times says the optimum should be, it moves along one axis at a time
for as long as that helps, and looks over one level that does not. For every setting the number of users is
searched as well, since what a setting can do shows only under its own best load. Each step must be worth more
than the noise, and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from carpool.bench.curve import Line
from carpool.bench.goal import Goal

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IN_FLIGHT = (1, 2, 4, 8)
USERS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WORTH_A_STEP = 0.01  # relative: measured throughput varies by about that much
_FIRST_STEP, _NEXT_STEP = 2, 1  # levels of users, at the first setting and at its neighbours


@dataclass(frozen=True)
class Setting:
    """What is tuned."""

    max_batch_size: int
    in_flight: int = 1
    objective_ms: int = 0


@dataclass(frozen=True)
class Trial:
    """One run. Requests a second, milliseconds, the share of requests that failed."""

    setting: Setting
    users: int
    throughput: float
    p50: float
    p95: float
    p99: float
    failed: float = 0.0


Run = Callable[[Setting, int], Trial]


@dataclass(frozen=True)
class Space:
    """The levels of every axis, ascending."""

    batch_sizes: Sequence[int] = BATCH_SIZES
    in_flight: Sequence[int] = IN_FLIGHT
    users: Sequence[int] = USERS

    @property
    def size(self) -> int:
        """How many runs a grid would take."""
        return len(self.batch_sizes) * len(self.in_flight) * len(self.users)


class Search:
    """One search. `trials` is everything that was run, in order; `best` is the best of it."""

    def __init__(self, run: Run, goal: Goal, space: Space, line: Line | None = None) -> None:
        self._run = run
        self._goal = goal
        self._space = space
        self._line = line
        self._known: dict[tuple[Setting, int], Trial] = {}
        self.best: Trial

    @property
    def trials(self) -> list[Trial]:
        """Everything that was run."""
        return list(self._known.values())

    def find(self) -> Trial:
        """Search, and give the best."""
        start, users = self.guess()
        self.best = self._best_users(start, users, _FIRST_STEP)
        moved = True
        while moved:
            before = self.best
            self._move("max_batch_size", self._space.batch_sizes)
            self._move("in_flight", self._space.in_flight)
            moved = self.best.setting != before.setting
        self._try_objective()
        return self.best

    def best_of(self, setting: Setting) -> Trial | None:
        """The best run of a setting, if it was tried."""
        tried = [trial for trial in self.trials if trial.setting == setting]
        return max(tried, key=self._goal.score, default=None)

    def guess(self) -> tuple[Setting, int]:
        """The setting and the users to begin with: what the batch times say, or the middle."""
        sizes, line = self._space.batch_sizes, self._line
        in_flight = self._space.in_flight[0]
        if line is None:
            size = sizes[len(sizes) // 2]
        elif self._goal.wanted == "throughput":
            # Who comes while a batch runs waits for that one and for their own.
            size = _nearest(sizes, min(line.large_enough, line.within(self._goal.most_ms / 2)))
        else:
            size = _nearest(sizes, line.enough_for(self._goal.least))
        return Setting(size, in_flight), _nearest(self._space.users, 2 * size * in_flight)

    def _move(self, axis: str, levels: Sequence[int]) -> None:
        """Go up, or else down, an axis for as long as it helps."""
        for direction in (1, -1):
            came_from = self.best
            while self._step(axis, levels, direction):
                pass
            if self.best is not came_from:
                return

    def _step(self, axis: str, levels: Sequence[int], direction: int) -> bool:
        """To the next level, or over it; whether either is better."""
        place = levels.index(getattr(self.best.setting, axis))
        for reach in (1, 2):
            if (level := place + reach * direction) in range(len(levels)):
                neighbour = replace(self.best.setting, **{axis: levels[level]})
                trial = self._best_users(neighbour, self.best.users, _NEXT_STEP)
                if self._is_better(trial, self.best):
                    self.best = trial
                    return True
        return False

    def _best_users(self, setting: Setting, users: int, step: int) -> Trial:
        """The best run of a setting: from some users in steps that halve."""
        levels = self._space.users
        place = levels.index(users)
        best = self._try(setting, users)
        while step:
            for direction in (step, -step):
                while (next_place := place + direction) in range(len(levels)):
                    trial = self._try(setting, levels[next_place])
                    if not self._is_better(trial, best):
                        break
                    best, place = trial, next_place
            step //= 2
        return best

    def _try_objective(self) -> None:
        """Whether the scheduler does better when it is told the latency that is wanted."""
        goal, best = self._goal, self.best
        if goal.most_ms == float("inf"):
            return
        told = self._try(replace(best.setting, objective_ms=max(1, round(goal.most_ms))), best.users)
        if goal.score(told)[0] >= goal.score(best)[0] and not self._is_better(best, told):
            self.best = told

    def _try(self, setting: Setting, users: int) -> Trial:
        key = setting, users
        if key not in self._known:
            self._known[key] = self._run(setting, users)
        return self._known[key]

    def _is_better(self, one: Trial, other: Trial) -> bool:
        """By more than the noise."""
        (keeps, value), (other_keeps, other_value) = self._goal.score(one), self._goal.score(other)
        if keeps != other_keeps:
            return keeps
        return value > other_value + WORTH_A_STEP * abs(other_value)


def _nearest(levels: Sequence[int], wanted: float) -> int:
    """The largest level that is not above, or the first."""
    return max((level for level in levels if level <= wanted), default=levels[0])
