"""The id of one HTTP exchange: the client's x-request-id where it is sane, else a new one.

Invariant: every answer carries its id; the engine's ids are made from it when the body has no rid.
"""

import re
import secrets
from typing import Final

from aiohttp import web

from baton.core.request import is_sane_request_id

HEADER: Final = "X-Request-ID"
ATTEMPT_HEADER: Final = "X-Baton-Attempt"
"""A router's second, third … attempt at one request, after workers failed it."""
_ATTEMPT: Final = re.compile(r"[0-9]{1,4}")
REQUEST_ID: Final = web.RequestKey("request_id", str)


def assign_request_id(request: web.Request) -> str:
    asked = request.headers.get(HEADER, "")
    request_id = asked if is_sane_request_id(asked) else secrets.token_hex(16)
    request[REQUEST_ID] = request_id
    return request_id


def engine_base_id(request: web.Request) -> str:
    """An id for the engine, never used before: clients and proxies may repeat an x-request-id,
    even while its first request is still being ended, so theirs gets a suffix."""
    request_id = request[REQUEST_ID]
    if request.headers.get(HEADER) == request_id:
        return f"{request_id}.{secrets.token_hex(4)}"
    return request_id


def attempt_suffix(request: web.Request) -> str:
    """What sets the ids of a later attempt apart: a worker that the router has given up, or hung up
    on this moment, may still be at an earlier one of the same `rid`."""
    attempt = request.headers.get(ATTEMPT_HEADER, "")
    return f"~{attempt}" if _ATTEMPT.fullmatch(attempt) else ""
