"""The pipe between api process and engine: streams, aborts, and the death of either side."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from baton.core.errors import EngineDead
from baton.core.profile import ProfileNotes
from baton.core.request import EngineRequest, Finish, FinishReason
from baton.core.sampling import SamplingParams
from baton.core.timeline import Timeline
from baton.ipc.engine_process_client import EngineProcessClient
from baton.ipc.engine_socket import ApiGone, EngineSocket
from baton.ipc.framing import FrameError, FrameReader, frame
from baton.messages.engine import (
    Abort,
    EngineFailed,
    EngineReady,
    FlushCache,
    FlushCacheDone,
    FromEngine,
    ProfilePart,
    StepOutputs,
    StopProfile,
    Submit,
    ToEngine,
    TokenOutput,
)


class Pipe:
    """The engine's end, driven by the test; blocking calls go to a thread."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.engine = EngineSocket(theirs)
        self._received: list[ToEngine] = []

    async def receive(self) -> ToEngine:
        while not self._received:
            await asyncio.to_thread(self.engine.wait, 5.0)
            self._received += self.engine.take()
        return self._received.pop(0)

    async def send(self, message: FromEngine) -> None:
        await asyncio.to_thread(self.engine.send, message)


def request(name: str) -> EngineRequest:
    return EngineRequest(
        request_id=name, prompt_token_ids=[1], sampling=SamplingParams(max_new_tokens=4)
    )


def output(name: str, *tokens: int, finish: FinishReason | None = None) -> StepOutputs:
    ending = Finish(reason=finish) if finish is not None else None
    return StepOutputs(
        outputs=[TokenOutput(request_id=name, token_ids=list(tokens), finish=ending)]
    )


def test_outputs_reach_their_stream_and_end_with_the_finish() -> None:
    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        stream = client.generate(request("a"))
        first = asyncio.ensure_future(anext(stream))
        assert await pipe.receive() == Submit(request=request("a"))
        await pipe.send(output("stranger", 9))
        await pipe.send(output("a", 5))
        assert (await first).token_ids == [5]
        await pipe.send(output("a", 6, finish=FinishReason.LENGTH))
        rest = [item async for item in stream]
        assert [item.token_ids for item in rest] == [[6]]
        await client.close()
        pipe.engine.close()

    asyncio.run(scenario())


def test_leaving_a_stream_aborts_it_and_keeps_its_name_until_it_is_over() -> None:
    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        stream = client.generate(request("a"))
        first = asyncio.ensure_future(anext(stream))
        await pipe.receive()
        await pipe.send(output("a", 5))
        await first
        await stream.aclose()
        assert await pipe.receive() == Abort(request_id="a")
        again = await anext(client.generate(request("a")))
        assert again.finish is not None
        assert again.finish.status == 400
        await pipe.send(output("a", finish=FinishReason.ABORT))
        third = client.generate(request("a"))
        waiting = asyncio.ensure_future(anext(third))
        await pipe.receive()
        await pipe.send(output("a", 7))
        assert (await waiting).token_ids == [7]
        await third.aclose()
        await client.close()
        pipe.engine.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["closes", "says why", "sends garbage"])
def test_a_dying_engine_ends_every_stream_once(how: str) -> None:
    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        streams = [asyncio.ensure_future(collect(client, f"r{i}")) for i in range(3)]
        for _ in streams:
            await pipe.receive()
        if how == "says why":
            await pipe.send(EngineFailed(message="out of luck"))
        elif how == "sends garbage":
            pipe.engine._socket.send(frame(b"\xc1"))
        pipe.engine.close()
        for outputs in await asyncio.gather(*streams):
            assert [item.finish is not None for item in outputs] == [True]
            assert outputs[0].finish is not None
            assert outputs[0].finish.status == 503
            if how == "says why":
                assert outputs[0].finish.message == "out of luck"
        await client.dead.wait()
        assert not client.is_alive
        with pytest.raises(EngineDead):
            await client.flush_cache()
        after = await collect(client, "late")
        assert after[0].finish is not None
        await client.close()

    asyncio.run(scenario())


async def collect(client: EngineProcessClient, name: str) -> list[TokenOutput]:
    stream: AsyncIterator[TokenOutput] = client.generate(request(name))
    return [item async for item in stream]


def test_flush_answers_the_call() -> None:
    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        call = asyncio.ensure_future(client.flush_cache())
        message = await pipe.receive()
        assert isinstance(message, FlushCache)
        await pipe.send(FlushCacheDone(call_id=message.call_id, num_blocks_freed=12))
        assert await call == 12
        await client.close()
        pipe.engine.close()

    asyncio.run(scenario())


