"""The asyncio driver: it owns the callbacks, one timer and a task per batch, and decides nothing.

Once per turn of the event loop it asks the scheduler what leaves, so requests that arrive in the same turn
are seen together. All calls come from the loop's own thread; `blocking.py` is the way in for other threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Never, Self, TypeVar, cast

from carpool.backends.base import Backend
from carpool.backends.callable import BatchFunction, CallableBackend, batch_error
from carpool.core.batch import Batch
from carpool.core.limits import Limits, is_number
from carpool.core.policy import BatchPolicy
from carpool.core.request import WEIGHTS, Priority, Request
from carpool.core.scheduler import Scheduler, SchedulerStatistics
from carpool.errors import (
    Abandoned,
    BackendError,
    CarpoolError,
    ShuttingDown,
    Unreachable,
)
from carpool.observe.observer import (
    BatchEnded,
    BatchLeft,
    Fact,
    Observer,
    ReplicaStatus,
    RequestCancelled,
    RequestRefused,
    RequestsEnded,
)

In = TypeVar("In")
Out = TypeVar("Out")

logger = logging.getLogger(__name__)

_HANGS = 10.0  # times as long as expected, and so many seconds: then a replica is not slow
_HANGS_SECONDS = 1.0
_TIMER_SECONDS = 0.001  # event loops round timers to so much


class Batcher(Generic[In, Out]):
    """Lets items that arrive alone travel together.

    `backend` is a `Backend`, or several that do the same, or a function, async or not, from a list of inputs
    to as many results. Use it as `async with Batcher(function) as batcher: await batcher.submit(item)`.
    Everything that was admitted is answered before the `async with` ends.

    `cost` prices an item, in any one unit such as tokens, for `BatchPolicy.max_batch_cost` and to predict how
    long a batch takes; without it items are alike. `key` names what an item is: items with the same key that
    wait or run at the same time share one computation. What either raises is raised to that caller alone.
    """

    def __init__(
        self,
        backend: Backend[In, Out] | Sequence[Backend[In, Out]] | BatchFunction[In, Out],
        policy: BatchPolicy | None = None,
        limits: Limits | None = None,
        *,
        name: str = "default",
        observers: Sequence[Observer] = (),
        cost: Callable[[In], float] | None = None,
        key: Callable[[In], Hashable] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy or BatchPolicy()
        self.limits = limits or Limits()
        backends = _as_backends(backend, self.limits.max_in_flight)
        if not backends:
            raise ValueError("a batcher needs one backend at least")
        self._backends = dict(enumerate(backends))  # by the number of the replica, also while it drains
        self._scheduler = Scheduler(self.policy, self.limits, [each.capacity for each in backends])
        self._observers = observers
        self._cost = cost
        self._key = key
        self._loop: asyncio.AbstractEventLoop | None = None  # the one on which it was first used
        self._clock: Callable[[], float] | None = None  # of that loop
        self._kick_is_due = False
        self._turn_at = 0.0  # the moment of all that arrives before the next kick
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[asyncio.Task[None], Batch] = {}  # in the order in which they left
        self._overdue: set[asyncio.Task[None]] = set()  # cancelled, as they took too long
        self._overdue_timer: asyncio.TimerHandle | None = None
        self._starts: dict[
            int, asyncio.Task[None]
        ] = {}  # by the number of the replica, also once they are done
        self._leaving: set[int] = set()  # replicas that finish what they have
        self._timer_due = 0.0
        self._closing = False
        self._open_requests = 0
        self._idle: asyncio.Future[None] | None = None  # exists while `close` waits for the last answer

    def __repr__(self) -> str:
        return f"<Batcher {self.name!r}: {self._scheduler!r}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Get the backends ready, all at once. A batcher of a plain function needs no start.

        It has started once one of them is ready; the others go on in the background, and one that cannot be
        started is logged. If none can be, the error of the first is raised.
        """
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._bind(loop)
        await _end(self._starts.values())  # of a try before this one
        self._starts = {
            number: asyncio.create_task(self._start_one(number, backend))
            for number, backend in self._backends.items()
        }
        starts = pending = set(self._starts.values())
        try:
            while pending and not any(map(_has_succeeded, starts)):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(starts)
            raise
        if any(map(_has_succeeded, starts)):
            for start in starts:
                start.add_done_callback(_log_failure)
        else:
            await _close(self._backends.values())
            for start in self._starts.values():
                await start

    async def add(self, backend: Backend[In, Out]) -> None:
        """Another place where batches run, from now on."""
        number = self._scheduler.add_replica(backend.capacity)
        self._backends[number] = backend
        await self._start_one(number, backend)

    async def remove(self, backend: Backend[In, Out]) -> None:
        """Send nothing to a backend any more, wait for what is in flight there, release it."""
        numbers = [number for number, known in self._backends.items() if known is backend]
        if not numbers or numbers[0] in self._leaving:
            raise ValueError("this batcher has no such backend, or not any more")
        (number,) = numbers
        self._scheduler.remove_replica(number)
        self._leaving.add(number)
        try:
            if (start := self._starts.pop(number, None)) is not None:
                await _end([start])
            if running := [task for task, batch in self._running.items() if batch.replica == number]:
                await asyncio.wait(running)
        finally:
            del self._backends[number]
            self._leaving.remove(number)
            await backend.close()

    async def submit(
        self, item: In, *, timeout: float | None = None, tenant: str = "", priority: Priority = "normal"
    ) -> Out:
        """One item in, its result out; it travels with whoever else is waiting.

        It is to be answered within `timeout` seconds; `tenant` says whose share of the capacity it uses, and
        `priority` how large that is. Raises the item's own error if the backend gave one, `BackendError` if
        it failed, `Overloaded` if the queue is full or too long for the timeout, `TimedOut` if it cannot be
        answered in time any more, `Unavailable` when closing.
        """
        return cast("Out", (await self._submit([item], timeout, tenant, priority))[0])

    async def map(
        self,
        items: Iterable[In],
        *,
        timeout: float | None = None,
        tenant: str = "",
        priority: Priority = "normal",
    ) -> list[Out]:
        """Many items in, their results out, in the same order; the first error ends it."""
        items = list(items)
        return await self._submit(items, timeout, tenant, priority) if items else []

    def enqueue(self, request: Request) -> None:
        """Admit a request; its `deliver` is called when it has ended. `submit` without a task or a future."""
        if self._closing:
            raise ShuttingDown("shutting down", "no new requests are taken; use another server")
        if not self._kick_is_due:
            self._kick_soon(asyncio.get_running_loop())
        try:
            self._scheduler.submit(self._turn_at, request)
        except CarpoolError as refusal:
            self._tell(RequestRefused(self.name, refusal))
            raise _one_callers_own(refusal) from None
        self._open_requests += 1

    def cancel(self, request: Request) -> None:
        """Give up on a request: it leaves the queue at once and will not be delivered."""
        if self._scheduler.cancel(request):
            self._tell(RequestCancelled(self.name))
            self._close_requests(1)
            self._give_up_batches()

    async def close(self) -> None:
        """Take nothing new, wait until everything admitted has been answered, release the backends.

        A batch for which nobody waits any more is cancelled.
        """
        self._closing = True
        if self._open_requests:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
        await _end([*self._running, *self._starts.values()])
        for timer in (self._timer, self._overdue_timer):
            if timer is not None:
                timer.cancel()
        await _close(self._backends.values())

    @property
    def is_idle(self) -> bool:
        """Whether everything admitted has been answered."""
        return not self._open_requests

    def statistics(self) -> SchedulerStatistics:
        """A snapshot of the queue and the slots."""
        return self._scheduler.statistics()

    def replicas(self) -> list[ReplicaStatus]:
        """A snapshot of each replica, those included that finish what they have before they go."""
        return [
            ReplicaStatus(
                self._name_of(each.number),
                each.in_flight,
                each.slots,
                each.is_up,
                "it is being removed"
                if each.number in self._leaving
                else self._backends[each.number].trouble(),
            )
            for each in self._scheduler.replicas(self._now())
            if each.number in self._backends
        ]

    def _name_of(self, number: int) -> str:
        """What observers know a replica by: its backend's name, or else its number."""
        return str(getattr(self._backends.get(number), "name", number))

    def _give_up_batches(self) -> None:
        """Cancel the batches for which nobody waits any more, where that saves work.

        In a moment, since a task that is cancelled before its first step would never tell of its end.
        """
        for task, batch in self._running.items():
            if getattr(self._backends.get(batch.replica), "gives_up", False) and not _is_wanted(batch):
                asyncio.get_running_loop().call_soon(task.cancel)

    async def _start_one(self, number: int, backend: Backend[In, Out]) -> None:
        def changed() -> None:
            if number in self._backends and number not in self._leaving:
                self._scheduler.set_capacity(number, backend.capacity)
                self._scheduler.set_available(self._now(), number, backend.trouble() is None)
                self._kick_soon(asyncio.get_running_loop())

        changed()  # it may say by now that it is not ready
        try:
            await backend.start(changed)
        finally:
            changed()

    async def _submit(
        self, items: list[Any], timeout: float | None, tenant: str, priority: Priority
    ) -> list[Any]:
        weight = WEIGHTS.get(priority)
        if weight is None:
            raise ValueError(f"the priority {priority!r} is unknown; allowed: {', '.join(WEIGHTS)}")
        if timeout is not None and not is_number(timeout):
            raise ValueError(f"the timeout {timeout!r} is no number of seconds; allowed: numbers, or None")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        if asyncio.current_task() in self._running:
            raise waits_for_itself(self)
        future: asyncio.Future[list[Any]] = loop.create_future()

        def deliver(request: Request) -> None:
            if future.done():  # cancelled in this very turn of the loop
                return
            if request.error is not None:
                future.set_exception(_one_callers_own(request.error))
            else:
                future.set_result(request.results)

        request = Request(
            items,
            deliver,
            costs=None if self._cost is None else list(map(self._cost, items)),
            tenant=tenant,
            weight=weight,
            timeout=timeout,
            key=None if self._key is None else tuple(map(self._key, items)),
        )
        self.enqueue(request)
        try:
            return await future
        finally:
            self.cancel(request)  # does nothing unless the caller was cancelled

    def _kick_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._kick_is_due:
            self._kick_is_due = True
            self._turn_at = self._now()
            loop.call_soon(self._kick)

    def _kick(self, now: float | None = None) -> None:
        """Send what may leave, hand out what has ended, set the timer for what may leave later."""
        self._kick_is_due = False
        loop = asyncio.get_running_loop()
        now = self._now() if now is None else now
        is_sending = False
        while (batch := self._scheduler.take_batch(now)) is not None:
            is_sending |= getattr(self._backends[batch.replica], "sends_at_once", False)
            task = loop.create_task(self._run(batch, self._begin(batch)))
            self._running[task] = batch
            task.add_done_callback(self._running.pop)
            if self._overdue_timer is None and self.limits.batch_timeout is not None:
                self._overdue_timer = loop.call_later(self.limits.batch_timeout, self._end_overdue)
            self._tell(
                BatchLeft(
                    model=self.name,
                    number=batch.number,
                    items=len(batch),
                    requests=len(batch.parts),
                    reason=batch.reason,
                    waited=batch.longest_wait,
                    left_waiting=self._scheduler.waiting,
                    replica=self._name_of(batch.replica),
                )
            )
        ended = self._scheduler.collect_ended()
        if ended and is_sending:
            # A device that waits for its next batch must not wait for the callers of the last. The batch is
            # sent in the loop's next turn at the latest, and at the end of that turn uvloop writes it.
            loop.call_soon(loop.call_soon, self._deliver, ended)
        else:
            self._deliver(ended)
        self._set_timer(loop)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be woken in time. A timer that is early enough stays: a spare kick is cheaper than a new timer."""
        wakeup = self._scheduler.next_wakeup()
        if wakeup is None:
            return
        if self._timer is not None:
            if self._timer_due <= wakeup and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer_due = wakeup  # uvloop gives a handle without `when` for what is due in less than half a ms
        self._timer = loop.call_at(wakeup, self._wake, wakeup)

    def _wake(self, due: float) -> None:
        """The timer has rung. Loops round timers to a millisecond: early by less than that counts as due."""
        self._timer = None
        self._kick(max(due, self._now()))

    def _end_overdue(self) -> None:
        """Cancel the batches that take too long. One timer is enough: all may take the same time."""
        self._overdue_timer = None
        allowed = self.limits.batch_timeout
        assert allowed is not None
        since = self._now() - allowed + _TIMER_SECONDS
        for task, batch in self._running.items():
            if batch.taken_at > since:
                left = batch.taken_at - since
                self._overdue_timer = asyncio.get_running_loop().call_later(left, self._end_overdue)
                return
            if task not in self._overdue:
                self._overdue.add(task)
                task.add_done_callback(self._overdue.discard)
                task.cancel()

    def _begin(self, batch: Batch) -> Awaitable[Sequence[Out]]:
        """Have the backend run a batch. One that is no coroutine sends it before anything else is done."""
        try:
            return self._backends[batch.replica].run(batch.items, batch.group)
        except BaseException as error:
            return _raise(error)

    async def _run(self, batch: Batch, running: Awaitable[Sequence[Out]]) -> None:
        left_at = self._now()
        try:
            outcome = await self._outcome(running)
        except BaseException:  # cancelled, or the program ends: its callers get an answer all the same
            if _is_wanted(batch):
                self._complete(left_at, batch, ShuttingDown("shutting down", "the batch was interrupted"))
                self._deliver(self._scheduler.collect_ended())
            else:
                self._complete(left_at, batch, _given_up(batch, self._now() - left_at))
                self._kick()
            raise
        self._complete(left_at, batch, outcome)
        if self._scheduler.waiting:
            self._kick()
        else:  # there is nothing to send, so its callers come first
            self._deliver(self._scheduler.collect_ended())
            self._kick_soon(asyncio.get_running_loop())

    def _complete(self, left_at: float, batch: Batch, outcome: Sequence[Out] | BaseException) -> None:
        now = self._turn_at = self._now()
        self._scheduler.complete(now, batch, outcome)
        error = outcome if isinstance(outcome, BaseException) else None
        replica = self._name_of(batch.replica)
        self._tell(BatchEnded(self.name, batch.number, len(batch), now - left_at, error, replica))

    async def _outcome(self, running: Awaitable[Sequence[Out]]) -> Sequence[Out] | BaseException:
        try:
            return await running
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            if not task.cancelling():  # this task was not: something was that the function waited for
                return batch_error(error)
            if task not in self._overdue or task.uncancel():
                raise
            return BackendError(
                "the backend did not answer in time", f"a batch may take {self.limits.batch_timeout} s"
            )
        except CarpoolError as error:
            return error
        except BaseException as error:
            if _ends_the_program(error):
                raise
            return batch_error(error)

    def _now(self) -> float:
        if self._clock is None:
            self._clock = self._bind(asyncio.get_running_loop())
        return self._clock()

    def _bind(self, loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
        """Its queue, timers and tasks are all of one loop, whose clock this is; another would wait for ever."""
        if self._loop is not None:
            raise RuntimeError(
                f"{self!r} belongs to another event loop; make one in each loop, or use @carpool.batched, "
                "which does, or carpool.BlockingBatcher, which has a loop of its own"
            )
        self._loop = loop
        self._clock = _clock_of(loop)
        return self._clock

    def _deliver(self, ended: Sequence[Request]) -> None:
        """Hand requests that have ended to whoever waits for them."""
        if not ended:
            return
        now = self._now()
        latencies = []
        errors: list[BaseException] = []
        for request in ended:
            if request.error is None:
                latencies.append(now - request.arrived)
            else:
                errors.append(request.error)
        self._tell(RequestsEnded(self.name, latencies, errors))
        for request in ended:
            if request.deliver is not None:
                try:
                    request.deliver(request)
                except Exception:
                    logger.exception("a request could not be delivered")
        self._close_requests(len(ended))

    def _close_requests(self, count: int) -> None:
        self._open_requests -= count
        if self._idle is not None and not self._open_requests and not self._idle.done():
            self._idle.set_result(None)

    def _tell(self, fact: Fact) -> None:
        """Tell every observer a fact: in the loop's next turn, when what is sent in this one has left."""
        if self._observers:
            asyncio.get_running_loop().call_soon(self._tell_now, fact)

    def _tell_now(self, fact: Fact) -> None:
        """One that raises is logged and changes nothing."""
        for observer in self._observers:
            try:
                observer.observe(fact)
            except Exception:
                logger.exception("an observer failed on %s", type(fact).__name__)


