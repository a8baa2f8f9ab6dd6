"""The serving side of HTTP over real sockets: what is refused, bounded and kept in order."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from baton.router.http.connection import MAX_WAITING, Limits
from baton.router.http.messages import Request, Response
from baton.router.http.server import HttpServer
from baton.router.http.stream import ResponseStream

from .conftest import until

Run = Callable[[Callable[[], Any]], None]
Handler = Callable[[Request], Awaitable[Response | ResponseStream]]
SMALL = Limits(head_bytes=1000, body_bytes=1000)


async def echo(request: Request) -> Response:
    said = {
        "method": request.method,
        "target": request.target,
        "body": request.body.decode(),
        "headers": request.headers,
    }
    return Response(200, json.dumps(said).encode(), {"Content-Type": "application/json"})


class Asked:
    """An app around one handler, which keeps what it was asked and whether it was cancelled."""

    def __init__(self, handler: Handler = echo):
        self._handler = handler
        self.requests: list[Request] = []
        self.cancelled = asyncio.Event()

    async def handle(self, request: Request) -> Response | ResponseStream:
        self.requests.append(request)
        try:
            return await self._handler(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def admit(self, request: Request) -> Response | None:
        return Response(401, b"who?") if "x-unknown" in request.headers else None

    def refuse(self, request: Request | None, status: int, code: str, message: str) -> Response:
        return Response(status, json.dumps({"code": code, "message": message}).encode())


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    async def answer(self, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.split("\r\n")
        headers = dict(each.lower().split(": ", 1) for each in lines if each)
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        elif not is_head:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(line.split(" ")[1]), headers, body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def is_closed(self) -> bool:
        return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def serving(
    app: Asked, limits: Limits = SMALL
) -> AsyncIterator[tuple[HttpServer, Callable[[], Awaitable[Client]]]]:
    server, writers = HttpServer(app, limits), []
    port = await server.listen("127.0.0.1", 0)

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return Client(reader, writer)

    try:
        yield server, connect
    finally:
        for writer in writers:
            writer.close()
        await server.close(1.0)
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def post(body: bytes, *lines: str) -> bytes:
    head = ["POST /p?q=1 HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "\r\n"]).encode() + body


CHUNKED = (
    b"POST /p?q=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n"
)


async def let_it_read() -> None:
    """Both ends live in this loop: after a few turns what was written has been read."""
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.mark.parametrize("request_bytes", [post(b"abcdefg", "X-Long: " + "y" * 30), CHUNKED])
def test_a_request_may_be_cut_anywhere(run: Run, request_bytes: bytes) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            for cut in range(1, len(request_bytes)):
                await client.send(request_bytes[:cut])
                await let_it_read()
                assert len(app.requests) == cut - 1
                await client.send(request_bytes[cut:])
                status, _, body = await client.answer()
                said = json.loads(body)
                assert (status, said["target"], said["body"]) == (200, "/p?q=1", "abcdefg")
                assert "trailer" not in said["headers"]
            for byte in request_bytes:
                await client.send(bytes([byte]))
                await let_it_read()
            assert json.loads((await client.answer())[2])["body"] == "abcdefg"

    run(scenario)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/3.7\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nc: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_refused_and_hung_up_on(run: Run, nonsense: bytes) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            await client.send(nonsense)
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert json.loads(body)["code"] == "bad_request"
            assert await client.is_closed()
            assert app.requests == []

    run(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nA: " + b"x" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n",
        b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 3000,
        b"GET /" + b"x" * 3000,
    ],
)
def test_headers_have_a_limit(run: Run, head: bytes) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            await client.send(head)
            status, _, body = await client.answer()
            assert (status, json.loads(body)["code"]) == (431, "headers_too_large")
            assert await client.is_closed()
            assert app.requests == []

    run(scenario)


def test_headers_that_never_end_have_a_limit(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Asked()) as (_, connect):
            client = await connect()
            await client.send(b"GET / HTTP/1.1\r\n")
            for number in range(100):
                await client.send(b"A%d: %b\r\n" % (number, b"x" * 10))
                await let_it_read()
            assert (await client.answer())[0] == 431

    run(scenario)


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"x" * 1001),
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"100\r\n%b\r\n" % (b"x" * 256) * 4,
    ],
)
def test_bodies_have_a_limit(run: Run, request_bytes: bytes) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            await client.send(request_bytes)
            status, _, body = await client.answer()
            assert status in (400, 413)
            assert (status == 400) == (b"9" * 20 in request_bytes)
            assert b"large" in body or status == 400
            assert await client.is_closed()
            assert app.requests == []

    run(scenario)


def test_who_sends_on_after_a_refusal_still_reads_it(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Asked()) as (_, connect):
            client = await connect()
            await client.send(post(b"x" * 2_000_000))
            assert (await client.answer())[0] == 413

    run(scenario)


@pytest.mark.parametrize("framing", ["Content-Length: 900", "Transfer-Encoding: chunked"])
def test_a_body_that_is_not_wanted_is_not_waited_for(run: Run, framing: str) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            await client.send(f"POST / HTTP/1.1\r\nX-Unknown: 1\r\n{framing}\r\n\r\n".encode())
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (401, "close", b"who?")
            assert await client.is_closed()
            assert app.requests == []

    run(scenario)


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def scenario() -> None:
        may_answer = asyncio.Event()

        async def slow(request: Request) -> Response:
            if not request.body:
                await may_answer.wait()
            return await echo(request)

        app = Asked(slow)
        async with serving(app) as (_, connect):
            client = await connect()
            bodies = [b"", *[b"%d" % number for number in range(3 * MAX_WAITING)]]
            await client.send(b"".join(map(post, bodies)))
            await let_it_read()
            assert len(app.requests) == 1
            may_answer.set()
            answered = [json.loads((await client.answer())[2])["body"] for _ in bodies]
            assert answered == [body.decode() for body in bodies]
            await client.send(post(b"again"))
            assert json.loads((await client.answer())[2])["body"] == "again"

    run(scenario)


def test_nonsense_behind_a_request_waits_for_its_answer(run: Run) -> None:
    async def scenario() -> None:
        may_answer = asyncio.Event()

        async def slow(request: Request) -> Response:
            await may_answer.wait()
            return await echo(request)

        async with serving(Asked(slow)) as (_, connect):
            client = await connect()
            await client.send(post(b"one") + b"nonsense\r\n\r\n")
            await let_it_read()
            may_answer.set()
            assert json.loads((await client.answer())[2])["body"] == "one"
            assert (await client.answer())[0] == 400
            assert await client.is_closed()

    run(scenario)


def test_expect_continue(run: Run) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: "
            await client.send(head + b"3\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert app.requests == []
            await client.send(b"abc")
            assert json.loads((await client.answer())[2])["body"] == "abc"
            await client.send(head + b"2000\r\n\r\n")
            assert (await client.answer())[0] == 413

    run(scenario)


def test_head_old_clients_and_connection_close(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Asked()) as (_, connect):
            client = await connect()
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            _, headers, _ = await client.answer(is_head=True)
            assert int(headers["content-length"]) > 0
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "keep-alive"
            await client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.is_closed()
            client = await connect()
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.answer())[0] == 200
            assert await client.is_closed()

    run(scenario)


@pytest.mark.parametrize("cut", [1, 40, 150, 168])
def test_an_offer_of_another_protocol_is_ignored(run: Run, cut: int) -> None:
    """As Java's client makes it with its first request, whatever the method."""
    offer = post(
        b"abc", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAA"
    )

    async def scenario() -> None:
        app = Asked()
        async with serving(app) as (_, connect):
            client = await connect()
            await client.send(offer[:cut])
            await let_it_read()
            await client.send(offer[cut:])
            status, _, body = await client.answer()
            assert (status, json.loads(body)["body"]) == (200, "abc")
            await client.send(post(b"next"))
            assert json.loads((await client.answer())[2])["body"] == "next"
            assert len(app.requests) == 2
            await client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer())[0] == 405

    run(scenario)


