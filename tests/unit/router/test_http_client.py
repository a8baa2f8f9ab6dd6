"""Calls to other servers over real sockets: reuse, stale connections, failures, back-pressure."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from baton.router.http.client import UpstreamPool
from baton.router.http.origin import Origin, origin_of
from baton.router.http.upstream import (
    Broken,
    Call,
    NotConnected,
    NotConnectedInTime,
    RawHeaders,
    UpstreamError,
    request_head,
)

from .conftest import until

Run = Callable[[Callable[[], Any]], None]
Answering = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nSet-Cookie: trailer\r\n\r\n"
)


class Upstream:
    """A server whose connections run `answering` with their number, from 0."""

    def __init__(self, origin: Origin):
        self.origin = origin
        self.num_connections = 0
        self.num_ended = 0


@contextlib.asynccontextmanager
async def upstream(answering: Answering) -> AsyncIterator[Upstream]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, served.num_connections = served.num_connections, served.num_connections + 1
        try:
            await answering(number, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the pool has hung up
        finally:
            served.num_ended += 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    served = Upstream(origin_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    try:
        yield served
        await until(lambda: served.num_ended >= served.num_connections)
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def pool(connect_timeout_s: float = 5.0, idle_s: float = 5.0) -> AsyncIterator[UpstreamPool]:
    made = UpstreamPool(connect_timeout_s, idle_s)
    try:
        yield made
    finally:
        await made.close()


async def asked(reader: asyncio.StreamReader) -> bytes:
    """One request's head."""
    return await reader.readuntil(b"\r\n\r\n")


