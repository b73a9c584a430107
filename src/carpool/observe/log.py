"""The log: readable on a terminal, one JSON object a line elsewhere. Never a payload.

Only programs call `configure_logging`; the library uses the standard `logging` and configures nothing.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import TextIO

import structlog

from carpool.errors import Abandoned, CallerError, Overloaded, Raised
from carpool.observe.observer import BatchEnded, BatchLeft, Fact, RequestRefused, RequestsEnded

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send everything that this process logs, libraries included, to `stream` (standard error)."""
    stream = sys.stderr if stream is None else stream
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=not stream.isatty()),
    ]
    render: list[structlog.types.Processor]
    if stream.isatty():
        render = [structlog.dev.ConsoleRenderer()]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("asyncio", "uvicorn"):  # their DEBUG and INFO are about themselves, not about requests
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


class LogObserver:
    """Writes facts to the log: a batch at DEBUG with why it left, failures at WARNING."""

    def __init__(self) -> None:
        self._log = logging.getLogger("carpool.batch")

    def observe(self, fact: Fact) -> None:
        """Write one fact."""
        match fact:
            case BatchLeft():
                if self._log.isEnabledFor(logging.DEBUG):
                    self._log.debug("batch left", extra=_describe_departure(fact))
            case BatchEnded():
                self._log_end(fact)
            case RequestsEnded(errors=errors) if errors:
                names = Counter(type(error).__name__ for error in errors)
                self._log.debug("requests failed", extra={"model": fact.model, "errors": dict(names)})
            case RequestRefused():
                level = logging.DEBUG if isinstance(fact.error, CallerError | Overloaded) else logging.INFO
                self._log.log(level, "request refused", extra={"model": fact.model, "error": str(fact.error)})

    def _log_end(self, fact: BatchEnded) -> None:
        seconds = round(fact.seconds, 4)
        extra: dict[str, object] = {"model": fact.model, "replica": fact.replica}
        extra |= {"batch": fact.number, "items": fact.items, "seconds": seconds}
        if fact.error is None or isinstance(fact.error, Abandoned):
            self._log.debug("batch ended" if fact.error is None else "batch given up", extra=extra)
            return
        extra["error"] = str(fact.error)
        cause = fact.error.__cause__
        if cause is not None:
            extra["cause"] = repr(cause)
        if isinstance(cause, Raised) and cause.traceback:
            extra["exception"] = cause.traceback  # as structlog calls it, and a terminal shows it
        self._log.warning("batch failed", extra=extra)


def _describe_departure(fact: BatchLeft) -> dict[str, object]:
    return {
        "model": fact.model,
        "replica": fact.replica,
        "batch": fact.number,
        "items": fact.items,
        "requests": fact.requests,
        "why": fact.reason,
        "oldest_waited_ms": round(fact.waited * 1000, 2),
        "left_waiting": fact.left_waiting,
    }