def test_repeated_headers_are_one_list(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Asked()) as (_, connect):
            client = await connect()
            await client.send(post(b"", "Tracestate: a=1", "TRACESTATE: b=2", "X-\xe9: \xe9"))
            status, _, body = await client.answer()
            assert status == 400  # a header's name is a token
            client = await connect()
            await client.send(post(b"", "Tracestate: a=1", "TRACESTATE: b=2"))
            _, _, body = await client.answer()
            assert json.loads(body)["headers"]["tracestate"] == "a=1, b=2"

    run(scenario)


@pytest.mark.parametrize("begun", [b"", b"POST / HTTP/1.1\r\nA", post(b"x" * 10)[:-3]])
def test_slow_clients_have_a_limit(run: Run, begun: bytes) -> None:
    async def scenario() -> None:
        app = Asked()
        async with serving(app, Limits(head_s=0.05, stall_s=0.05)) as (_, connect):
            client = await connect()
            await client.send(begun)
            if begun:
                status, _, body = await client.answer()
                assert (status, json.loads(body)["code"]) == (408, "request_timeout")
            assert await client.is_closed()
            assert app.requests == []

    run(scenario)


def test_idle_connections_are_closed(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Asked(), Limits(idle_s=0.05)) as (server, connect):
            client = await connect()
            await client.send(post(b"a"))
            assert (await client.answer())[0] == 200
            assert await client.is_closed()
            assert not server.connections

    run(scenario)