def answers(*each: bytes, then_close: bool = False) -> Answering:
    """A connection that answers one request after the other with these bytes."""

    async def answering(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in each:
            await asked(reader)
            writer.write(answer)
        if not then_close:
            await reader.read()

    return answering


class Heard:
    """A receiver that keeps all it hears."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.num_sent = 0
        self.body = b""
        self.error: UpstreamError | None = None
        self.over = asyncio.Event()
        self.begun = asyncio.Event()

    def request_sent(self) -> None:
        self.num_sent += 1

    def answer_began(self, status: int, headers: RawHeaders) -> None:
        self.events.append(f"began {status}")
        self.begun.set()

    def body_arrived(self, data: bytes) -> None:
        self.body += data

    def answer_ended(self) -> None:
        self.events.append("ended")
        self.over.set()

    def call_failed(self, error: UpstreamError) -> None:
        self.events.append("failed")
        self.error = error
        self.over.set()


def send(pool: UpstreamPool, origin: Origin, heard: Heard, repeatable: bool = False) -> Call:
    head = request_head(b"POST", b"/", origin, b"", 0)
    return pool.send(origin, head, b"", heard, repeatable)


async def get(pool: UpstreamPool, origin: Origin, timeout_s: float = 5.0) -> bytes:
    return (await pool.fetch(origin, "GET", "/", {}, b"", timeout_s)).body


def test_connections_are_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(OK, OK, OK)) as served, pool() as connections:
            for _ in range(3):
                assert await get(connections, served.origin) == b"ok"
            assert served.num_connections == 1

    run(scenario)


@pytest.mark.parametrize("answer", [CHUNKED, OK.replace(b"2\r\n\r\nok", b"7\r\n\r\nabcdefg")])
def test_an_answer_may_be_cut_anywhere(run: Run, answer: bytes) -> None:
    async def cut_anywhere(
        _: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for cut in range(1, len(answer)):
            await asked(reader)
            writer.write(answer[:cut])
            for _ in range(4):
                await asyncio.sleep(0)
            writer.write(answer[cut:])
        await reader.read()

    async def scenario() -> None:
        async with upstream(cut_anywhere) as served, pool() as connections:
            for _ in range(1, len(answer)):
                answered = await connections.fetch(served.origin, "GET", "/", {}, b"", 5.0)
                assert answered.body == b"abcdefg"
                assert b"set-cookie" not in dict(answered.headers)
            assert served.num_connections == 1

    run(scenario)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nA: b\r\n\r\n"]
)
def test_interim_answers_are_skipped(run: Run, interim: bytes) -> None:
    async def scenario() -> None:
        async with upstream(answers(interim + OK, OK)) as served, pool() as connections:
            answer = await connections.fetch(served.origin, "GET", "/", {}, b"", 5.0)
            assert (answer.status, answer.body) == (200, b"ok")
            assert [name for name, _ in answer.headers] == [b"content-length"]
            assert await get(connections, served.origin) == b"ok"
            assert served.num_connections == 1

    run(scenario)


def test_a_body_may_end_with_its_connection(run: Run) -> None:
    async def scenario() -> None:
        until_close = answers(b"HTTP/1.1 200 OK\r\n\r\nto the end", then_close=True)
        async with upstream(until_close) as served, pool() as connections:
            for _ in range(2):
                assert await get(connections, served.origin) == b"to the end"
            assert served.num_connections == 2

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        CHUNKED[:-3],
        CHUNKED[:-15],
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000,
    ],
)
def test_a_broken_answer_is_one_failure(run: Run, answer: bytes) -> None:
    async def scenario() -> None:
        async with upstream(answers(answer, then_close=True)) as served, pool() as connections:
            heard = Heard()
            send(connections, served.origin, heard)
            await heard.over.wait()
            assert isinstance(heard.error, Broken)
            assert heard.events[-1] == "failed"
            assert "ended" not in heard.events
            assert served.num_connections == 1
            await until(lambda: not connections.connections)

    run(scenario)


def test_what_follows_an_answer_is_no_answer_to_the_next_request(run: Run) -> None:
    async def scenario() -> None:
        late = asyncio.Event()

        async def too_much(
            number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await asked(reader)
            writer.write(OK)
            if number == 0:
                await late.wait()
                writer.write(OK.replace(b"ok", b"no"))
            await reader.read()

        async with upstream(too_much) as served, pool() as connections:
            assert await get(connections, served.origin) == b"ok"
            late.set()
            await until(lambda: not connections.connections)
            assert await get(connections, served.origin) == b"ok"
            assert served.num_connections == 2

        async with upstream(answers(OK + OK)) as served, pool() as connections:
            with pytest.raises(Broken):
                await get(connections, served.origin)

    run(scenario)


def test_a_connection_closed_while_it_was_idle_is_not_used(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(OK, then_close=True)) as served, pool() as connections:
            for num in (1, 2):
                assert await get(connections, served.origin) == b"ok"
                await until(lambda: not connections.connections)
                assert served.num_connections == num

    run(scenario)


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_stale_connection(run: Run, repeatable: bool) -> None:
    """The other side closes it just when it gets a request: only what may be sent twice is."""

    async def once_each(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await asked(reader)
        writer.write(OK)
        await asked(reader)
        if number > 0:
            writer.write(OK)
            await reader.read()

    async def scenario() -> None:
        async with upstream(once_each) as served, pool() as connections:
            assert await get(connections, served.origin) == b"ok"
            heard = Heard()
            send(connections, served.origin, heard, repeatable)
            await heard.over.wait()
            if repeatable:
                assert (heard.events, heard.body) == (["began 200", "ended"], b"ok")
                assert heard.num_sent == 2
            else:
                assert heard.events == ["failed"]
            assert served.num_connections == 1 + repeatable

    run(scenario)


def test_a_fresh_connection_that_closes_is_not_tried_again(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(b"", then_close=True)) as served, pool() as connections:
            heard = Heard()
            send(connections, served.origin, heard, repeatable=True)
            await heard.over.wait()
            assert (heard.events, served.num_connections) == (["failed"], 1)

    run(scenario)


def test_idle_connections_are_closed(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(OK)) as served, pool(idle_s=0.02) as connections:
            assert await get(connections, served.origin) == b"ok"
            assert len(connections.connections) == 1
            await until(lambda: not connections.connections)

    run(scenario)


def test_nobody_listens(run: Run) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        async with pool() as connections:
            with pytest.raises(NotConnected, match=r"^Connection refused$"):
                await get(connections, origin_of(f"http://127.0.0.1:{port}"))

    run(scenario)


def test_what_is_no_host_name_is_not_connected_to(run: Run) -> None:
    async def scenario() -> None:
        async with pool() as connections:
            with pytest.raises(NotConnected):
                await get(connections, origin_of("http://" + "a" * 64 + ".example:1"))

    run(scenario)


def test_closing_ends_what_waits_and_what_runs(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(b"")) as served, pool() as connections:
            running, waiting = Heard(), Heard()
            send(connections, served.origin, running)
            await until(lambda: served.num_connections == 1)
            connections.loop = Gate(connections.loop)  # type: ignore[assignment]
            send(connections, served.origin, waiting)
            await connections.close()
            assert (running.events, waiting.events) == (["failed"], ["failed"])

    run(scenario)


def test_connecting_has_a_limit(run: Run) -> None:
    """A listener whose backlog is full answers nothing."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(server.getsockname())
            async with pool(connect_timeout_s=0.05) as connections:
                started_s = loop.time()
                with pytest.raises(NotConnectedInTime):
                    await get(connections, origin_of(f"http://127.0.0.1:{server.getsockname()[1]}"))
                assert loop.time() - started_s < 2

    run(scenario)


def test_an_answer_has_a_limit(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(b"")) as served, pool() as connections:
            with pytest.raises(Broken, match="in time"):
                await get(connections, served.origin, timeout_s=0.02)
            await until(lambda: served.num_ended > 0)

    run(scenario)


def test_aborting_hangs_up_and_is_heard_by_nobody(run: Run) -> None:
    async def scenario() -> None:
        async with upstream(answers(CHUNKED[:-5])) as served, pool() as connections:
            heard = Heard()
            call = send(connections, served.origin, heard)
            await heard.begun.wait()
            call.abort()
            await until(lambda: served.num_ended > 0)
            assert heard.events == ["began 200"]

    run(scenario)


class Gate:
    """An event loop's place to connect, which waits until `opened`, and then fails if told so."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self.opened = asyncio.Event()
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        await self.opened.wait()
        if self.error is not None:
            raise self.error
        return await self._loop.create_connection(*args, **kwargs)


@pytest.mark.parametrize("error", [None, ConnectionRefusedError(111, "refused")])
def test_who_waits_takes_a_connection_that_is_free_earlier(run: Run, error: OSError | None) -> None:
    async def scenario() -> None:
        may_answer = asyncio.Event()

        async def slow(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            await may_answer.wait()
            writer.write(OK)
            await asked(reader)
            writer.write(OK)
            await reader.read()

        async with upstream(slow) as served, pool() as connections:
            first, second, third = Heard(), Heard(), Heard()
            send(connections, served.origin, first)
            await until(lambda: served.num_connections > 0)
            gate = connections.loop = Gate(connections.loop)  # type: ignore[assignment]
            send(connections, served.origin, second)
            gate.error = error
            gone = send(connections, served.origin, third)
            gone.abort()
            may_answer.set()
            await second.over.wait()
            assert (first.events, second.events) == (["began 200", "ended"],) * 2
            assert served.num_connections == 1
            gate.opened.set()
            await until(lambda: len(connections.connections) >= (1 if error else 3))
            for _ in range(4):
                await asyncio.sleep(0)
            assert (second.events, third.events) == (["began 200", "ended"], [])

    run(scenario)


def test_a_paused_call_stops_its_server(run: Run) -> None:
    num_bytes = 20_000_000

    async def scenario() -> None:
        stuck = asyncio.Event()

        async def flood(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % num_bytes)
            writer.write(b"x" * num_bytes)
            while before := writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.02)
                if writer.transport.get_write_buffer_size() == before:
                    stuck.set()
            await reader.read()

        class Pausing(Heard):
            def answer_began(self, status: int, headers: RawHeaders) -> None:
                super().answer_began(status, headers)
                call.pause()

        async with upstream(flood) as served, pool() as connections:
            heard = Pausing()
            call = send(connections, served.origin, heard)
            await stuck.wait()
            assert len(heard.body) < 1_000_000
            call.resume()
            await heard.over.wait()
            assert len(heard.body) == num_bytes

    run(scenario)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h:1", Origin("h", 1, False, b"h:1")),
        ("https://h", Origin("h", 443, True, b"h")),
        ("http://[::1]", Origin("::1", 80, False, b"[::1]")),
    ],
)
def test_origins(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin
