"""Reading a JSON body into its schema, with errors that say which field is wrong.

Invariant: whatever bytes a client sends, the outcome is a struct or a RequestError.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
from aiohttp import web

from baton.core.errors import RequestError

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

LARGE_BODY_BYTES: Final = 32 * 1024
"""About ten milliseconds of tokenizing."""

_PATH_SUFFIX: Final = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING_FIELD: Final = re.compile(r"missing required field `(?P<name>[^`]+)`")


class BodyReader(Generic[S]):
    """Decodes the bodies of one route."""

    def __init__(self, schema: type[S]):
        self._decoder = msgspec.json.Decoder(schema)

    async def read(self, request: web.Request) -> S:
        """Raises RequestError 400 for malformed bodies, 413 for those beyond the app's limit."""
        return self.decode(await read_bytes(request))

    def decode(self, body: bytes) -> S:
        if not body.strip():
            raise RequestError("the body is empty; send a JSON object", code="invalid_json")
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_shape(str(error)) from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise RequestError(
                f"the body is not valid JSON: {error}; send one UTF-8 encoded JSON object",
                code="invalid_json",
            ) from None
        except RecursionError:
            raise RequestError(
                "the body is nested too deeply; flatten it", code="invalid_json"
            ) from None


async def off_loop_if_large(request: web.Request, work: Callable[[], T]) -> T:
    """Do `work` on the request's body, in a thread when the body is large: tokenizing megabytes
    on the event loop would stall every stream of this worker."""
    length = request.content_length
    if length is not None and length <= LARGE_BODY_BYTES:
        return work()
    return await asyncio.to_thread(work)


async def read_bytes(request: web.Request) -> bytes:
    limit = request.client_max_size
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(f"{length} bytes", limit)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(f"more than {limit} bytes", limit) from None
    except web.RequestPayloadError as error:
        raise RequestError(
            f"the body could not be read: {' '.join(str(error).split())}; "
            "check its encoding and length",
            code="invalid_body",
        ) from None


def _too_large(size: str, limit: int) -> RequestError:
    return RequestError(
        f"the body is {size}; the limit is {limit} bytes (set by the server's max_body_bytes)",
        status=413,
        code="body_too_large",
    )


def _wrong_shape(message: str) -> RequestError:
    path = _PATH_SUFFIX.search(message)
    param = path["path"] if path else ""
    text = message[: path.start()] if path else message
    missing = _MISSING_FIELD.search(message)
    if missing:
        param = f"{param}.{missing['name']}" if param else missing["name"]
        text = "this field is required"
    return RequestError(f"{param or 'the body'}: {text}", param=param or None, code="invalid_type")