def test_a_running_handler_has_no_such_limit(run: Run) -> None:
    async def scenario() -> None:
        may_answer = asyncio.Event()

        async def slow(request: Request) -> Response:
            await may_answer.wait()
            return await echo(request)

        async with serving(Asked(slow), Limits(head_s=0.02, stall_s=0.02, idle_s=0.02)) as (
            _,
            connect,
        ):
            client, witness = await connect(), await connect()
            await client.send(post(b"a"))
            assert await witness.is_closed()  # its time for headers, and so `client`'s, is over
            may_answer.set()
            assert (await client.answer())[0] == 200

    run(scenario)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_cancels_its_handler(run: Run, streams: bool) -> None:
    async def scenario() -> None:
        async def hang(request: Request) -> Response:
            if streams:
                request.begin_stream(200, {}).write(b"a")
            await asyncio.Event().wait()
            raise AssertionError

        app = Asked(hang)
        async with serving(app) as (server, connect):
            client = await connect()
            await client.send(post(b"a"))
            await until(lambda: bool(app.requests))
            client.writer.transport.abort()
            await app.cancelled.wait()
            await until(lambda: not server.connections)

    run(scenario)


def test_a_slow_reader_pauses_the_stream(run: Run) -> None:
    """What waits for a client stays bounded, and nothing is lost when it catches up."""
    piece, num_pieces = b"x" * 65536, 150

    async def scenario() -> None:
        paused, resumed = asyncio.Event(), asyncio.Event()

        async def flood(request: Request) -> ResponseStream:
            stream = request.begin_stream(200, {})
            stream.on_pause, stream.on_resume = paused.set, resumed.set
            for _ in range(num_pieces):
                if stream.is_paused:
                    resumed.clear()
                    await resumed.wait()
                stream.write(piece)
            stream.end()
            return stream

        async with serving(Asked(flood)) as (server, connect):
            client = await connect()
            await client.send(post(b"a"))
            await paused.wait()
            (connection,) = server.connections
            assert connection.num_unsent_bytes < 4 * len(piece)
            _, _, body = await client.answer()
            assert body == piece * num_pieces

    run(scenario)


def test_who_never_takes_the_rest_is_dropped(run: Run) -> None:
    async def scenario() -> None:
        async def big(request: Request) -> Response:
            return Response(200, b"x" * 30_000_000)

        async with serving(Asked(big), Limits(stall_s=0.05)) as (server, connect):
            client = await connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(post(b"a"))
            await until(lambda: bool(server.connections))
            await until(lambda: not server.connections)

    run(scenario)


@pytest.mark.parametrize("is_10", [False, True])
def test_streams_are_chunked_for_those_who_know_it(run: Run, is_10: bool) -> None:
    async def scenario() -> None:
        async def stream(request: Request) -> ResponseStream:
            answer = request.begin_stream(200, {"Content-Type": "text/event-stream"})
            answer.write(b"one")
            answer.write(b"")
            answer.end(b"two")
            return answer

        async with serving(Asked(stream)) as (_, connect):
            client = await connect()
            if is_10:
                await client.send(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                answer = await client.reader.read()
                assert answer.endswith(b"Connection: close\r\n\r\nonetwo")
                return
            for _ in range(2):
                await client.send(post(b"a"))
                assert (await client.answer())[2] == b"onetwo"

    run(scenario)


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_error_is_not_written_into_a_stream(run: Run, has_begun: bool) -> None:
    async def scenario() -> None:
        async def failing(request: Request) -> Response:
            stream = request.begin_stream(200, {})
            stream.write(b"one" if has_begun else b"")
            return Response(500, b"failed")

        async with serving(Asked(failing)) as (_, connect):
            client = await connect()
            await client.send(post(b"a"))
            if not has_begun:
                status, _, body = await client.answer()
                assert (status, body) == (500, b"failed")
                return
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := await client.reader.read(100):
                    answer += piece
            assert answer.endswith(b"\r\n3\r\none\r\n")
            assert answer.count(b"HTTP/1.1") == 1

    run(scenario)


def test_closing_waits_for_what_runs(run: Run) -> None:
    async def scenario() -> None:
        may_answer = asyncio.Event()

        async def slow(request: Request) -> Response:
            await may_answer.wait()
            return await echo(request)

        app = Asked(slow)
        async with serving(app) as (server, connect):
            idle, busy = await connect(), await connect()
            await busy.send(post(b"a"))
            await until(lambda: len(server.connections) == 2 and bool(app.requests))
            closing = asyncio.create_task(server.close(30.0))
            assert await idle.is_closed()
            may_answer.set()
            _, headers, body = await busy.answer()
            assert (headers["connection"], json.loads(body)["body"]) == ("close", "a")
            await closing

    run(scenario)


def test_closing_ends_what_outlasts_it(run: Run) -> None:
    async def scenario() -> None:
        async def hang(request: Request) -> Response:
            await asyncio.Event().wait()
            raise AssertionError

        app = Asked(hang)
        async with serving(app) as (server, connect):
            client = await connect()
            await client.send(post(b"a"))
            await until(lambda: bool(app.requests))
            await server.close(0.0)
            assert app.cancelled.is_set()
            assert not server.connections

    run(scenario)
