"""A profile of the server while load runs: from behind the warm-up to behind the last answer.

The trace comes back over HTTP, so the server may be on another host.
Elsewhere: what is recorded (docs/profiling.md), writing it (launch/bench_serve.py).
"""

from baton.bench.serve.http_client import HttpClient
from baton.bench.serve.http_response import BadResponse
from baton.bench.serve.server import ServerError
from baton.obs.profile_config import ProfileConfig


class Profiling:
    """Of one server: a router profiles its workers of the roles that are named, a worker itself.
    `trace` is that of the last load."""

    def __init__(self, client: HttpClient, url: str, config: ProfileConfig):
        self._client = client
        self._url = url
        self._query = "&".join(f"role={role}" for role in config.roles)
        self.trace: bytes | None = None

    async def start(self) -> None:
        """Raises ServerError."""
        await self._post("/start_profile")

    async def stop(self) -> None:
        """Raises ServerError."""
        self.trace = await self._post("/stop_profile")

    async def _post(self, path: str) -> bytes:
        target = f"{path}?{self._query}" if self._query else path
        try:
            status, body = await self._client.fetch("POST", target)
        except (OSError, BadResponse) as error:
            raise ServerError(f"cannot reach {self._url}{target}: {error}") from error
        if status != 200:
            reason = body[:300].decode(errors="replace")
            raise ServerError(
                f"{self._url}{target} answered {status} ({reason}); leave out --profile-output, or "
                "name roles that the server has"
            )
        return body
