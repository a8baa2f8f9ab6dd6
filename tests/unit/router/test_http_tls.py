"""HTTP over TLS, both sides: an `ssl` context is all they need, and a stranger is not trusted."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.router.http.client import UpstreamPool
from baton.router.http.connection import Limits
from baton.router.http.messages import Request, Response
from baton.router.http.origin import origin_of
from baton.router.http.server import HttpServer
from baton.router.http.upstream import NotConnected

Run = Callable[[Callable[[], Any]], None]


class Echo:
    async def handle(self, request: Request) -> Response:
        return Response(200, request.body)

    def admit(self, request: Request) -> Response | None:
        return None

    def refuse(self, request: Request | None, status: int, code: str, message: str) -> Response:
        return Response(status, message.encode())


def test_bodies_go_there_and_back(run: Run, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate

    async def scenario() -> None:
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(chain, key)
        server = HttpServer(Echo(), Limits())
        port = await server.listen("127.0.0.1", 0, serving)
        trusting = UpstreamPool(5.0, 5.0, ssl.create_default_context(cafile=str(chain)))
        strict = UpstreamPool(5.0, 5.0)
        try:
            body = b"x" * 3_000_000
            origin = origin_of(f"https://127.0.0.1:{port}")
            for _ in range(2):
                answer = await trusting.fetch(origin, "POST", "/", {}, body, 10.0)
                assert (answer.status, answer.body) == (200, body)
            assert len(trusting.connections) == len(server.connections) == 1
            with pytest.raises(NotConnected, match="TLS failed"):
                await strict.fetch(origin, "GET", "/", {}, b"", 10.0)
        finally:
            await asyncio.gather(trusting.close(), strict.close())
            await server.close(1.0)

    run(scenario)
