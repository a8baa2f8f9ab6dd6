"""One client's request from its first byte to the last byte of its answer.

Invariant: every exchange is answered exactly once: by `deliver`, or by `fail`, which says the
error in the form that fits what was already sent (a JSON body, or an event in the stream).
Elsewhere: which answer is delivered (pair.py, dispatch.py).
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping

import msgspec

from baton.core.clock import Clock
from baton.core.request import is_sane_request_id
from baton.obs.logs import EventLog
from baton.router import sse
from baton.router.breaker import Outcome
from baton.router.errors import (
    CLIENT_GONE_STATUS,
    Expired,
    LegBroken,
    LegFailure,
    LegRefused,
    LegRegrouped,
    LegRejected,
    Problem,
    RouterFailure,
    request_expired,
    router_stopping,
)
from baton.router.event_ids import RequestIds
from baton.router.http.messages import Request, Response
from baton.router.http.stream import ResponseStream
from baton.router.http.upstream import header_block
from baton.router.journal import Attempt, Journey
from baton.router.keys import Caller
from baton.router.legs import AnswerLeg, Wire
from baton.router.logprobs import PromptLogprobs
from baton.router.marks import MARKS_FIELD, MARKS_HEADER, MarkedStream
from baton.router.metrics import RouterMetrics
from baton.router.numbered_stream import Diverged, NumberedStream, Regrouped
from baton.router.plan import QUEUE_WAIT_HEADER, Plan
from baton.router.requests import Generation
from baton.router.sample_marks import SEVERAL, MarkedSamples
from baton.router.trace_context import TRACEPARENT, TRACESTATE, forwarded_trace, trace_id_of

_log = EventLog("baton.router")

REQUEST_ID = "X-Request-ID"
_REQUEST_ID = REQUEST_ID.lower()
ATTEMPT_HEADER = "X-Baton-Attempt"
"""From the second attempt on: a worker may still have an earlier one of the same `rid`."""

_first_half_of_ids = random.SystemRandom().getrandbits(64)
_numbers = itertools.count(random.SystemRandom().getrandbits(31))
"""Ids must differ, between routers as well; nobody relies on their being secret."""

_JSON = {"Content-Type": "application/json", "Accept": "*/*"}
_JSON_LINES = header_block(_JSON)
_JSON_LINES_WITH_MARKS = header_block({**_JSON, MARKS_HEADER: "1"})
_AUTHORIZATION = "authorization"
_FORWARDED = frozenset((_AUTHORIZATION, "x-correlation-id", "x-smg-routing-key"))


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own id where workers would take it, too; else a new one."""
    asked = headers.get(_REQUEST_ID)
    if asked is not None and is_sane_request_id(asked):
        return asked
    return f"req-{_first_half_of_ids:016x}{next(_numbers):08x}"


def forwarded_headers(
    headers: Mapping[str, str], request_id: str, authorization: str | None = None
) -> dict[str, str]:
    """What workers are sent with a body: `_passed_on`, and what that body is."""
    return _passed_on(headers, request_id, authorization) | _JSON


def _passed_on(
    headers: Mapping[str, str], request_id: str, authorization: str | None
) -> dict[str, str]:
    """What workers get to see of a client's headers, whose names are lower case. `authorization`
    takes the place of the client's own, "" leaves it out."""
    forwarded = {
        name: value
        for name, value in headers.items()
        if name in _FORWARDED or (name.startswith(_REQUEST_ID) and name != _REQUEST_ID)
    }
    parent = headers.get(TRACEPARENT)
    if parent is not None:
        forwarded.update(forwarded_trace(parent, headers.get(TRACESTATE)))
    if authorization is not None:
        forwarded.pop(_AUTHORIZATION, None)
        if authorization:
            forwarded["Authorization"] = authorization
    forwarded[REQUEST_ID] = request_id
    return forwarded


def problem_response(problem: Problem, request_id: str, trace_id: str = "") -> Response:
    """`trace_id`: the client's own, if it sent one."""
    headers = {"Content-Type": "application/json", REQUEST_ID: request_id}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return Response(problem.status, problem.body(trace_id), headers)


def _always() -> bool:
    return True


