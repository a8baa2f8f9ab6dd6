"""The api process's end of the pipe to its engine process; implements `api.EngineClient`.

Invariant: every `generate` ends with exactly one output that has `finish`, also when the engine
dies: then with reason ERROR, status 503.
Elsewhere: starting the process (launch/), the engine's end (ipc/engine_socket.py).
"""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import psutil

from baton.core.errors import BatonError, EngineDead
from baton.core.profile import ProfileNotes
from baton.core.request import EngineRequest, Finish, FinishReason
from baton.core.timeline import Timeline
from baton.ipc.framing import FrameReader, frame
from baton.messages.codec import Codec
from baton.messages.engine import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    Explain,
    Explained,
    FlushCache,
    FlushCacheDone,
    FromEngine,
    ProfilePart,
    ProfileStarted,
    Shutdown,
    StartProfile,
    StepOutputs,
    StopProfile,
    Submit,
    ToEngine,
    TokenOutput,
)

STALL_S = 60.0
"""A loop turn of the engine that takes longer counts as a hang: far above any step on a CPU."""

QUIET_S = 1.5
"""An idle engine says something every second; one that is quiet for longer is busy, or stopped."""


class EngineProcessClient(asyncio.Protocol):
    """One engine process. Create with `connect`, inside a running event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._to_engine: Codec[ToEngine] = Codec(ToEngine)
        self._from_engine: Codec[FromEngine] = Codec(FromEngine)
        self._ready: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self._stats: EngineStats | None = None
        self._heard_s = clock()
        self._streams: dict[str, asyncio.Queue[TokenOutput] | None] = {}  # None: nobody listens
        self._calls: dict[int, asyncio.Future[Any]] = {}  # what was asked and is not answered
        self._profile_parts: list[ProfileNotes] = []
        self._call_ids = itertools.count()
        self._death = ""
        self.dead = asyncio.Event()
        self._closed = asyncio.Event()

    @staticmethod
    async def connect(connection: socket.socket) -> "EngineProcessClient":
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(EngineProcessClient, sock=connection)
        return client

    async def wait_ready(self) -> EngineReady:
        """Raises EngineDead, with what the engine said, if it could not start."""
        return await asyncio.shield(self._ready)

    @property
    def ready(self) -> EngineReady:
        return self._ready.result()

    @property
    def stats(self) -> EngineStats:
        assert self._stats is not None, "the engine sends its first stats before it is ready"
        return self._stats

    @property
    def is_alive(self) -> bool:
        if self._death or self._quiet_s >= STALL_S:
            return False
        return self._quiet_s < QUIET_S or not self._ready.done() or not _is_stopped(self.ready.pid)

    @property
    def _quiet_s(self) -> float:
        return self._clock() - self._heard_s

    @property
    def death(self) -> str:
        """Why the engine is dead; empty while it lives."""
        return self._death

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        request_id = request.request_id
        if request_id in self._streams:
            message = f"rid {request_id!r} is already running"
            finish = Finish(reason=FinishReason.ERROR, message=message, status=400)
            yield TokenOutput(request_id=request_id, finish=finish)
            return
        queue: asyncio.Queue[TokenOutput] = asyncio.Queue()
        self._streams[request_id] = queue
        is_finished = False
        try:
            self._send(Submit(request=request))
            while not is_finished:
                output = await queue.get()
                is_finished = output.finish is not None
                yield output
        except EngineDead as error:
            is_finished = True
            yield self._dead_output(request_id, str(error))
        finally:
            if not is_finished and not self._death:
                # The name stays taken until the engine has said that it is over; otherwise its last
                # word could be taken for that of a new request of the same name.
                self._streams[request_id] = None
                self._send(Abort(request_id=request_id))

    def abort(self, request_id: str) -> bool:
        if request_id not in self._streams or self._death:
            return False
        self._send(Abort(request_id=request_id))
        return True

    def abort_all(self) -> int:
        return sum(self.abort(request_id) for request_id in list(self._streams))

    async def flush_cache(self) -> int:
        num_freed: int = await self._ask(lambda call_id: FlushCache(call_id=call_id))
        return num_freed

    async def start_profile(self, num_steps: int | None) -> None:
        await self._ask(lambda call_id: StartProfile(call_id=call_id, num_steps=num_steps))

    async def stop_profile(self) -> ProfileNotes | None:
        notes: ProfileNotes | None = await self._ask(lambda call_id: StopProfile(call_id=call_id))
        return notes

    async def explain(self, request_ids: list[str]) -> list[Timeline]:
        timelines: list[Timeline] = await self._ask(
            lambda call_id: Explain(call_id=call_id, request_ids=request_ids)
        )
        return timelines

    async def _ask(self, message_of: Callable[[int], ToEngine]) -> Any:
        call_id = next(self._call_ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(message_of(call_id))
        self._calls[call_id] = future
        return await future

    def shut_down(self) -> None:
        """Ask the engine to end; its death then shows in `dead`."""
        if not self._death:
            self._send(Shutdown())

    async def close(self) -> None:
        """Let go of the engine, which then ends by itself. Idempotent."""
        self._die("the worker is closing")
        await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio's without deriving from them.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._clock()
        try:
            for payload in self._reader.feed(data):
                self._on_message(self._from_engine.decode(payload))
        except (BatonError, ValueError) as error:
            self._die(f"the engine sent a malformed message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._die(self._death or "the engine process has ended")
        self._closed.set()

    def _send(self, message: ToEngine) -> None:
        if self._death or self._transport is None:
            raise EngineDead(self._death or "the engine is not connected")
        self._transport.write(frame(self._to_engine.encode(message)))

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case StepOutputs(outputs=outputs):
                for output in outputs:
                    self._on_output(output)
            case EngineStats():
                self._stats = message
            case EngineReady():
                self._ready.set_result(message)
            case FlushCacheDone(call_id=call_id, num_blocks_freed=num_freed):
                self._answer(call_id, num_freed)
            case ProfileStarted(call_id=call_id):
                self._answer(call_id, None)
            case ProfilePart():
                self._on_profile_part(message)
            case Explained(call_id=call_id, timelines=timelines):
                self._answer(call_id, timelines)
            case EngineFailed(message=reason):
                self._die(reason)

    def _answer(self, call_id: int, result: object) -> None:
        future = self._calls.pop(call_id)
        if not future.done():  # cancelled: its client did not wait for the answer
            future.set_result(result)

    def _on_profile_part(self, part: ProfilePart) -> None:
        """Parts of one profile come one behind the other."""
        if part.notes is not None:
            self._profile_parts.append(part.notes)
        if not part.is_last:
            return
        parts, self._profile_parts = self._profile_parts, []
        for more in parts[1:]:
            parts[0].steps += more.steps
            parts[0].requests += more.requests
        self._answer(part.call_id, parts[0] if parts else None)

    def _on_output(self, output: TokenOutput) -> None:
        queue = self._streams.get(output.request_id)
        if output.finish is not None:
            self._streams.pop(output.request_id, None)
        if queue is not None:
            queue.put_nowait(output)

    def _die(self, reason: str) -> None:
        if not self._death:
            self._death = reason
        if not self._ready.done():
            self._ready.set_exception(EngineDead(self._death))
            self._ready.exception()  # retrieved: nobody may be waiting for it
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDead(self._death))
        self._calls.clear()
        for request_id, queue in self._streams.items():
            if queue is not None:
                queue.put_nowait(self._dead_output(request_id, self._death))
        self._streams.clear()
        self.dead.set()
        if self._transport is not None:
            self._transport.close()

    @staticmethod
    def _dead_output(request_id: str, reason: str) -> TokenOutput:
        finish = Finish(reason=FinishReason.ERROR, message=reason, status=503)
        return TokenOutput(request_id=request_id, finish=finish)


def _is_stopped(pid: int) -> bool:
    """By a signal or a debugger: the kernel knows, so that a busy engine is never taken for one."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False
