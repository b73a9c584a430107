"""The worker process: one model, one batch at a time, until the parent hangs up.

While a large batch runs, the next is read and prepared in a second thread.

It is blocking code on one socket, on purpose: what a model does must never share a thread with an event
loop. Run as `python -m carpool.backends.process.child SOCKET MEMORY...`, all of them file descriptors.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from math import inf
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeAlias, TypeGuard

import msgspec

from carpool import memory
from carpool.backends.process import frames, trace
from carpool.backends.process.shared import Reader
from carpool.errors import BadInput, CarpoolError, ModelError, Unsupported
from carpool.wire.call import Call, Vector

_AT_ONCE = 64 * 1024  # bytes to receive: a batch of short texts and its prefix come whole

_LOOK_MS = 1000  # between two looks at whether the model itself has closed the socket, which wakes nobody
_LINGER_SECONDS = 5.0  # for a model to finish once nobody is there any more; the parent waits for twice as long

# What the parent's terminal, service manager or container sends to every process that is to stop.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PONG = frames.encode(frames.Pong())

# C++'s own words, CUDA's, and ONNX Runtime's.
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "Failed to allocate memory")


Work: TypeAlias = "Callable[[], Sequence[bytes | Exception]]"


class Model(Protocol):
    """What a loader returns: `info` goes to the parent, `run` gives one encoded result per item.

    A model that can do more than one thing takes a `Call` as a second argument, where the usual is not what is
    asked; it raises `Unsupported` for what it cannot do. A result may be a `Vector`, a `BadInput` for an
    item that it will not take, or another exception where it failed on that item alone. Items are values;
    asked to `infer`, they are bytes, as `wire/payload.py` has them, which are not to be kept: they may lie in
    memory where the next batch will be.

    It may have `prepare` as well, which takes what `run` takes, does what can be done while another batch runs,
    and returns what runs the batch: reading and stacking inputs, copying them to a device. It is then called
    for each batch in the place of `run`, in another thread while a large one runs, or one of `prepare_from`
    items, where the model says so.
    """

    @property
    def info(self) -> dict[str, Any]: ...  # noqa: D102

    def run(self, items: Sequence[Any], /) -> Sequence[bytes | Exception]: ...  # noqa: D102


class Link:
    """The worker's end of what it shares with the parent: a socket, and memory for what is large."""

    def __init__(self, connection: socket.socket, memories: Sequence[Reader]) -> None:
        self._connection = connection
        self._memories = memories
        self._received = b""  # of frames to come

    def read(self) -> tuple[frames.ToChild, list[memoryview]] | None:
        """The next message and the items that belong to it; `None` once the parent has hung up."""
        if (prefix := self._take(frames.PREFIX_BYTES)) is None:
            return None
        length, payload = frames.lengths(prefix)
        if (body := self._take(length + payload)) is None:
            return None
        message = frames.decode_to_child(body[:length])
        if not isinstance(message, frames.Run):
            return message, []
        if message.memory is None:
            return message, frames.cut(body[length:], message.sizes)
        return message, self._memories[message.memory].read(message.starts, message.sizes)

    def send(self, frame: bytes) -> None:
        """A message to the parent, as a frame."""
        self._connection.sendall(frame)

    def close(self) -> None:
        """Have the thread that reads, if one does, read the end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)

    def _take(self, length: int) -> memoryview | None:
        """So many of the bytes that come next; `None` if the parent hangs up before."""
        received = self._received or self._connection.recv(_AT_ONCE)
        taken = memoryview(received)[:length] if len(received) >= length else self._fill(received, length)
        self._received = received[length:]
        return taken

    def _fill(self, received: bytes, length: int) -> memoryview | None:
        """What was received of so many bytes, and the others, in memory of their own."""
        buffer = memoryview(bytearray(length))
        buffer[: len(received)] = received
        filled = len(received)
        while filled < length:
            if not (count := self._connection.recv_into(buffer[filled:])):
                return None
            filled += count
        return buffer.toreadonly()


def serve(link: Link) -> None:
    """Load the model that the parent asks for, then run its batches until it hangs up."""
    request = link.read()
    if request is None or not isinstance(what := request[0], frames.Load):
        return
    try:
        if what.cores:  # before anything is imported that counts them
            os.sched_setaffinity(0, what.cores)
        model = load(what.loader, what.arguments, what.device)
        ready = frames.encode(frames.Ready(model.info))
    except BaseException as error:  # sys.exit() is no word to an operator either
        link.send(frames.encode(_refusal(error)))
        return
    link.send(ready)
    with ThreadPoolExecutor(1, "carpool-next") as ahead, closing(link):
        _serve(link, model, ahead)


def _serve(link: Link, model: Model, ahead: Executor) -> None:
    """Run batches. A large one is seldom alone: the next is read and prepared while it runs.

    With small ones that would cost more than it gains: two changes of threads a batch.
    """
    prepare_from = getattr(model, "prepare_from", inf)
    upcoming = _read(link, model)
    while upcoming is not None:
        batch, run = upcoming
        is_large = batch.memory is not None or len(batch.sizes) >= prepare_from
        following = ahead.submit(_read, link, model) if is_large and hasattr(model, "prepare") else None
        link.send(answer(batch.number, run))
        del upcoming, run  # and what they hold, while nothing else is there to do
        upcoming = _read(link, model) if following is None else following.result()


def _read(link: Link, model: Model) -> tuple[frames.Run, Work] | None:
    """The next batch, and what runs it; `None` once the parent has hung up."""
    while True:
        match link.read():
            case (frames.Run() as batch, items):
                return batch, prepared(model, batch.call, items)
            case (frames.Ping(), _):  # nothing runs that is still to be answered
                link.send(_PONG)
            case _:
                return None


def load(loader: str, arguments: dict[str, Any], device: str = "") -> Model:
    """Import "module:function" and call it; with the device, where it takes one.

    From then on the process keeps the memory that it frees: every batch needs as much for what a network
    computes between its layers, which torch gives back after each of them.
    """
    module, _, name = loader.partition(":")
    function = getattr(importlib.import_module(module), name)
    if _takes_device(function):
        arguments = {**arguments, "device": device} if device else arguments
    elif device not in ("", "cpu"):
        raise ModelError(f"the model cannot run on {device}", "it runs on the CPU; leave out `devices`")
    model: Model = function(**arguments)
    memory.keep_all()
    return model


def _takes_device(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == "device" or each.kind is each.VAR_KEYWORD for each in parameters)


def prepared(model: Model, call: Call | None, items: Sequence[memoryview]) -> Work:
    """What runs a batch on the model, and raises what was wrong with it until then."""
    asked = () if call is None else (call,)
    try:
        are_bodies = call is not None and call.operation == "infer"
        values = items if are_bodies else [msgspec.json.decode(item) for item in items]
        if hasattr(model, "prepare"):
            work: Work = model.prepare(values, *asked)
            return work
        return partial(model.run, values, *asked)
    except BaseException as error:
        return partial(_fail, error)


def _fail(error: BaseException) -> NoReturn:
    raise error


def answer(number: int, run: Work) -> bytes:
    """Run one batch; the frame with its results, or with what the model raised, be it to exit."""
    try:
        return frames.encode(_answer(number, run()))
    except Unsupported as error:
        return frames.encode(frames.Rejected(number, _said(error.message), _said(error.detail)))
    except BaseException as error:
        kind, message = type(error).__name__, _said(error)
        is_too_large = _is_out_of_memory(error, message)
        return frames.encode(frames.Failed(number, _said(kind), message, is_too_large, trace.formatted(error)))


def _said(something: object) -> str:
    """What an exception says, as a text that can be sent: it may have no text, or one that is no Unicode."""
    try:
        text = str(something)
    except Exception as error:
        text = f"its text cannot be had: {type(error).__name__}"
    return text.encode("utf-8", "replace").decode()


def _is_out_of_memory(error: BaseException, message: str) -> bool:
    """Python's own error and numpy's, torch's, and what native libraries say who have no type for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def _answer(number: int, results: Sequence[bytes | Exception]) -> frames.Answer:
    if set(map(type, results)) == {bytes}:
        return frames.Answer(number, list(results))  # type: ignore[arg-type]  # as was just seen
    are_vectors = any(isinstance(result, Vector) for result in results)
    vectors = [result if isinstance(result, Vector) else Vector() for result in results] if are_vectors else []
    failed = {place: result for place, result in enumerate(results) if _is_failure(result)}
    return frames.Answer(
        number,
        [b"" if isinstance(result, Exception) else bytes(result) for result in results],
        [vector.tokens for vector in vectors],
        [vector.floats for vector in vectors],
        {place: _said(result) for place, result in enumerate(results) if isinstance(result, BadInput)},
        {place: _named(error) for place, error in failed.items()},
        next(filter(None, map(trace.formatted, failed.values())), ""),
    )


