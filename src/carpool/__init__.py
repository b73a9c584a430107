"""Auto-batching for machine-learning inference: requests that arrive alone leave together."""

from __future__ import annotations

from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.errors import (
    BackendError,
    BadInput,
    BatchFailed,
    BatchTooLarge,
    CallerError,
    CarpoolError,
    ConfigError,
    MissingExtra,
    ModelError,
    NotFound,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
    WrongMethod,
    WrongType,
)
from carpool.runtime.batcher import Batcher
from carpool.runtime.blocking import BlockingBatcher
from carpool.runtime.decorator import batched

__all__ = [
    "BackendError",
    "BadInput",
    "BatchFailed",
    "BatchPolicy",
    "BatchTooLarge",
    "Batcher",
    "BlockingBatcher",
    "CallerError",
    "CarpoolError",
    "ConfigError",
    "Limits",
    "MissingExtra",
    "ModelError",
    "NotFound",
    "Overloaded",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "WrongMethod",
    "WrongType",
    "batched",
]