def _has_died(failure: LegFailure) -> bool:
    """The worker says that something of it died, not that the request is wrong or too much."""
    is_503 = isinstance(failure, LegRejected) and failure.status == 503
    return is_503 and failure.outcome is Outcome.FAILURE


class Exchange:
    def __init__(
        self,
        request: Request,
        generation: Generation,
        request_id: str,
        wire: Wire,
        metrics: RouterMetrics,
        clock: Clock,
        started_s: float,
        may_retry: bool = False,
        authorization: str | None = None,
    ):
        self.generation = generation
        self.request_id = request_id
        self.may_retry = may_retry
        self.may_resume = may_retry and generation.may_be_marked
        lines = header_block(_passed_on(request.headers, request_id, authorization))
        lines += _JSON_LINES_WITH_MARKS if self.may_resume else _JSON_LINES
        self.header_lines = self._first_header_lines = lines
        self.client_headers: Mapping[str, str] = request.headers
        self.caller: Caller | None = request.caller
        self.num_resumes = 0
        self.waited_s = 0.0
        self._own_headers: dict[str, str] | None = None
        self._request = request
        self._wire = wire
        self._metrics = metrics
        self._clock = clock
        self._started_s = started_s
        self._stream: ResponseStream | None = None
        self._ids: RequestIds | None = None
        self._early: ResponseStream | None = None
        self._marked: MarkedStream | None = None
        self._merge: PromptLogprobs | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_awaited: Callable[[], bool] = _always
        self._expired: Expired | None = None
        self._num_attempts = 1
        self.status = CLIENT_GONE_STATUS
        self.reason = ""
        self.attempt: Attempt | None = None
        self.first_byte_s: float | None = None

    def give_ids(self, ids: RequestIds) -> None:
        """To its stream's events; a client that came back gets only what it has not seen."""
        self._ids = ids
        self.generation = ids.asked_again(self.generation)

    @property
    def trace_id(self) -> str:
        """The trace that the client says it belongs to, "" for none."""
        return trace_id_of(self.client_headers)

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """What the router says with the answer, whatever it will be."""
        if headers:
            self._own_headers = {**(self._own_headers or {}), **headers}

    def note_waited(self) -> None:
        """It has waited for its turn until now."""
        self.waited_s = self._clock.now_s() - self._started_s
        self.add_headers({QUEUE_WAIT_HEADER: f"{self.waited_s:.3f}"})

    def comment(self, line: bytes) -> None:
        """Say something before any worker has answered: from the first time on, the answer is a
        stream, and errors are events in it."""
        assert self._stream is None
        if self._early is None:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            headers |= {REQUEST_ID: self.request_id, **(self._own_headers or {})}
            self._early = self._request.begin_stream(200, headers)
        if not self._early.is_paused:
            self._early.write(line)

    def expire(self, limit_s: float) -> None:
        """Time is up: the request ends now."""
        self._end_by(request_expired(limit_s))

    def stop(self) -> None:
        """The router cannot wait any longer: end the request now, and say so."""
        self._end_by(router_stopping())

    def _end_by(self, expired: Expired) -> None:
        if self._expired is None:
            self._expired = expired
            self.poke()

    @property
    def plan(self) -> Plan | None:
        """Where it was sent last."""
        return self.attempt.plan if self.attempt is not None else None

    def note_attempt(self, plan: Plan) -> None:
        """Where it is sent now."""
        self.attempt = Attempt(self._clock.now_s(), plan, self.attempt)

    def journey(self, end_s: float | None = None) -> Journey:
        """What is remembered of it."""
        return Journey(
            self.request_id,
            self.generation.route,
            self._started_s,
            self.attempt,
            self.first_byte_s,
            end_s,
            self.status,
            self.reason,
        )

    def poke(self) -> None:
        """Something has happened that `until` may wait for."""
        waiter = self._waiter
        if waiter is not None and (self._expired is not None or self._is_awaited()):
            self._waiter, self._is_awaited = None, _always  # or legs and exchange were a cycle
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so, looked at whenever a leg has something to say; raises Expired.
        (To look where it is said is cheaper than to wake who waits for nothing.)"""
        if self._expired is None and not is_so():
            await self._poked(is_so)
        if self._expired is not None:
            raise self._expired

    async def changed(self) -> None:
        """Wait until something has happened, whatever; raises Expired."""
        if self._expired is None:
            await self._poked(_always)
        if self._expired is not None:
            raise self._expired

    def _poked(self, is_awaited: Callable[[], bool]) -> asyncio.Future[None]:
        self._is_awaited = is_awaited
        self._waiter = waiter = self._wire.loop.create_future()
        return waiter

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prefill's answer is needed; what a stream has begun with serves on."""
        return self._stream is None and self.generation.wants_prompt_logprobs

    async def deliver(
        self, leg: AnswerLeg, merge: PromptLogprobs | None
    ) -> Response | ResponseStream:
        """Send a worker's answer to the client, a stream piece by piece as it comes."""
        if self._stream is None:
            self.first_byte_s = self._clock.now_s()
            waited_s = self.first_byte_s - self._started_s
            self._metrics.exchanges.note_first_byte(self.generation.route, waited_s)
        if leg.is_stream:
            self._merge = merge or self._merge
            return await self._pass_stream(leg, self._merge)
        if self._stream is not None or self._early is not None:
            raise self._wire.failed(LegBroken(leg.worker, "it went on with a stream by no stream"))
        try:
            body = leg.body if merge is None else merge.into_body(leg.body)
        except msgspec.DecodeError as error:
            raise self._wire.failed(LegBroken(leg.worker, f"odd JSON: {error}")) from error
        return self._whole(leg.status, leg.headers, body)

    def can_resume_after(self, failure: LegFailure, is_first: bool = True) -> bool:
        """Whether another worker can go on where this one failed: what the client has seen, if
        anything, is known by its tokens, and the request itself is not to blame. `is_first`:
        nothing was tried before that reached a worker."""
        if not self.may_retry:
            return False
        if self._stream is None:
            if isinstance(failure, LegRefused):
                return not is_first
            return isinstance(failure, LegBroken) or _has_died(failure)
        is_known = self._marked is not None
        return is_known and not (isinstance(failure, LegRejected) and failure.is_clients_fault)

    def begin_again(self) -> None:
        """From now on workers are told that they may still have an earlier attempt."""
        self._num_attempts += 1
        self.header_lines = self._first_header_lines + header_block(
            {ATTEMPT_HEADER: str(self._num_attempts)}
        )

    def resume(self) -> None:
        """From now on the request is for what the client has not seen yet."""
        self.begin_again()
        self.num_resumes += 1
        if self._marked is not None:
            self._marked.drop_held()
            self.generation = self.generation.resumed(msgspec.json.encode(self._marked.resume))

    def fail(self, failure: RouterFailure) -> Response | ResponseStream:
        """Tell the client what went wrong."""
        problem = failure.problem
        self.status, self.reason = problem.status, problem.message
        stream = self._stream or self._early
        if stream is not None:
            stream.end(sse.event(problem.body(self.trace_id)) + sse.DONE_EVENT)
            return stream
        if isinstance(failure, LegRejected):
            return self._whole(failure.status, failure.headers, failure.body)
        response = problem_response(problem, self.request_id, self.trace_id)
        if self._own_headers is None:
            return response
        return Response(response.status, response.body, {**response.headers, **self._own_headers})

    def _whole(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        self.status = status
        if self._own_headers is not None:
            headers = {**headers, **self._own_headers}
        return Response(status, body, {**headers, REQUEST_ID: self.request_id})

    async def _pass_stream(self, leg: AnswerLeg, merge: PromptLogprobs | None) -> ResponseStream:
        stream = self._go_on_with(leg) if self._stream else self._begin_with(leg)
        passing = _Passing(leg, stream, merge, self._marked)
        events = passing.for_client(leg.take_first())
        if not leg.is_over:
            stream.on_pause, stream.on_resume = leg.pause, leg.resume
            stream.write(events)
            events = b""
            leg.flow_into(passing.take)
            if not stream.is_paused:
                leg.resume()
            await self.until(lambda: leg.is_over)
        rejection = leg.rejection
        is_missing = not leg.is_done or passing.has_failed  # behind [DONE] nothing is
        if leg.failure is not None and is_missing:
            stream.write(events)
            raise leg.failure
        if rejection is not None and passing.is_held_back(rejection):
            stream.write(events)
            raise self._wire.failed(rejection)
        stream.end(events)
        self.status = leg.status
        if rejection is not None:  # the client has read it; the log and the counters have not
            self._wire.failed(rejection)
            self.status, self.reason = rejection.status, rejection.problem.message
        return stream

    def _begin_with(self, leg: AnswerLeg) -> ResponseStream:
        headers = leg.headers
        said = headers.pop(MARKS_FIELD, None)
        has_no_ids = said is None or said.startswith(SEVERAL)
        if has_no_ids and self._ids is not None and self._ids.seen is not None:
            raise _begins_anew(leg)
        self._marked = self._marked_by(leg, said) if said is not None and self.may_resume else None
        leg.may_move = self._marked is not None
        headers[REQUEST_ID] = self.request_id
        if self._own_headers is not None:
            headers.update(self._own_headers)
        self._stream = self._early or self._request.begin_stream(leg.status, headers)
        return self._stream

    def _marked_by(self, leg: AnswerLeg, said: str) -> MarkedStream:
        try:
            if said.startswith(SEVERAL) or self.generation.repeats_logprobs:
                return MarkedSamples(said, self.generation.repeats_logprobs)
            if self._ids is None:
                return MarkedStream(said)
            header, ids = self._ids.told(said, self.request_id)
            return NumberedStream(header, ids, self._ids.seen)
        except ValueError:
            leg.break_off(f"{MARKS_HEADER} makes no sense: {said[:80]!r}")
            assert leg.failure is not None
            raise leg.failure from None

    def _go_on_with(self, leg: AnswerLeg) -> ResponseStream:
        assert self._stream is not None
        assert self._marked is not None
        if MARKS_FIELD not in leg.headers:
            raise _begins_anew(leg)
        self._metrics.resumes.labels("resumed").inc()
        _log.info(
            "stream resumed",
            request_id=self.request_id,
            worker=leg.worker.url,
            num_tokens=self._marked.num_tokens,
        )
        return self._stream


def _begins_anew(leg: AnswerLeg) -> LegFailure:
    leg.break_off("it cannot go on with another worker's stream")
    assert leg.failure is not None
    return leg.failure


class _Passing:
    """A stream on its way from a leg to the client, whole events at a time. `has_failed`: the leg
    was hung up on, as what it said made no sense."""

    __slots__ = ("_leg", "_marked", "_merge", "_stream", "has_failed")

    def __init__(
        self,
        leg: AnswerLeg,
        stream: ResponseStream,
        merge: PromptLogprobs | None,
        marked: MarkedStream | None,
    ):
        self._leg = leg
        self._marked = marked
        self._stream = stream
        self._merge = merge
        self.has_failed = False

    def is_held_back(self, rejection: LegRejected) -> bool:
        """The client does not get to see an error after which another worker may go on."""
        return self._marked is not None and not rejection.is_clients_fault

    def take(self, events: bytes) -> None:
        self._stream.write(self.for_client(events))

    def for_client(self, events: bytes) -> bytes:
        """What the client gets of it; a worker whose JSON is odd is hung up on."""
        if self._marked is not None:
            events = self._of_marked(self._marked, events)
        if self._merge is None or not events:
            return events
        try:
            return self._merge.into_events(events)
        except msgspec.DecodeError as error:
            self._leg.break_off(f"odd JSON: {error}")
            return b""

    def _of_marked(self, marked: MarkedStream, events: bytes) -> bytes:
        try:
            passed = marked.feed(events)
            rejection = self._leg.rejection
            if self._leg.is_done and (rejection is None or not self.is_held_back(rejection)):
                passed += marked.take_held(is_sound=rejection is None)
            return passed
        except Regrouped as error:
            self._leg.give_up(LegRegrouped(self._leg.worker, str(error)))
        except Diverged as error:
            self._leg.break_off(str(error))
        except ValueError:
            self._leg.break_off("a mark in its stream makes no sense")
        self.has_failed = True
        return b""
