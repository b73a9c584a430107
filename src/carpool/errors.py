"""Every error that carpool raises. The type says whose fault it is, `status` says so in HTTP.

    CarpoolError
    ├── ConfigError            the operator's: a setting is unknown, of the wrong type or out of range
    │   ├── ModelError         a model's files are missing or are not what they should be
    │   └── MissingExtra       an optional dependency is not installed
    ├── CallerError            the caller's: retrying the same request will not help
    │   ├── BadInput     400   the body is not what the route takes
    │   │   └── Unsupported    it may be, but the model or the upstream cannot do that
    │   ├── NotAllowed   401   the upstream does not serve whoever asks; also 403
    │   ├── NotFound     404   no such route
    │   ├── WrongMethod  405   the route exists, the method does not
    │   ├── TooLarge     413   the body is over the limit, or has more inputs than the queue may hold
    │   └── WrongType    415   the content type is not one the route reads
    ├── TimedOut         408   the request could not be answered in time and was not run
    ├── Overloaded       429   the queue is full or too long for it; `retry_after` says when to come back
    ├── BackendError     502   the model or the upstream failed on the batch, whatever was in it
    │   ├── BatchFailed        it failed on what was in it, and would again: one of its items may be to blame
    │   │   └── BatchRefused   it said that it does not take that; what it was is a `BadInput`, once it is found
    │   ├── BatchTooLarge      it refused the batch for its size, or ran out of memory over it
    │   ├── Unreachable        it did not take the batch, or was lost over it: another try may succeed
    │   │   └── Crashed        the process that ran the batch has ended; twice, and it may be of the batch
    │   │       └── Hung       it had to be ended, as it took too long
    │   └── Abandoned          nobody waits for the batch any more, so it was ended; no caller ever sees it
    └── Unavailable      503   nothing can serve now: starting, no replica
        └── ShuttingDown       this server goes away; another may serve

`Raised` is in no tree: it is never raised, but stands behind a failure for what a model raised elsewhere.

It knows nothing of HTTP beyond the number, and nothing of how a dialect writes an error down.
"""

from __future__ import annotations


class CarpoolError(Exception):
    """The root of the tree. `message` is for the caller, `detail` says what is allowed or what to do."""

    status = 500

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message, detail)
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message}: {self.detail}" if self.detail else self.message


class ConfigError(CarpoolError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(ConfigError):
    """A model's files are missing, damaged or not what they should be."""


class MissingExtra(ConfigError, ImportError):
    """An optional dependency is not installed; the message names the line that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", f"pip install 'carpool[{extra}]'")


class CallerError(CarpoolError):
    """The request is wrong; sending it again will not help."""

    status = 400


class BadInput(CallerError):
    """The body is not what the route takes."""


class Unsupported(BadInput):
    """The model or the upstream that is served cannot do what was asked of it."""


class NotAllowed(CallerError):
    """The upstream does not take the caller's credentials; `status` is its own, 401 or 403."""

    def __init__(self, message: str, detail: str = "", status: int = 401) -> None:
        super().__init__(message, detail)
        self.status = status


class NotFound(CallerError):
    """No such route."""

    status = 404


class WrongMethod(CallerError):
    """The route exists, but not for this method. `allowed` lists the methods it has, as HTTP writes them."""

    status = 405

    def __init__(self, message: str, detail: str = "", allowed: str = "") -> None:
        super().__init__(message, detail)
        self.allowed = allowed


class TooLarge(CallerError):
    """The body is over the limit of its route, or has more inputs than the queue may hold."""

    status = 413


class WrongType(CallerError):
    """The content type is not one that the route reads."""

    status = 415


class TimedOut(CarpoolError):
    """The request could not be answered in time; it was not run."""

    status = 408


class Overloaded(CarpoolError):
    """The queue is full. `retry_after` is in seconds; 0 where an upstream that is too busy named no time."""

    status = 429

    def __init__(self, message: str, detail: str = "", retry_after: int = 1) -> None:
        super().__init__(message, detail)
        self.retry_after = retry_after


class BackendError(CarpoolError):
    """The model or the upstream failed on the batch; `__cause__` is what it raised, where it raised here."""

    status = 502


class BatchFailed(BackendError):
    """The backend failed on what was in the batch, and would again; one bad item is enough for that."""


class BatchRefused(BatchFailed):
    """The backend does not take what was in the batch; of an item alone, that is a `BadInput`."""


class BatchTooLarge(BackendError):
    """The backend refused the batch for its size, or ran out of memory over it; a smaller one may pass."""


class Raised(Exception):
    """What a model raised in its own process: the `__cause__` of the failure that callers are told of.

    `traceback` is for whoever runs the model, and never for a caller.
    """

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(kind, message, traceback)
        self.kind = kind
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{self.kind}: {self.message}"


class Unreachable(BackendError):
    """The backend cannot be reached or was lost over the batch; nothing that was in it is to blame."""


class Crashed(Unreachable):
    """The process that ran the batch died or had to be ended over it; twice, and one item may be to blame."""


class Hung(Crashed):
    """The process that ran the batch took longer than a batch may take, so it was ended."""


class Abandoned(BackendError):
    """All who waited for the batch have gone, so it was ended; it says nothing of the backend."""


class Unavailable(CarpoolError):
    """Nothing can serve now: the server is starting, or has no replica that answers.

    `retry_after` is in seconds, where whoever said so named a time.
    """

    status = 503

    def __init__(self, message: str, detail: str = "", retry_after: int | None = None) -> None:
        super().__init__(message, detail)
        self.retry_after = retry_after


class ShuttingDown(Unavailable):
    """The server is going away: nothing new is taken, and what was interrupted is not tried again."""
