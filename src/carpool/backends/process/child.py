"""The worker process: one model, one batch at a time, until the parent hangs up.

While a large batch runs, the next is read and prepared in a second thread.

It is blocking code on one socket, on purpose: what a model does must never share a thread with an event
loop. Run as `python -m carpool.backends.process.child SOCKET MEMORY...`, all of them file descriptors.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from math import inf
from typing import Any, NoReturn, Protocol, TypeAlias, TypeGuard

import msgspec

from carpool.backends.process import frames, trace
from carpool.backends.process.shared import Reader
from carpool.errors import BadInput, CarpoolError, ModelError, Unsupported
from carpool.wire.call import Call, Vector

_AT_ONCE = 64 * 1024  # bytes to receive: a batch of short texts and its prefix come whole

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

    def read(self) -> tuple[frames.ToChild, memoryview] | None:
        """The next message and the items that belong to it; `None` once the parent has hung up."""
        if (prefix := self._take(frames.PREFIX_BYTES)) is None:
            return None
        length, payload = frames.lengths(prefix)
        if (body := self._take(length + payload)) is None:
            return None
        message, items = frames.decode_to_child(body[:length]), body[length:]
        if isinstance(message, frames.Run) and message.memory is not None:
            items = self._memories[message.memory].read(sum(message.sizes))
        return message, items

    def send(self, message: frames.FromChild) -> None:
        """A message to the parent."""
        self._connection.sendall(frames.encode(message))

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
    except Exception as error:
        link.send(_refusal(error))
        return
    link.send(frames.Ready(model.info))
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
    match link.read():
        case (frames.Run() as batch, payload):
            return batch, prepared(model, batch.call, frames.cut(payload, batch.sizes))
        case _:
            return None


def load(loader: str, arguments: dict[str, Any], device: str = "") -> Model:
    """Import "module:function" and call it; with the device, where it takes one."""
    module, _, name = loader.partition(":")
    function = getattr(importlib.import_module(module), name)
    if _takes_device(function):
        arguments = {**arguments, "device": device} if device else arguments
    elif device not in ("", "cpu"):
        raise ModelError(f"the model cannot run on {device}", "it runs on the CPU; leave out `devices`")
    model: Model = function(**arguments)
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
    except Exception as error:
        return partial(_fail, error)


def _fail(error: Exception) -> NoReturn:
    raise error


def answer(number: int, run: Work) -> frames.FromChild:
    """Run one batch; whatever the model raises becomes a message."""
    try:
        return _answer(number, run())
    except Unsupported as error:
        return frames.Rejected(number, error.message, error.detail)
    except Exception as error:
        is_too_large, traceback = _is_out_of_memory(error), trace.formatted(error)
        return frames.Failed(number, type(error).__name__, str(error), is_too_large, traceback)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error and numpy's, torch's, and what native libraries say who have no type for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


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
        {place: str(result) for place, result in enumerate(results) if isinstance(result, BadInput)},
        {place: _named(error) for place, error in failed.items()},
        next(filter(None, map(trace.formatted, failed.values())), ""),
    )


def _is_failure(result: bytes | Exception) -> TypeGuard[Exception]:
    return isinstance(result, Exception) and not isinstance(result, BadInput)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refusal(error: Exception) -> frames.Refused:
    if isinstance(error, CarpoolError):
        return frames.Refused(error.message, error.detail)
    what = f"the model cannot be loaded: {type(error).__name__}"
    return frames.Refused(what, str(error), trace.formatted(error))


def main() -> None:
    """Serve on the file descriptors that the parent has passed: a socket's and those of shared memories."""
    # The parent decides when to stop, by hanging up: a signal to the whole process group (Ctrl-C, a service
    # manager) must not kill the worker before everything that was admitted is answered.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with socket.socket(fileno=int(sys.argv[1])) as connection:
            serve(Link(connection, [Reader(int(fd)) for fd in sys.argv[2:]]))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the parent is gone, and with it everyone who could want an answer


if __name__ == "__main__":
    main()