def waits_for_itself(batcher: object) -> RuntimeError:
    """The error for a function that calls its own batcher and waits: for a slot, which it occupies."""
    return RuntimeError(
        f"{batcher!r} is called by its own function, whose batch would wait for itself for ever"
    )


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end; not at once, as one that has not begun would leave things undone."""
    tasks = list(tasks)
    for task in tasks:
        asyncio.get_running_loop().call_soon(task.cancel)
    if tasks:
        await asyncio.wait(tasks)


def _has_succeeded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _log_failure(start: asyncio.Task[None]) -> None:
    if not start.cancelled() and (error := start.exception()) is not None:
        logger.error("one of several backends cannot be started", exc_info=error)


async def _close(backends: Iterable[Backend[Any, Any]]) -> None:
    """Release all of them, at once; one that fails over it does not keep the others."""
    ends = await asyncio.gather(*(backend.close() for backend in backends), return_exceptions=True)
    for error in filter(None, ends):
        raise error


async def _raise(error: BaseException) -> Never:
    raise error


def _as_backends(
    backend: Backend[In, Out] | Sequence[Backend[In, Out]] | BatchFunction[In, Out], concurrency: int
) -> list[Backend[In, Out]]:
    if callable(backend):
        return [CallableBackend(backend, concurrency)]
    return list(backend) if isinstance(backend, Sequence) else [backend]


def _ends_the_program(error: BaseException) -> bool:
    """Whether an error is not about the batch: Ctrl-C comes to the main thread, and never to another.

    SystemExit does not end it: there are functions that exit over an input which they do not like.
    """
    is_interrupt = isinstance(error, KeyboardInterrupt) and (
        threading.current_thread() is threading.main_thread()
    )
    return is_interrupt or isinstance(error, GeneratorExit)  # or this coroutine is being closed


def _is_wanted(batch: Batch) -> bool:
    """Whether anybody waits for anything in it: a caller, or one who shares what is computed for another."""
    return not all(request.ended for request, _, _ in batch.parts)


def _given_up(batch: Batch, seconds: float) -> BackendError:
    """What became of a batch that was cancelled; callers that hang up must not hide a replica that hangs."""
    if seconds > max(_HANGS_SECONDS, _HANGS * (batch.expected_at - batch.taken_at)):
        return Unreachable("the backend does not answer", "nobody waits for the batch any more")
    return Abandoned("nobody waits for the batch any more")


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock of the loop's timers, unrounded.

    uvloop rounds the system's monotonic clock to a millisecond and keeps it for a whole turn, so where the
    loop's clock is that one it is read directly. A loop in virtual time has a clock of its own.
    """
    is_monotonic = abs(loop.time() - time.monotonic()) < 1.0
    return time.monotonic if is_monotonic else loop.time


def _one_callers_own(error: BaseException) -> BaseException:
    """An exception that only this caller raises: raising one object in many tasks mixes their tracebacks.

    The class may be a user's own, whose `__init__` takes what it likes; `copy` would call it with `args`.
    """
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        error = batch_error(error)  # a future refuses to carry it, or it would end more than the caller
    if not isinstance(error, CarpoolError):
        return error
    try:
        own = type(error).__new__(type(error), *error.args)
        own.__dict__.update(error.__dict__)
    except Exception:  # its `__new__` takes something else: shared is better than lost
        return error
    own.__cause__ = error.__cause__
    return own
