"""The path of every generation request: admit, pair, run, answer.

Invariant: however a request ends (answered, failed, client gone), its samples have ended in the
engine and its ids are free again when this returns.
Elsewhere: what was asked (convert_*.py), how it is shown (answers_*.py).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec
from aiohttp import web

from baton.api.admission import admit
from baton.api.answers import Answer
from baton.api.errors import CLIENT_CLOSED, GenerationFailed, describe, is_expected
from baton.api.fan_out import Stream, merge
from baton.api.marks import MARKS_HEADER, Marks
from baton.api.outcome import Outcome, TokenCounts, count_tokens
from baton.api.pairing import attach_peers
from baton.api.request_id import REQUEST_ID, attempt_suffix, engine_base_id
from baton.api.running import Claim
from baton.api.sample_stream import Stopwatch, stream_sample
from baton.api.spec import GenerationSpec
from baton.api.sse import DONE, EventStream
from baton.api.state import Service
from baton.core.timeline import Timeline
from baton.obs.logs import event_log

log = event_log("api")

TRANSFER_HEADER: Final = "X-Baton-Transfer"
"""Of a prefill leg with one sample: tokens whose KV it wrote, and the seconds that this went on
after the prompt was computed. The router measures the way between two workers by it."""

TOKEN_COUNTS: Final = web.RequestKey("token_counts", TokenCounts)
"""What a request took and made, for its log line."""
ARRIVED_S: Final = web.RequestKey("arrived_s", float)
TIMELINE: Final = web.RequestKey("timeline", Timeline)
"""Where a request for tokens spends its time; the middleware ends it."""


async def generate(
    request: web.Request,
    service: Service,
    spec: GenerationSpec,
    answer: Answer,
    created: int = 0,
) -> web.StreamResponse:
    """Serve one request. Raises what errors.py can describe, unless an event was already sent."""
    engine = service.live_engine()
    state = service.state
    timeline = _begin_timeline(request, service)
    base_id = spec.rid if isinstance(spec.rid, str) else engine_base_id(request)
    suffix = attempt_suffix(request)
    samples = admit(spec, service.limits, base_id, service.draw_seed, suffix)
    timeline.samples = [sample.request.request_id for sample in samples]
    ids = [sample_id.removesuffix(suffix) for sample_id in timeline.samples]
    with service.running.claim(base_id, ids, suffix) as claim:
        stopwatches = [Stopwatch(service.metrics, state.clock) for _ in samples]
        samples = await attach_peers(samples, state.role, state.resolve_prefill)
        _stop_if_aborted(claim)
        timeline.enter("engine", state.clock.now_s())
        pieces = merge(
            [
                stream_sample(engine, state.tokenizer, sample, stopwatch, timeline)
                for sample, stopwatch in zip(samples, stopwatches, strict=True)
            ]
        )
        outcomes = [Outcome(sample) for sample in samples]
        try:
            if spec.stream:
                marks = None
                if _are_marks_wanted(request, service):
                    shown_id = (spec.resume.id if spec.resume else None) or base_id
                    marks = Marks(spec, samples, created, shown_id)
                return await _answer_with_events(request, pieces, outcomes, answer, marks)
            return await _answer_at_once(pieces, outcomes, answer)
        finally:
            request[TOKEN_COUNTS] = count_tokens(outcomes)


def _begin_timeline(request: web.Request, service: Service) -> Timeline:
    """What came before was reading the body and turning its text into tokens."""
    timeline = Timeline.begin(request[REQUEST_ID], "read", request[ARRIVED_S])
    timeline.enter("pair", service.state.clock.now_s())
    request[TIMELINE] = timeline
    service.requests.add(timeline)
    return timeline


def _stop_if_aborted(claim: Claim) -> None:
    if claim.is_aborted:
        raise GenerationFailed("the request was aborted", CLIENT_CLOSED, "aborted")


def _are_marks_wanted(request: web.Request, service: Service) -> bool:
    return MARKS_HEADER in request.headers and service.state.role != "prefill"


async def _answer_at_once(
    pieces: Stream, outcomes: Sequence[Outcome], answer: Answer
) -> web.StreamResponse:
    async with aclosing(pieces):
        async for piece in pieces:
            outcomes[piece.index].add(piece)
    return web.Response(
        body=answer.whole(outcomes),
        content_type="application/json",
        headers=_transfer_headers(outcomes),
    )


def _transfer_headers(outcomes: Sequence[Outcome]) -> dict[str, str]:
    if len(outcomes) != 1 or not outcomes[0].transferred_tokens:
        return {}
    only = outcomes[0]
    return {TRANSFER_HEADER: f"{only.transferred_tokens} {only.transfer_s:.6f}"}


async def _answer_with_events(
    request: web.Request,
    pieces: Stream,
    outcomes: Sequence[Outcome],
    answer: Answer,
    marks: Marks | None,
) -> web.StreamResponse:
    events = EventStream(request)
    if marks is not None:
        events.response.headers[MARKS_HEADER] = marks.header
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                outcome = outcomes[piece.index]
                outcome.add(piece)
                if piece.transferred_tokens and not events.has_started:
                    events.response.headers.update(_transfer_headers(outcomes))
                shown = answer.events(piece, outcome)
                if piece.is_replayed:
                    continue
                await events.send(shown, marks.behind(piece, shown) if marks else b"")
        await events.send([*answer.last_events(outcomes), DONE])
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as error:
        if not events.has_started:
            raise
        status, body = describe(error)
        if not is_expected(error):
            log.error("stream failed", exc=error, request_id=request[REQUEST_ID])
        elif status >= 500:  # the status line said 200, so only this line tells
            log.info("stream failed", request_id=request[REQUEST_ID], reason=str(error))
        await events.send([msgspec.json.encode(body), DONE])
    await events.finish()
    return events.response
