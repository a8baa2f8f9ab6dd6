"""Every error Baton raises on purpose.

    BatonError
    ├── ConfigError        a flag or file of the operator is wrong (ValueError)
    ├── CheckpointError    a model's files are damaged or incomplete (ValueError)
    ├── UnsupportedModel   an architecture, tensor type or option we do not have (ValueError)
    ├── RequestError       a client's request is wrong; becomes an HTTP 4xx (ValueError)
    ├── EngineDead         the engine process is gone; becomes an HTTP 503
    └── TransferError      KV could not be handed over; names the stage and the peer

Invariant: messages say which field, which value, and how to mend it. What only a bug can
cause is an `assert`, never one of these.
"""


class BatonError(Exception):
    """Base of all errors that Baton raises on purpose."""


class ConfigError(BatonError, ValueError):
    """An operator's option is invalid or contradicts another."""


class CheckpointError(BatonError, ValueError):
    """A checkpoint cannot be read: missing, truncated, or contradicting itself."""


class UnsupportedModel(BatonError, ValueError):
    """The checkpoint is sound but needs something Baton does not implement; names it."""


class RequestError(BatonError, ValueError):
    """A client's request is invalid.

    `param` is the offending field (dotted path, None when it is the whole body), `status` the
    HTTP status to answer with, `code` a stable machine-readable reason.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        code: str = "invalid_value",
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class EngineDead(BatonError, RuntimeError):
    """The engine process behind this worker has ended; nothing can be served."""


class TransferError(BatonError, RuntimeError):
    """A hand-over of KV blocks failed at `stage` with `peer`."""

    def __init__(self, message: str, *, stage: str, peer: str):
        super().__init__(f"{message} (stage {stage}, peer {peer})")
        self.stage = stage
        self.peer = peer
