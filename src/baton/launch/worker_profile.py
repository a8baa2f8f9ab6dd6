"""A worker's profile from its start to its end, where its options ask for one.

Elsewhere: profiles on request (api/routes_explaining.py, `baton profile record`), those of a whole
tree in one file (tree_profile.py).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from baton.api.explaining import start_profile, stop_profile
from baton.api.state import ENGINE_TYPES, Service
from baton.core.errors import BatonError
from baton.launch.trace_file import write_trace
from baton.obs.logs import event_log
from baton.obs.profile_config import ProfileConfig

log = event_log("worker")


@asynccontextmanager
async def profiled(service: Service, config: ProfileConfig) -> AsyncIterator[None]:
    """While this runs the worker is profiled, if its options say so; then the trace is written."""
    path = config.profile_output
    if path is None or not config.is_for(ENGINE_TYPES[service.state.role]):
        yield
        return
    await start_profile(service, None)
    try:
        yield
    finally:
        try:
            trace = await stop_profile(service)
            write_trace(path, msgspec.json.encode(trace))
            log.info("trace written", path=str(path))
        except BatonError as error:  # the engine died, or /stop_profile took the trace
            log.warning(f"no trace is written: {error}", path=str(path))
