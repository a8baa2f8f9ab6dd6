"""An `EngineClient` without a model: deterministic tokens, and gates where a test wants to look.

By default a request's output repeats its prompt, token by token, until its length is reached or a
stop token comes. Nothing sleeps: every wait is for something that a test, or a request, does.
Elsewhere: the real client (ipc/).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from baton.core.profile import ProfileNotes
from baton.core.request import EngineRequest, Finish, FinishReason, Role
from baton.core.timeline import Timeline
from baton.messages.engine import (
    BlockLedger,
    EngineReady,
    EngineStats,
    TokenLogprob,
    TokenOutput,
)
from baton.testing.byte_tokenizer import VOCAB_SIZE

ENGINE_DIED = Finish(reason=FinishReason.ERROR, message="the engine process died", status=503)


@dataclass
class _Running:
    """One request in the engine. `forced_finish` ends it at its next gate."""

    request: EngineRequest
    forced_finish: Finish | None = None
    num_sent: int = 0


@dataclass
class FakeEngine:
    """Settings may be changed at any time; `requests` has every request ever submitted.

    `tokens`: what to generate instead of the prompt (repeated). `pause_after`: wait before the
    token of that number until `resume()`. `finish_with`: end every request so, after
    `finish_after` tokens.
    """

    role: Role = "null"
    context_length: int = 4096
    block_size: int = 16
    num_blocks: int = 1024
    tokens: Sequence[int] | None = None
    tokens_per_output: int = 1
    num_cached_tokens: int = 0
    transferred_tokens: int = 0
    transfer_s: float = 0.0
    pause_after: int | None = None
    finish_with: Finish | None = None
    finish_after: int = 0
    is_alive: bool = True
    requests: list[EngineRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    num_flushes: int = 0
    timelines: list[Timeline] = field(default_factory=list)
    is_profiled: bool = False
    profiled_steps: int | None = None

    def __post_init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Event()
        self._finished: Counter[str] = Counter()
        self._num_prompt_tokens = 0
        self._num_generated = 0

    # What a test does.

    def resume(self) -> None:
        """Let every paused request go on to its end."""
        self.pause_after = None
        self._notify()

    def kill(self) -> None:
        """The process dies: every request ends with ERROR 503, nothing new is served."""
        self.is_alive = False
        self._end_all(ENGINE_DIED)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that happens in this engine makes `condition` true."""
        while not condition():
            await self._changed.wait()

    async def until_running(self, num_requests: int = 1) -> None:
        await self.until(lambda: len(self._running) == num_requests)

    async def until_idle(self) -> None:
        await self.until_running(0)

    @property
    def running_ids(self) -> list[str]:
        return list(self._running)

    # The EngineClient.

    @property
    def ready(self) -> EngineReady:
        return EngineReady(
            engine_id="fake",
            pid=1,
            role=self.role,
            architecture="FakeForCausalLM",
            vocab_size=VOCAB_SIZE,
            context_length=self.context_length,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_running_requests=64,
            kv_cache_dtype="bfloat16",
            layout_hash="fake",
            control_port=0 if self.role == "null" else 7000,
            transfer_backends=[] if self.role == "null" else ["shm"],
        )

    @property
    def stats(self) -> EngineStats:
        num_in_use = sum(self._num_blocks_of(running) for running in self._running.values())
        return EngineStats(
            progress_s=0.0,
            num_running=len(self._running),
            num_waiting=0,
            num_handover=0,
            ledger=BlockLedger(
                num_blocks=self.num_blocks,
                num_free=self.num_blocks - num_in_use,
                num_cached=0,
                num_in_use=num_in_use,
            ),
            num_tokens_in_use=num_in_use * self.block_size,
            total_prompt_tokens=self._num_prompt_tokens,
            total_cached_tokens=0,
            total_generated_tokens=self._num_generated,
            total_preemptions=0,
            total_steps=self._num_generated,
            total_step_seconds=0.0,
            total_transferred_bytes=0,
            total_transfers=0,
            total_transfer_failures=0,
            total_transfer_seconds=0.0,
            total_verified_blocks=0,
            total_damaged_blocks=0,
            total_finished=dict(self._finished),
        )

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        assert request.request_id not in self._running, "the api let a duplicate id through"
        running = _Running(request)
        self._running[request.request_id] = running
        self.requests.append(request)
        self._num_prompt_tokens += len(request.prompt_token_ids)
        self._notify()
        is_over = False
        try:
            async for output in self._outputs(running):
                is_over = output.finish is not None
                if is_over:
                    self._forget(running, str(output.finish and output.finish.reason))
                yield output
        finally:
            if not is_over:
                self.aborted.append(request.request_id)
                self._forget(running, "abort")

    def abort(self, request_id: str) -> bool:
        running = self._running.get(request_id)
        if running is None:
            return False
        self.aborted.append(request_id)
        running.forced_finish = Finish(reason=FinishReason.ABORT, message="aborted on request")
        self._notify()
        return True

    def abort_all(self) -> int:
        return sum(self.abort(request_id) for request_id in list(self._running))

    async def flush_cache(self) -> int:
        self.num_flushes += 1
        return 3

    async def start_profile(self, num_steps: int | None) -> None:
        self.profiled_steps = num_steps
        self.is_profiled = True

    async def stop_profile(self) -> ProfileNotes | None:
        was_profiled, self.is_profiled = self.is_profiled, False
        if not was_profiled:
            return None
        return ProfileNotes(start_s=1.0, end_s=3.0, steps=[], requests=self.timelines)

    async def explain(self, request_ids: list[str]) -> list[Timeline]:
        return [each for each in self.timelines if each.request_id in request_ids]

    # What happens inside.

    async def _outputs(self, running: _Running) -> AsyncGenerator[TokenOutput, None]:
        request, sampling = running.request, running.request.sampling
        if not self.is_alive:
            yield TokenOutput(request_id=request.request_id, finish=ENGINE_DIED)
            return
        prompt = request.prompt_token_ids[: request.num_prompt_tokens]
        source = islice(
            cycle(prompt if self.tokens is None else self.tokens), request.num_resumed_tokens, None
        )
        running.num_sent = request.num_resumed_tokens
        finish: Finish | None = None
        while finish is None:
            await self._gate(running)
            finish = running.forced_finish
            new: list[int] = []
            while finish is None and len(new) < self.tokens_per_output:
                if self.finish_with is not None and running.num_sent >= self.finish_after:
                    finish = self.finish_with
                    break
                token = next(source)
                new.append(token)
                running.num_sent += 1
                if token in sampling.stop_token_ids:
                    if running.num_sent > sampling.min_new_tokens:
                        finish = Finish(reason=FinishReason.STOP, matched_token=token)
                elif running.num_sent >= sampling.max_new_tokens:
                    finish = Finish(reason=FinishReason.LENGTH)
            self._num_generated += len(new)
            is_first = running.num_sent - request.num_resumed_tokens <= self.tokens_per_output
            yield self._output(running.request, new, finish, is_first)

    async def _gate(self, running: _Running) -> None:
        await asyncio.sleep(0)
        while (
            running.forced_finish is None
            and self.pause_after is not None
            and running.num_sent >= self.pause_after
        ):
            await self._changed.wait()

    def _output(
        self, request: EngineRequest, new: list[int], finish: Finish | None, is_first: bool
    ) -> TokenOutput:
        num_top = request.sampling.num_top_logprobs
        start = request.prompt_logprobs_start
        prompt = request.prompt_token_ids
        return TokenOutput(
            request_id=request.request_id,
            token_ids=new,
            logprobs=None if num_top is None else [fake_logprob(t, num_top) for t in new],
            prompt_logprobs=[
                fake_logprob(token, num_top or 0)
                if position
                else TokenLogprob(token_id=token, logprob=None)
                for position, token in enumerate(prompt[start:], start)
            ]
            if start is not None and is_first
            else None,
            num_cached_tokens=self.num_cached_tokens,
            finish=finish,
            transferred_tokens=self.transferred_tokens if finish is not None else 0,
            transfer_s=self.transfer_s if finish is not None else 0.0,
        )

    def _num_blocks_of(self, running: _Running) -> int:
        num_tokens = running.request.num_prompt_tokens + running.num_sent
        return -(-num_tokens // self.block_size)

    def _end_all(self, finish: Finish) -> None:
        for running in self._running.values():
            running.forced_finish = finish
        self._notify()

    def _forget(self, running: _Running, reason: str) -> None:
        del self._running[running.request.request_id]
        self._finished[reason] += 1
        self._notify()

    def _notify(self) -> None:
        """Wake whoever waits now; later waiters wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()


def fake_logprob(token_id: int, num_top: int) -> TokenLogprob:
    """A logprob that tests can work out: minus a hundredth of the id; alternatives follow it."""
    top = [((token_id + i) % VOCAB_SIZE, -(token_id + i) / 100) for i in range(num_top)]
    return TokenLogprob(token_id=token_id, logprob=-token_id / 100, top=top)