def _is_failure(result: bytes | Exception) -> TypeGuard[Exception]:
    return isinstance(result, Exception) and not isinstance(result, BadInput)


def _named(error: Exception) -> str:
    kind, message = _said(type(error).__name__), _said(error)
    return f"{kind}: {message}" if message else kind


def _refusal(error: BaseException) -> frames.Refused:
    if isinstance(error, CarpoolError):
        return frames.Refused(_said(error.message), _said(error.detail))
    what = f"the model cannot be loaded: {_said(type(error).__name__)}"
    return frames.Refused(what, _said(error), trace.formatted(error))


def main() -> None:
    """Serve on the file descriptors that the parent has passed: a socket's and those of shared memories."""
    _let_signals_pass()
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_outlast, args=(connection.fileno(),), name="carpool-parent", daemon=True).start()
    status = 0
    try:
        serve(Link(connection, [Reader(int(fd)) for fd in sys.argv[2:]]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, and with it everyone who could want an answer
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    _end(status)


def _let_signals_pass() -> None:
    """The parent decides when to stop, by hanging up: what was admitted is answered before.

    So a service manager that signals every process must not end this one. By a handler: what is ignored stays
    so in all that a model starts, which `terminate` could then not end.
    """
    for number in _STOPS:
        signal.signal(number, _let_pass)
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOPS),  # none gets lost in between
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOPS),
        after_in_child=_let_signals_end,
    )


def _let_pass(number: int, frame: FrameType | None) -> None:
    """A signal has come; it is not for this process to act on."""


def _let_signals_end() -> None:
    """In a process that the model has forked. Where it runs another program, handlers are gone anyway."""
    for number in _STOPS:
        if signal.getsignal(number) is _let_pass:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _outlast(fd: int) -> None:
    """Wait until the parent has hung up or died, and a while: then end, whatever the model still does."""
    hang_up = select.poll()
    hang_up.register(fd, 0)  # of hanging up it tells unasked
    while not hang_up.poll(_LOOK_MS):
        pass
    threading.Event().wait(_LINGER_SECONDS)
    _end(1)


def _end(status: int) -> NoReturn:
    """End the process and those that the model has started; no thread of the model's is waited for."""
    if os.getpgrp() == os.getpid():  # as it is where the parent has started it
        os.killpg(0, signal.SIGTERM)
    os._exit(status)


if __name__ == "__main__":
    main()
