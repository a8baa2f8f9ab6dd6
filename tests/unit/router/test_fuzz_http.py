"""Noise at the router's port: whatever arrives, it does not fall, hang, leak, or blame itself.

Elsewhere: the noise (testing/http_noise.py); what HTTP means, case by case (test_http_server.py).
"""

import asyncio
import contextlib
import gc
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from baton.router.app import RouterApp
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.exchange import Exchange
from baton.router.http.connection import Limits, ServerConnection
from baton.router.http.messages import Request
from baton.router.http.server import HttpServer
from baton.router.legs import Leg
from baton.testing.fake_worker import FakeWorker
from baton.testing.http_noise import Case, Ending, case

from .conftest import FAST_PROBES

Run = Callable[[Callable[[], Any]], None]

LIMITS = Limits(head_bytes=8192, body_bytes=64 * 2**10, head_s=1.5, stall_s=1.5, idle_s=0.5)
"""Whoever is not answered is hung up on within these: the end of a case is its connection's."""
NEVER_S = 30.0
NUM_AT_ONCE = 128
REFUSALS = frozenset((100, 200, 202, 400, 401, 404, 405, 408, 413, 431))
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
CASES_PER_ROUND = 256


@dataclass
class Port:
    """A router at a port. `oddities`: what its event loop had to complain about."""

    app: RouterApp
    server: HttpServer
    number: int
    oddities: list[Any] = field(default_factory=list)


@contextlib.asynccontextmanager
async def noisy_port() -> AsyncIterator[Port]:
    async with FakeWorker("prefill") as prefill, FakeWorker("decode") as decode:
        workers = (
            WorkerSpec(prefill.url, WorkerRole.PREFILL, 8998),
            WorkerSpec(decode.url, WorkerRole.DECODE),
        )
        app = RouterApp(RouterConfig(workers=workers, pd_disaggregation=True, health=FAST_PROBES))
        async with app.running():
            server = HttpServer(app, LIMITS)
            port = Port(app, server, await server.listen("127.0.0.1", 0))
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: port.oddities.append(context)
            )
            await app.fleet.until(lambda pool: all(worker.is_healthy for worker in pool))
            try:
                yield port
            finally:
                await server.close(1.0)


async def said_to(port: Port, noise: Case) -> bytes:
    """Everything the router answers until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    try:
        for piece in noise.pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if noise.ending is Ending.RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return b""
        await writer.drain()
        if noise.ending is Ending.HALF_CLOSE:
            writer.write_eof()
        return await reader.read()
    except (OSError, RuntimeError):  # the latter is uvloop's, for writing to what is closed
        return b""  # hung up on while it still sent
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def check_case(port: Port, number: int) -> None:
    noise = case(number)
    async with asyncio.timeout(NEVER_S):
        answer = await said_to(port, noise)
    statuses = tuple(map(int, _STATUS.findall(answer)))
    assert not answer or answer.startswith(b"HTTP/1.1 "), number
    assert set(statuses) <= REFUSALS, number
    if noise.statuses is not None:
        assert statuses == noise.statuses, number


async def check_rest(port: Port) -> None:
    """Nothing is left of what came, and the next request is served."""
    good = Case(
        (b'POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"text": "a"}',),
        Ending.WAIT,
        None,
    )
    assert (await said_to(port, good)).startswith(b"HTTP/1.1 200 ")
    await port.app.fleet.until(lambda pool: not any(w.num_in_flight for w in pool))
    port.app.fleet.pool.check_invariants()
    port.app.fleet.placement.check_invariants()
    while port.server.connections:  # noqa: ASYNC110 (sockets tell nobody)
        await asyncio.sleep(0)
    assert port.app.generation.num_running == 0
    assert port.oddities == []
    gc.collect()
    kinds = (ServerConnection, Request, Exchange, Leg)
    # By type: some libraries' objects answer for their class themselves, with a warning.
    left = [each for each in gc.get_objects() if issubclass(type(each), kinds)]
    assert left == []


def hammer(run: Run, numbers: range) -> None:
    async def scenario() -> None:
        async with noisy_port() as port:
            for first in range(numbers.start, numbers.stop, NUM_AT_ONCE):
                some = range(first, min(first + NUM_AT_ONCE, numbers.stop))
                await asyncio.gather(*(check_case(port, number) for number in some))
            await check_rest(port)

    run(scenario)


def test_noise_at_the_port(run: Run) -> None:
    hammer(run, range(CASES_PER_ROUND))


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(1, 33))
def test_more_noise_at_the_port(run: Run, part: int) -> None:
    hammer(run, range(part * CASES_PER_ROUND, (part + 1) * CASES_PER_ROUND))
