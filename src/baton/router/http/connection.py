"""A client's connection: the requests on it, one after the other, and their answers.

A connection runs one handler at a time, as a task; requests that came meanwhile wait in order. A
client that leaves cancels the handler.
Invariants: every request that was read whole gets one answer or loses its connection; what a client
can make this side hold is bounded by `Limits`; an answer is never mixed with another one.
Elsewhere: what is answered (the `App` given), bytes of answers (messages.py, stream.py), listening
and closing (server.py).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from baton.router.http.messages import (
    Request,
    Response,
    connection_line,
    response_bytes,
    response_head,
)
from baton.router.http.stream import ResponseStream

MAX_WAITING: Final = 16
"""Pipelined requests that wait behind the one being answered before reading pauses."""
LINGER_S: Final = 2.0
"""How long a refused client may go on sending, so that it gets to read why."""
_KNOWN_NAMES: Final = {
    spelling.encode(): name
    for name in ("accept", "accept-encoding", "authorization", "connection", "content-length",
                 "content-type", "host", "user-agent", "x-request-id")
    for spelling in (name, name.title())
}  # fmt: skip
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """`head_s`: from a request's first byte to the end of its headers. `stall_s`: the longest pause
    within a body, and for a client to take the rest of its answer. `idle_s`: between requests."""

    head_bytes: int = 64 * 2**10
    body_bytes: int = 32 * 2**20
    head_s: float = 15.0
    stall_s: float = 60.0
    idle_s: float = 75.0


class App(Protocol):
    async def handle(self, request: Request) -> Response | ResponseStream:
        """Answer; raises nothing but CancelledError, which means that the client has left."""
        ...

    def admit(self, request: Request) -> Response | None:
        """Asked before the body of a request is read: an answer that makes it not worth reading."""
        ...

    def refuse(self, request: Request | None, status: int, code: str, message: str) -> Response:
        """The answer to what is no request that `handle` should see."""
        ...


class Server(Protocol):
    """Who owns the connections."""

    loop: asyncio.AbstractEventLoop
    app: App
    limits: Limits
    is_closing: bool

    def note_open(self, connection: "ServerConnection") -> None: ...
    def note_closed(self, connection: "ServerConnection") -> None: ...


class _Refused(Exception):
    """Raised inside the parser to stop it."""


class ServerConnection(asyncio.Protocol):
    """One client's connection. `deadline_s` is when the present state has lasted too long, 0 for
    never; the server looks at it now and then."""

    def __init__(self, server: Server):
        self._server = server
        self._loop = server.loop
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[Request] = deque()
        self._refusal: Response | None = None
        self._stream: ResponseStream | None = None
        self._is_reading_paused = False
        self._is_deaf = False
        self._owes_continue = False
        self.is_paused = False
        self.deadline_s = 0.0
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: bytes | bytearray = b""
        self._num_bytes = 0
        self._reading: Request | None = None
        self._is_in_head = False

    @property
    def num_unsent_bytes(self) -> int:
        """What the client has not taken yet, beyond the system's own buffer."""
        return self._transport.get_write_buffer_size()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.deadline_s = self._loop.time() + self._limits.head_s
        self._server.note_open(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_deaf = True
        self._server.note_closed(self)
        if self._stream is not None:
            self._stream.is_silent = True
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.is_paused = True
        if self._stream is not None and self._stream.on_pause is not None:
            self._stream.on_pause()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._stream is not None and self._stream.on_resume is not None:
            self._stream.on_resume()
        elif self._task is None and not self._is_deaf:
            self._rest()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            self._ignore_upgrade(data[asked.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._refusal is None:
                self._refusal = self._server.app.refuse(
                    None, 400, "bad_request", f"this is no HTTP/1.1 request: {error}"
                )
            self._give_up()
            return
        if self._reading is not None or self._is_in_head:
            self._note_progress(len(data))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """A request may offer another protocol, which a server is free not to take (RFC 9110, 7.8).
        The parser then leaves out the body: it gets the same request again, without the offer."""
        request = self._reading
        assert request is not None
        lines = [f"{request.method} {request.target} HTTP/1.1\r\n"]
        lines += [
            f"{name}: {text}\r\n" for name, text in self._headers.items() if name != "upgrade"
        ]
        self._reading, self._parser = None, httptools.HttpRequestParser(self)
        self.data_received("".join([*lines, "\r\n"]).encode("latin-1") + rest)

    def _note_progress(self, num_bytes: int) -> None:
        """A request is half read: it may not stay so for long, nor grow its headers for ever."""
        if self._reading is not None:
            if self._task is None:
                self.deadline_s = self._loop.time() + self._limits.stall_s
            return
        self._num_bytes += num_bytes
        if self._num_bytes > 2 * self._limits.head_bytes:
            self._refuse_head()
            self._give_up()

    # the parser's side

    def on_message_begin(self) -> None:
        self._target, self._headers, self._num_bytes = b"", {}, 0
        self._is_in_head = True
        if self._task is None:
            self.deadline_s = self._loop.time() + self._limits.head_s

    def on_url(self, piece: bytes) -> None:
        self._target += piece
        self._count_head(len(piece))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            self._count_body(len(name) + len(value))  # a trailer says nothing that is used
            return
        self._count_head(len(name) + len(value) + 4)
        key = _KNOWN_NAMES.get(name) or name.lower().decode("latin-1")
        text = value.decode("latin-1")
        if key in self._headers:
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def _count_head(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.head_bytes:
            self._refuse_head()
            raise _Refused

    def _refuse_head(self) -> None:
        limit = self._limits.head_bytes
        self._refusal = self._server.app.refuse(
            None, 431, "headers_too_large", f"the request's headers are larger than {limit} bytes"
        )

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        self._is_in_head = False
        request = Request(
            self, parser.get_method().decode(), self._target.decode("latin-1"), headers
        )
        self._reading, self._body, self._num_bytes = request, b"", 0
        request.is_http_10 = parser.get_http_version() == "1.0"
        if request.method == "CONNECT":
            self._refusal = self._server.app.refuse(
                None, 405, "method_not_allowed", "the router is no proxy for CONNECT"
            )
            raise _Refused
        length = headers.get("content-length")
        if length is not None or "transfer-encoding" in headers:
            self._refusal = self._server.app.admit(request)
            if self._refusal is not None:
                raise _Refused
        if length is not None and int(length) > self._limits.body_bytes:
            self._refuse_body(request)
        if "expect" in headers and headers["expect"].lower() == "100-continue":
            self._owes_continue = True
            if self._task is None:
                self._send_continue()

    def _send_continue(self) -> None:
        self._owes_continue = False
        self._transport.write(_CONTINUE)

    def _refuse_body(self, request: Request) -> None:
        limit = self._limits.body_bytes
        self._refusal = self._server.app.refuse(
            request,
            413,
            "body_too_large",
            f"the body is larger than {limit} bytes (--max-payload-size)",
        )
        raise _Refused

    def on_body(self, piece: bytes) -> None:
        """The usual single piece is not copied; tiny ones do not cost an object each."""
        if not self._body:
            self._body = piece
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece
        self._count_body(len(piece))

    def _count_body(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.body_bytes:
            assert self._reading is not None
            self._refuse_body(self._reading)

    def on_message_complete(self) -> None:
        request = self._reading
        assert request is not None
        if "upgrade" in request.headers and self._parser.should_upgrade():
            return
        self._reading = None
        request.body, self._body = bytes(self._body), b""
        self._owes_continue = False
        request.keep_alive = self._parser.should_keep_alive()
        if self._task is None:
            self._start(request)
            return
        self._waiting.append(request)
        if len(self._waiting) >= MAX_WAITING and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    # answering

    def _start(self, request: Request) -> None:
        self.deadline_s = 0.0
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._server.app.handle(request)
        except BaseException:
            self._abort()  # cancelled by a client that has left, or by the server's end
            raise
        finally:
            self._task = None
        if self._transport.is_closing():
            return
        if isinstance(response, Response) and self._stream is not None and self._stream.has_begun:
            self._abort()  # a cut stream is understood; an answer inside another one is not
            return
        keep_alive = request.keep_alive and not self._server.is_closing
        if isinstance(response, Response):
            self.write(
                response_bytes(
                    response,
                    is_head=request.method == "HEAD",
                    keep_alive=keep_alive,
                    is_http_10=request.is_http_10,
                )
            )
        elif request.is_http_10:
            keep_alive = False
        self._stream = None
        self._go_on(keep_alive)

    def begin_stream(
        self, request: Request, status: int, headers: Mapping[str, str]
    ) -> ResponseStream:
        is_chunked = not request.is_http_10
        request.keep_alive = request.keep_alive and not self._server.is_closing and is_chunked
        framing = b"Transfer-Encoding: chunked\r\n" if is_chunked else b""
        framing += connection_line(request.keep_alive, request.is_http_10)
        head = response_head(status, headers, framing)
        self._stream = ResponseStream(self, head, is_chunked, request.method == "HEAD")
        return self._stream

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def _go_on(self, keep_alive: bool) -> None:
        """An answer is complete: the next request, the end, or waiting."""
        if not keep_alive:
            self._hang_up()
        elif self._waiting:
            self._start(self._waiting.popleft())
            if self._is_reading_paused and not self._waiting:
                self._is_reading_paused = False
                self._transport.resume_reading()
        elif self._refusal is not None:
            self._give_up()
        elif self._server.is_closing:
            self._hang_up()
        else:
            self._rest()

    def _rest(self) -> None:
        limits, now_s = self._limits, self._loop.time()
        if self._reading is None and not self._is_in_head:
            self.deadline_s = now_s + (limits.stall_s if self.is_paused else limits.idle_s)
            return
        self.deadline_s = now_s + limits.stall_s
        if self._owes_continue:
            self._send_continue()

    # ending

    def _give_up(self) -> None:
        """Say why, as soon as it is this refusal's turn, and close."""
        self._is_deaf = True
        self._reading, self._body = None, b""
        if self._task is not None:
            return
        refusal = self._refusal
        assert refusal is not None
        self.write(response_bytes(refusal, is_head=False, keep_alive=False, is_http_10=False))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline_s = self._loop.time() + LINGER_S

    def _hang_up(self) -> None:
        """Close when all is written; `stall_s` from now at the latest."""
        self._is_deaf = True
        self.deadline_s = self._loop.time() + self._limits.stall_s
        self._transport.close()

    def _abort(self) -> None:
        self._is_deaf = True
        self._transport.abort()

    def end_if_idle(self) -> None:
        """The server closes: who is not being answered goes."""
        if self._task is None:
            self._hang_up()

    def end(self) -> None:
        """The server has closed: whoever is still here goes."""
        if self._task is not None:
            self._task.cancel()
        self._abort()

    def overdue(self) -> None:
        """The deadline has passed."""
        self.deadline_s = 0.0
        if self._is_deaf or (self._reading is None and not self._is_in_head):
            self._abort()
            return
        self._refusal = self._server.app.refuse(
            self._reading, 408, "request_timeout", "the request did not arrive in time"
        )
        self._give_up()
