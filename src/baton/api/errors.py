"""Every failure as one HTTP answer in OpenAI's shape.

Invariant: a client's mistake is a 4xx with the field's name; a 5xx is ours, and the unexpected
ones are logged with a traceback and answered without it.
"""

from typing import Final

import msgspec
from aiohttp import web

from baton.core.errors import EngineDead, RequestError, TransferError

CLIENT_CLOSED: Final = 499
"""nginx's status for a request that its client gave up; here: aborted on request."""


class GenerationFailed(Exception):
    """The engine ended a sample with ABORT or ERROR."""

    def __init__(self, message: str, status: int, code: str):
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    CLIENT_CLOSED: "request_aborted",
}


def is_expected(error: BaseException) -> bool:
    """Whether an error is a normal outcome of serving, as opposed to a bug of ours."""
    return isinstance(
        error, RequestError | GenerationFailed | EngineDead | TransferError | web.HTTPException
    )


def describe(error: BaseException) -> tuple[int, ErrorBody]:
    """The HTTP status and body for any error."""
    match error:
        case RequestError():
            return _answer(error.status, error.message, error.code, error.param)
        case GenerationFailed():
            return _answer(error.status, error.message, error.code)
        case EngineDead():
            return _answer(503, str(error), "engine_dead")
        case TransferError():
            return _answer(503, str(error), f"transfer_{error.stage}_failed")
        case web.HTTPException():
            return _answer(error.status, error.reason, "http_error")
        case _:
            return _answer(
                500, "internal error; the server's log has it under this x-request-id", "internal"
            )


def error_response(error: BaseException) -> web.Response:
    status, body = describe(error)
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


def _answer(
    status: int, message: str, code: str, param: str | None = None
) -> tuple[int, ErrorBody]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, ErrorBody(ErrorDetail(message=message, type=kind, param=param, code=code))
