"""A client that reads slowly holds up its own stream, and nobody's memory."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from baton.router.app import RouterApp
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.http.connection import Limits
from baton.router.http.server import HttpServer

from .conftest import FAST_PROBES, until

Run = Callable[[Callable[[], Any]], None]
NUM_EVENTS = 6000
"""More than the system's own buffers of two connections ever hold."""
EVENT = b"data: {" + b" " * 8192 + b"}\n\n"
DONE = b"data: [DONE]\n\n"
BOUND_BYTES = 1_000_000
"""What the router may hold for one client."""


class Flood:
    """A worker whose streams are as fast as they are taken; `num_taken` counts its events."""

    def __init__(self) -> None:
        self.url = ""
        self.num_taken = 0
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Len")]
                await reader.readexactly(int(length[0].split()[1]) if length else 0)
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                else:
                    await self._stream(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for event in [EVENT] * NUM_EVENTS + [DONE]:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            self.num_taken += 1
        writer.write(b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def flooded_router() -> AsyncIterator[tuple[HttpServer, int, Flood]]:
    worker = Flood()
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    worker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    specs = (WorkerSpec(worker.url, WorkerRole.REGULAR),)
    app = RouterApp(RouterConfig(workers=specs, health=FAST_PROBES))
    try:
        async with app.running():
            router = HttpServer(app, Limits())
            port = await router.listen("127.0.0.1", 0)
            await app.fleet.until(lambda pool: all(each.is_healthy for each in pool))
            try:
                yield router, port, worker
            finally:
                await router.close(1.0)
    finally:
        server.close()
        await server.wait_closed()


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection)
    body = json.dumps({"text": "a", "stream": True}).encode()
    writer.write(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    return reader, writer


async def until_it_stands_still(worker: Flood) -> None:
    before = -1
    while worker.num_taken != before or before == 0:
        before = worker.num_taken
        await asyncio.sleep(0.05)


def test_a_client_that_does_not_read_stops_the_worker(run: Run) -> None:
    async def scenario() -> None:
        async with flooded_router() as (router, port, worker):
            reader, writer = await ask(port)
            await reader.readuntil(b"\r\n\r\n")
            await until_it_stands_still(worker)
            assert worker.num_taken < NUM_EVENTS
            (connection,) = router.connections
            assert connection.is_paused
            assert connection.num_unsent_bytes < BOUND_BYTES
            events = bytearray()
            while size := int(await reader.readline(), 16):
                events += await reader.readexactly(size)
                await reader.readexactly(2)
            assert (events.count(EVENT), events[-len(DONE) :]) == (NUM_EVENTS, DONE)
            writer.close()
            await writer.wait_closed()

    run(scenario)


@pytest.mark.parametrize("reads_first", [False, True])
def test_a_client_that_leaves_while_it_is_behind_frees_the_worker(
    run: Run, reads_first: bool
) -> None:
    async def scenario() -> None:
        async with flooded_router() as (router, port, worker):
            reader, writer = await ask(port)
            if reads_first:
                await reader.readuntil(b"\r\n\r\n")
            await until_it_stands_still(worker)
            writer.transport.abort()
            await worker.hung_up.wait()
            await until(lambda: not router.connections)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(scenario)
