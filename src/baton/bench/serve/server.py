"""What the server says about itself before the load: its models and its version.

Elsewhere: sending load (load.py).
"""

from typing import Any, Final

import msgspec

from baton.bench.serve.http_client import HttpClient
from baton.bench.serve.http_response import BadResponse
from baton.core.errors import BatonError

_VERSION_PATHS: Final = ("/server_info", "/get_server_info", "/version", "/props")
_VERSION_FIELDS: Final = ("version", "build_info")
_SHOWN_FIELDS: Final = (
    "model_path",
    "disaggregation_mode",
    "chunked_prefill_size",
    "max_running_requests",
)


class ServerError(BatonError, RuntimeError):
    """The server cannot be reached or does not answer as one."""


async def first_model(client: HttpClient, url: str) -> str:
    """Name of the first model that is served. Raises ServerError."""
    try:
        status, body = await client.fetch("GET", "/v1/models")
    except (OSError, BadResponse) as error:
        raise ServerError(
            f"cannot reach {url} ({error}); start a server with `baton serve`, or say where it is"
            " with --base-url or --host and --port"
        ) from error
    try:
        model: str = msgspec.json.decode(body)["data"][0]["id"]
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise ServerError(
            f"{url}/v1/models answered {status} without a model; name one with --model"
        ) from error
    return model


async def describe(client: HttpClient) -> dict[str, Any]:
    """Version and settings, as far as the server tells them: servers differ in where."""
    found: dict[str, Any] = {}
    for path in _VERSION_PATHS:
        facts = await _ask(client, path)
        for name in (*_VERSION_FIELDS, *_SHOWN_FIELDS):
            if isinstance(facts.get(name), str | int):
                found.setdefault(name, facts[name])
        if any(name in found for name in _VERSION_FIELDS):
            break
    return found


async def flush_cache(client: HttpClient, url: str) -> None:
    """Raises ServerError."""
    try:
        status, body = await client.fetch("POST", "/flush_cache")
    except (OSError, BadResponse) as error:
        raise ServerError(f"cannot reach {url}/flush_cache: {error}") from error
    if status != 200:
        reason = body[:200].decode(errors="replace")
        raise ServerError(
            f"{url}/flush_cache answered {status} ({reason}); leave out --flush-cache"
        )


async def _ask(client: HttpClient, path: str) -> dict[str, Any]:
    try:
        status, body = await client.fetch("GET", path)
        answer = msgspec.json.decode(body) if status == 200 else {}
    except (OSError, BadResponse, msgspec.DecodeError):
        return {}
    return answer if isinstance(answer, dict) else {}
