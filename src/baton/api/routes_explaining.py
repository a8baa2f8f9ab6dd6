"""Routes that say where time went: profiles, as SGLang's, and one request explained.

Elsewhere: what is said (explaining.py).
"""

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from baton.api.explaining import explain, start_profile, stop_profile
from baton.api.state import SERVICE
from baton.core.errors import RequestError

EXPLAIN_PATH: Final = "/explain/{request_id:.+}"

_KNOWN_FIELDS: Final = frozenset(
    ("output_dir", "start_step", "num_steps", "activities", "profile_by_stage", "with_stack",
     "record_shapes", "profile_id", "merge_profiles", "profile_prefix", "profile_stages")
)  # fmt: skip
"""SGLang's. All but num_steps have no meaning here."""


def add_explaining_routes(app: web.Application) -> None:
    app.router.add_get(EXPLAIN_PATH, explain_request)
    for method in ("GET", "POST"):
        app.router.add_route(method, "/start_profile", start)
        app.router.add_route(method, "/stop_profile", stop)


async def explain_request(request: web.Request) -> web.Response:
    answer = await explain(request.app[SERVICE], request.match_info["request_id"])
    return _json(answer)


async def start(request: web.Request) -> web.Response:
    num_steps, notes = read_profile_body(await request.read())
    await start_profile(request.app[SERVICE], num_steps)
    return _json({"success": True, "message": "profiling", "notes": notes})


async def stop(request: web.Request) -> web.Response:
    """The answer is the trace."""
    trace = await stop_profile(request.app[SERVICE])
    body = await asyncio.to_thread(msgspec.json.encode, trace)
    return web.Response(body=body, content_type="application/json")


def read_profile_body(body: bytes) -> tuple[int | None, list[str]]:
    """`num_steps`, and what is said about the other fields. Raises RequestError."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any]) if body.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is no JSON object: {error}") from error
    unknown = sorted(set(fields) - _KNOWN_FIELDS)
    if unknown:
        raise RequestError(
            f"{unknown[0]} is no field of /start_profile; give num_steps, or no body at all",
            param=unknown[0],
        )
    num_steps = fields.pop("num_steps", None)
    is_number = isinstance(num_steps, int) and not isinstance(num_steps, bool) and num_steps > 0
    if num_steps is not None and not is_number:
        raise RequestError(
            f"num_steps is {num_steps!r}; it must be a whole number from 1, or be left out to "
            "record until /stop_profile",
            param="num_steps",
        )
    notes = [f"{name} is ignored" for name, value in fields.items() if value is not None]
    if fields.get("output_dir") is not None:
        notes.append("no file is written on the server: the answer of /stop_profile is the trace")
    return num_steps, notes


def _json(answer: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
