"""One client's request from its first byte to the last byte of its answer.

Invariant: every exchange is answered exactly once: by `deliver`, or by `fail`, which says the
error in the form that fits what was already sent (a JSON body, or an event in the stream).
Elsewhere: which answer is delivered (pair.py, single.py).
"""

import asyncio
import secrets
from collections.abc import Mapping

import msgspec
from aiohttp import web

from baton.core.clock import Clock
from baton.core.request import is_sane_request_id
from baton.router import sse
from baton.router.errors import (
    CLIENT_GONE_STATUS,
    Expired,
    LegBroken,
    LegRejected,
    Problem,
    RouterFailure,
    request_expired,
    router_stopping,
)
from baton.router.legs import Answer, StreamAnswer, Wire, rejection_in
from baton.router.logprobs import PromptLogprobs
from baton.router.metrics import RouterMetrics
from baton.router.requests import Generation

REQUEST_ID = "X-Request-ID"

_FORWARDED = frozenset(
    ("authorization", "x-correlation-id", "traceparent", "tracestate", "x-smg-routing-key")
)
_FORWARDED_PREFIX = "x-request-id"


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own id where workers would take it, too; else a new one."""
    asked = headers.get(REQUEST_ID, "")
    return asked if is_sane_request_id(asked) else f"req-{secrets.token_hex(12)}"


def forwarded_headers(headers: Mapping[str, str], request_id: str) -> dict[str, str]:
    """What workers get to see of a client's headers."""
    forwarded = {
        name: value
        for name, value in headers.items()
        if (lower := name.lower()) in _FORWARDED
        or (lower.startswith(_FORWARDED_PREFIX) and lower != _FORWARDED_PREFIX)
    }
    forwarded[REQUEST_ID] = request_id
    forwarded["Content-Type"] = "application/json"
    return forwarded


def problem_response(problem: Problem, request_id: str) -> web.Response:
    headers = {REQUEST_ID: request_id}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return web.Response(
        status=problem.status,
        body=problem.body(),
        headers=headers,
        content_type="application/json",
    )


class Exchange:
    def __init__(
        self,
        request: web.Request,
        generation: Generation,
        request_id: str,
        wire: Wire,
        metrics: RouterMetrics,
        clock: Clock,
        started_s: float,
    ):
        self.generation = generation
        self.request_id = request_id
        self.headers = forwarded_headers(request.headers, request_id)
        self.client_headers: Mapping[str, str] = request.headers
        self._request = request
        self._wire = wire
        self._metrics = metrics
        self._clock = clock
        self._started_s = started_s
        self._stream: web.StreamResponse | None = None
        self._scope: asyncio.Timeout | None = None
        self._is_stopped = False
        self.status = CLIENT_GONE_STATUS
        self.reason = ""

    def limit(self, seconds: float) -> asyncio.Timeout:
        """The scope in which the request must end."""
        self._scope = asyncio.timeout(seconds)
        return self._scope

    def stop(self) -> None:
        """The router cannot wait any longer: end the request now, and say so."""
        if self._scope is not None and not self._scope.expired():
            self._is_stopped = True
            self._scope.reschedule(asyncio.get_running_loop().time())

    def expired(self, limit_s: float) -> Expired:
        """Why the scope ended the request."""
        return router_stopping() if self._is_stopped else request_expired(limit_s)

    async def deliver(self, answer: Answer, merge: PromptLogprobs | None) -> web.StreamResponse:
        """Send a worker's answer to the client, a stream piece by piece as it comes."""
        waited_s = self._clock.now_s() - self._started_s
        self._metrics.ttft.labels(self.generation.route).observe(waited_s)
        try:
            if isinstance(answer, StreamAnswer):
                return await self._pass_stream(answer, merge)
            body = answer.body if merge is None else merge.into_body(answer.body)
        except msgspec.DecodeError as error:
            raise self._wire.failed(LegBroken(answer.worker, f"odd JSON: {error}")) from error
        return self._whole(answer.status, answer.headers, body)

    async def fail(self, failure: RouterFailure) -> web.StreamResponse:
        """Tell the client what went wrong."""
        problem = failure.problem
        self.status, self.reason = problem.status, problem.message
        if self._stream is not None:
            await self._stream.write(sse.event(problem.body()) + sse.DONE_EVENT)
            await self._stream.write_eof()
            return self._stream
        if isinstance(failure, LegRejected):
            return self._whole(failure.status, failure.headers, failure.body)
        return problem_response(problem, self.request_id)

    def abandoned(self) -> web.StreamResponse:
        """What to return when the client is gone: nobody will read it."""
        return self._stream or web.Response(status=CLIENT_GONE_STATUS)

    def _whole(self, status: int, headers: Mapping[str, str], body: bytes) -> web.Response:
        self.status = status
        return web.Response(status=status, headers=self._headers(headers), body=body)

    async def _pass_stream(
        self, answer: StreamAnswer, merge: PromptLogprobs | None
    ) -> web.StreamResponse:
        stream = web.StreamResponse(status=answer.status, headers=self._headers(answer.headers))
        await stream.prepare(self._request)
        self._stream = stream
        cutter, chunk = sse.EventCutter(), answer.first
        rejection: LegRejected | None = None
        while chunk:
            events = cutter.feed(chunk)
            if events:
                rejection = rejection or rejection_in(answer.worker, events)
                await stream.write(events if merge is None else merge.into_events(events))
            chunk = await answer.next_chunk()
        if not cutter.is_done:
            raise self._wire.failed(LegBroken(answer.worker, "its stream ended without [DONE]"))
        await stream.write_eof()
        self.status = answer.status
        if rejection is not None:  # the client has read it; the log and the counters have not
            self._wire.failed(rejection)
            self.status, self.reason = rejection.status, rejection.problem.message
        return stream

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**headers, REQUEST_ID: self.request_id}