def test_the_parts_of_a_profile_are_one_answer() -> None:
    def part(name: str) -> ProfileNotes:
        timeline = Timeline.begin(name, "queue", 1.0)
        return ProfileNotes(start_s=1.0, end_s=2.0, steps=[], requests=[timeline])

    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        for names in (["a", "b", "c"], ["d"], []):
            call = asyncio.ensure_future(client.stop_profile())
            message = await pipe.receive()
            assert isinstance(message, StopProfile)
            parts: list[ProfileNotes | None] = [part(name) for name in names] or [None]
            for index, notes in enumerate(parts):
                is_last = index + 1 == len(parts)
                reply = ProfilePart(call_id=message.call_id, notes=notes, is_last=is_last)
                await pipe.send(reply)
            found = await call
            assert [each.request_id for each in found.requests] == names if found else not names
        await client.close()
        pipe.engine.close()

    asyncio.run(scenario())


def test_a_caller_of_flush_who_leaves_harms_nobody() -> None:
    async def scenario() -> None:
        pipe = Pipe()
        client = await EngineProcessClient.connect(pipe.ours)
        calls = [asyncio.ensure_future(client.flush_cache()) for _ in range(2)]
        first = await pipe.receive()
        await pipe.receive()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, FlushCache)
        await pipe.send(FlushCacheDone(call_id=first.call_id, num_blocks_freed=3))
        outputs = asyncio.ensure_future(collect(client, "after"))
        await pipe.receive()
        await pipe.send(output("after", 5, finish=FinishReason.LENGTH))
        assert [item.token_ids for item in await outputs] == [[5]]
        assert client.death == ""
        await client.close()
        pipe.engine.close()

    asyncio.run(scenario())


def test_the_engine_notices_that_the_api_process_is_gone() -> None:
    ours, theirs = socket.socketpair()
    engine = EngineSocket(theirs)
    ours.close()
    with pytest.raises(ApiGone):
        engine.wait(5.0)
    with pytest.raises(ApiGone):
        engine.send(output("a", 1))
    engine.close()


def test_a_stopped_engine_is_not_alive_and_a_busy_one_is() -> None:
    """Both are quiet; what the process is, the kernel knows."""

    async def scenario(process: subprocess.Popen[bytes]) -> None:
        ours, theirs = socket.socketpair()
        engine, now_s = EngineSocket(theirs), 0.0
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: EngineProcessClient(lambda: now_s), sock=ours
        )
        await asyncio.to_thread(engine.send, ready(process.pid))
        await client.wait_ready()
        now_s = 10.0
        assert client.is_alive
        await asyncio.to_thread(signalled, process, signal.SIGSTOP, os.WSTOPPED)
        assert not client.is_alive
        now_s = 1.0
        assert client.is_alive, "it has just said something"
        now_s = 10.0
        await asyncio.to_thread(signalled, process, signal.SIGCONT, os.WCONTINUED)
        assert client.is_alive
        now_s = 61.0
        assert not client.is_alive
        await client.close()
        engine.close()

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            asyncio.run(scenario(process))
        finally:
            process.kill()


def signalled(process: subprocess.Popen[bytes], number: signal.Signals, effect: int) -> None:
    process.send_signal(number)
    os.waitid(os.P_PID, process.pid, effect | os.WNOWAIT)


def ready(pid: int) -> EngineReady:
    return EngineReady(
        engine_id="e",
        pid=pid,
        role="null",
        architecture="a",
        vocab_size=8,
        context_length=8,
        block_size=8,
        num_blocks=8,
        max_running_requests=8,
        kv_cache_dtype="bfloat16",
        layout_hash="l",
        control_port=0,
        transfer_backends=[],
    )


def test_wake_ends_a_wait_from_another_thread() -> None:
    ours, theirs = socket.socketpair()
    engine = EngineSocket(theirs)
    waiter = threading.Thread(target=engine.wait, args=(60.0,))
    waiter.start()
    engine.wake()
    waiter.join(10.0)
    assert not waiter.is_alive()
    engine.close()
    ours.close()


def test_frames_survive_any_cutting_and_oversized_ones_are_refused() -> None:
    stream = frame(b"one") + frame(b"") + frame(b"three" * 100)
    for size in (1, 2, 3, 7, len(stream)):
        reader = FrameReader()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [p for piece in pieces for p in reader.feed(piece)] == [b"one", b"", b"three" * 100]
    with pytest.raises(FrameError):
        list(FrameReader(max_frame_bytes=10).feed(b"\xff\xff\xff\xff"))
