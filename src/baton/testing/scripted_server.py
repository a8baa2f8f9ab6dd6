"""A server over real sockets that answers byte for byte what a test says, and breaks where it says.

Each connection carries one request. What is sent is a list of steps: bytes to write, an event to
wait for, or how to end before the answer is whole.
"""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final


class Break(Enum):
    """Close in order, or with a reset."""

    HANG_UP = auto()
    RESET = auto()


Step = bytes | asyncio.Event | Break

STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """`script` says what to answer to a request; `most_running` is how many requests it had at the
    same time, `on_left` is called when a client has left before its answer was whole. GET
    /v1/models and /health are answered by themselves."""

    script: Callable[[Request], Sequence[Step]]
    requests: list[Request] = field(default_factory=list)
    most_running: int = 0
    url: str = ""
    on_left: Callable[[], None] = lambda: None
    _num_running: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ScriptedServer"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator["ScriptedServer"]:
        """For a client that has the main thread and a loop of its own."""
        is_ready = threading.Event()
        loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def serve() -> None:
            is_over = asyncio.Event()
            async with self.running():
                loops.append((asyncio.get_running_loop(), is_over))
                is_ready.set()
                await is_over.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        is_ready.wait()
        try:
            yield self
        finally:
            loop, is_over = loops[0]
            loop.call_soon_threadsafe(is_over.set)
            thread.join()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader)
            if request.path in ("/v1/models", "/health"):
                writer.write(whole({"data": [{"id": "scripted"}]}))
                return
            if request.method == "GET":
                writer.write(whole({"error": "no such page"}, status="404 Not Found"))
                return
            self.requests.append(request)
            self._num_running += 1
            self.most_running = max(self.most_running, self._num_running)
            try:
                await self._until_left(reader, self._play(self.script(request), writer))
            finally:
                self._num_running -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.on_left()
        finally:
            writer.close()

    async def _until_left(
        self, reader: asyncio.StreamReader, playing: Coroutine[Any, Any, None]
    ) -> None:
        play, leave = asyncio.create_task(playing), asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait([play, leave], return_when=asyncio.FIRST_COMPLETED)
            if not play.done():
                raise ConnectionResetError("the client left")
            await play
        finally:
            play.cancel()
            leave.cancel()
            await asyncio.gather(play, leave, return_exceptions=True)

    async def _play(self, steps: Sequence[Step], writer: asyncio.StreamWriter) -> None:
        for step in steps:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            else:
                if step is Break.RESET:
                    raw: socket.socket = writer.get_extra_info("socket")
                    # Nothing lingers: closing sends a reset.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def event(answer: Any) -> bytes:
    """One event in a chunk of its own."""
    return chunk(b"data: " + json.dumps(answer).encode() + b"\n\n")


DONE: Final = chunk(b"data: [DONE]\n\n") + END


def whole(answer: Any, status: str = "200 OK") -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def generated(num_tokens: int, text: str = "", *, is_end: bool = False) -> dict[str, Any]:
    """An answer of SGLang's /generate so far."""
    return {
        "text": text or "x" * num_tokens,
        "meta_info": {
            "prompt_tokens": 7,
            "completion_tokens": num_tokens,
            "cached_tokens": 0,
            "finish_reason": {"type": "length"} if is_end else None,
        },
    }


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, json.loads(body) if body else None)
