"""What the HTTP layer needs of an engine: submit, stream, abort, ask.

Elsewhere: the real one (ipc/engine_process_client.py), HTTP (the rest of this package).
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from baton.core.profile import ProfileNotes
from baton.core.request import EngineRequest
from baton.core.timeline import Timeline
from baton.messages.engine import EngineReady, EngineStats, TokenOutput


class EngineClient(Protocol):
    """One engine process, seen from the api process's event loop."""

    @property
    def ready(self) -> EngineReady:
        """Facts of the engine; known before the HTTP server listens."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def is_alive(self) -> bool:
        """The process runs and its loop moves."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        """Submit, then yield outputs; the last one, and only it, has `finish`. If the engine
        dies, the last one has finish.reason ERROR and status 503. Closing the generator early
        (or cancelling its task) aborts the request in the engine."""
        ...

    def abort(self, request_id: str) -> bool:
        """True if that request was running. Its generator ends with finish.reason ABORT."""
        ...

    def abort_all(self) -> int: ...

    async def flush_cache(self) -> int:
        """Returns the number of blocks freed."""
        ...

    async def start_profile(self, num_steps: int | None) -> None:
        """Note down steps and requests, so many steps or until `stop_profile`; what a profile that
        runs already has noted is forgotten."""
        ...

    async def stop_profile(self) -> ProfileNotes | None:
        """What was noted; None when no profile runs."""
        ...

    async def explain(self, request_ids: list[str]) -> list[Timeline]:
        """Timelines of those that the engine remembers."""
        ...
