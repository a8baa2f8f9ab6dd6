"""Where a request of this worker spent its time, and profiles of the worker as a whole.

Elsewhere: what the engine notes (core/timeline.py, core/profile.py), the trace that is made of it
(obs/chrome_trace.py), the same for a router (router/explaining.py).
"""

import asyncio
import os
from typing import Any

import msgspec

from baton.api.state import ENGINE_TYPES, Service
from baton.core.errors import RequestError
from baton.core.timeline import ClockFacts, Timeline
from baton.obs.chrome_trace import Trace, TracedProcess, TraceFacts, api_events, engine_events

MAX_EXPLAINED_SAMPLES = 8


async def explain(service: Service, request_id: str) -> dict[str, Any]:
    """This worker's part of a request, whose id is the one in its X-Request-ID, its `rid`, or the
    engine's. Raises RequestError for one that is not remembered."""
    known = service.requests.find(lambda each: request_id in _ids_of(each))
    sample_ids = [request_id] if known is None else known.samples
    timelines = await service.live_engine().explain(sample_ids[:MAX_EXPLAINED_SAMPLES])
    if known is None and not timelines:
        raise unknown_request(request_id, "this worker")
    return {
        "role": ENGINE_TYPES[service.state.role],
        "now_s": service.state.clock.now_s(),
        "clock": msgspec.to_builtins(ClockFacts.read()),
        "api": None if known is None else msgspec.to_builtins(known),
        "engine": msgspec.to_builtins(timelines),
    }


def unknown_request(request_id: str, where: str) -> RequestError:
    return RequestError(
        f"{where} remembers no request {request_id!r}; it keeps the last 1,000, by the id of their "
        "X-Request-ID header",
        param="request_id",
        status=404,
        code="unknown_request",
    )


def _ids_of(timeline: Timeline) -> tuple[str, ...]:
    return (timeline.request_id, *timeline.samples)


async def start_profile(service: Service, num_steps: int | None) -> None:
    await service.live_engine().start_profile(num_steps)
    service.profiled_since_s = service.state.clock.now_s()


async def stop_profile(service: Service) -> Trace:
    """Raises RequestError when no profile runs."""
    since_s = service.profiled_since_s
    notes = await service.live_engine().stop_profile()
    if notes is None or since_s is None:
        raise RequestError(
            "no profile runs on this worker; POST /start_profile first",
            status=409,
            code="no_profile",
        )
    service.profiled_since_s = None
    role = ENGINE_TYPES[service.state.role]
    engine = TracedProcess(
        pid=service.state.engine.ready.pid,
        kind="engine",
        role=role,
        start_s=notes.start_s,
        end_s=notes.end_s,
        num_dropped=notes.num_dropped,
    )
    now_s = service.state.clock.now_s()
    api = TracedProcess(pid=os.getpid(), kind="api", role=role, start_s=since_s, end_s=now_s)
    requests = service.requests.since(lambda each: each.end_s is None or each.end_s > since_s)
    facts = TraceFacts(clock=ClockFacts.read(), processes=[engine, api])

    def trace() -> Trace:
        events = [*engine_events(engine, notes), *api_events(api, requests)]
        return Trace(events=events, facts=facts)

    # Some 100,000 events take a moment, in which other requests are answered.
    return await asyncio.to_thread(trace)
