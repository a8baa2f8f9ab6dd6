"""Runs one sample on the engine and tells its progress in text.

Invariant: a stream ends with exactly one piece whose `finish` is set, or raises; leaving it early
aborts the sample in the engine.
Elsewhere: several samples of one request (fan_out.py).
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from baton.api.engine_client import EngineClient
from baton.api.errors import CLIENT_CLOSED, GenerationFailed
from baton.api.spec import Sample, Seen
from baton.api.text import SampleText
from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.core.request import Finish, FinishReason
from baton.core.timeline import Timeline
from baton.messages.engine import TokenLogprob, TokenOutput
from baton.obs.metrics import WorkerMetrics
from baton.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SampleFinish:
    """How a sample ended. `matched`: the stop token's id or the stop string."""

    reason: Literal["stop", "length"]
    matched: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one engine output added to a sample; `is_replayed`: output that another worker made,
    which the client has."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None
    num_cached_tokens: int = 0
    finish: SampleFinish | None = None
    is_replayed: bool = False
    transferred_tokens: int = 0
    transfer_s: float = 0.0


class Stopwatch:
    """Times one sample from its arrival and reports to the metrics."""

    def __init__(self, metrics: WorkerMetrics, clock: Clock):
        self._metrics = metrics
        self._clock = clock
        self._start_s = clock.now_s()
        self._last_s: float | None = None
        metrics.request_started()

    def tokens(self, num_tokens: int, timeline: Timeline) -> None:
        now_s = self._clock.now_s()
        if self._last_s is None:
            if timeline.phases[-1].name == "engine":  # of several samples the first has it
                timeline.enter("stream", now_s)
            self._metrics.first_token(now_s - self._start_s, num_tokens)
        else:
            self._metrics.next_tokens(now_s - self._last_s, num_tokens)
        self._last_s = now_s

    def finished(self) -> None:
        self._metrics.request_finished(self._clock.now_s() - self._start_s)

    def aborted(self) -> None:
        self._metrics.request_aborted()


async def stream_sample(
    engine: EngineClient,
    tokenizer: Tokenizer,
    sample: Sample,
    stopwatch: Stopwatch,
    timeline: Timeline,
) -> AsyncGenerator[Piece, None]:
    """Raises GenerationFailed when the engine ends the sample with ABORT or ERROR."""
    request = sample.request
    text = SampleText(
        tokenizer,
        request.prompt_token_ids[: request.num_prompt_tokens],
        stops=sample.stops,
        keep_stop=sample.keep_stop,
        skip_special_tokens=sample.skip_special_tokens,
        min_new_tokens=request.sampling.min_new_tokens,
    )
    is_over = False
    try:
        if sample.seen is not None:
            yield _replayed(sample, sample.seen, text)
            if sample.seen.is_done:
                is_over = True
                stopwatch.finished()
                return
        async with aclosing(engine.generate(request)) as outputs:
            async for output in outputs:
                if output.token_ids:
                    stopwatch.tokens(len(output.token_ids), timeline)
                finish = output.finish
                is_over = finish is not None and finish.reason is not FinishReason.ABORT
                _raise_if_failed(finish)
                if sample.discard_output:
                    piece = _discarded(sample, output)
                else:
                    piece = _piece(sample, text, output)
                is_over = piece.finish is not None
                if is_over:
                    stopwatch.finished()
                yield piece
                if is_over:
                    return
        raise GenerationFailed("the engine ended the request without a result", 500, "internal")
    finally:
        if not is_over:
            stopwatch.aborted()


def _replayed(sample: Sample, seen: Seen, text: SampleText) -> Piece:
    """Brings text and counts to where the stream broke off. Logprobs that no event repeats are
    there for their tokens only: they move offsets on."""
    token_ids = seen.token_ids
    logprobs = seen.logprobs
    if logprobs is None:
        with_logprobs = sample.request.sampling.num_top_logprobs is not None
        logprobs = [TokenLogprob(token_id, 0.0) for token_id in token_ids] if with_logprobs else []
    return Piece(
        index=sample.index,
        text="" if seen.is_done else _replayed_text(token_ids, text),
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=seen.prompt_logprobs,
        finish=SampleFinish(reason="stop") if seen.is_done else None,
        is_replayed=True,
    )


def _replayed_text(token_ids: Sequence[int], text: SampleText) -> str:
    step = text.push(token_ids)
    if step.matched is not None:
        raise RequestError(
            f"resume.token_ids contain the stop string {step.matched!r}; the stream had ended",
            param="resume.token_ids",
        )
    return step.text


def _piece(sample: Sample, text: SampleText, output: TokenOutput) -> Piece:
    finish = output.finish
    step = text.push(output.token_ids, finish.matched_token if finish else None)
    shown, matched = step.text, step.matched
    if finish is not None and matched is None:
        rest = text.flush()
        shown, matched = shown + rest.text, rest.matched
    return Piece(
        index=sample.index,
        text=shown,
        token_ids=output.token_ids[: step.num_tokens],
        logprobs=(output.logprobs or [])[: step.num_tokens],
        prompt_logprobs=output.prompt_logprobs,
        num_cached_tokens=output.num_cached_tokens,
        finish=_sample_finish(finish, matched),
        transferred_tokens=output.transferred_tokens,
        transfer_s=output.transfer_s,
    )


def _discarded(sample: Sample, output: TokenOutput) -> Piece:
    return Piece(
        index=sample.index,
        prompt_logprobs=output.prompt_logprobs,
        num_cached_tokens=output.num_cached_tokens,
        finish=SampleFinish(reason="length") if output.finish else None,
        transferred_tokens=output.transferred_tokens,
        transfer_s=output.transfer_s,
    )


def _sample_finish(finish: Finish | None, matched: str | None) -> SampleFinish | None:
    if matched is not None:
        return SampleFinish(reason="stop", matched=matched)
    if finish is None:
        return None
    if finish.reason is FinishReason.LENGTH:
        return SampleFinish(reason="length")
    return SampleFinish(reason="stop", matched=finish.matched_token)


def _raise_if_failed(finish: Finish | None) -> None:
    if finish is None:
        return
    if finish.reason is FinishReason.ABORT:
        status = finish.status if finish.status >= 400 else CLIENT_CLOSED
        raise GenerationFailed(finish.message or "the request was aborted", status, "aborted")
    if finish.reason is FinishReason.ERROR:
        status = finish.status if finish.status >= 400 else 500
        raise GenerationFailed(finish.message or "the engine failed", status, "engine_error")
