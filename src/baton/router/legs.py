"""One leg of a request: one POST to one worker, its answer, and the ways it fails.

A leg runs without a task: it is told by its connection, and tells whoever waits by `poke`.
Invariants: every leg ends exactly once, whole, aborted or with a `failure`, and is counted at its
worker until then; a failure was reported to the ledger exactly once; aborting a leg closes its
connection to the worker.
Elsewhere: joining two legs (pair.py), writing the answer to the client (exchange.py), errors inside
streams (rejections.py).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from baton.router import sse
from baton.router.breaker import outcome_in_stream
from baton.router.deadlines import Deadlines
from baton.router.errors import (
    LegBroken,
    LegFailure,
    LegRefused,
    LegRejected,
)
from baton.router.http.client import UpstreamPool
from baton.router.http.upstream import NotConnected, RawHeaders, UpstreamError, request_head
from baton.router.placement import Visit
from baton.router.policies import RoutedRequest
from baton.router.rejections import rejection_in
from baton.router.stalls import NUM_LOOKS, StallWatch
from baton.router.transfer_report import Transfer, transfer_in
from baton.router.workers import Worker

MAX_HELD_BYTES = 64 * 2**10
"""Of a stream that nobody takes yet, before its worker has to wait."""

SILENCE_S = 1.0
"""After it a worker none of whose streams moves is asked whether it is there."""
_NUM_SILENCE_LOOKS = 2

_PER_HOP_HEADERS = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade",
     b"proxy-authenticate", b"content-length", b"date", b"server", b"x-request-id")
)  # fmt: skip


def end_to_end(headers: RawHeaders) -> dict[str, str]:
    """A worker's headers that are meant for the client."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name not in _PER_HOP_HEADERS
    }


class WholeAnswer(msgspec.Struct, frozen=True):
    """An answer that has arrived completely."""

    worker: Worker
    status: int
    headers: Mapping[str, str]
    body: bytes


class Ledger(Protocol):
    """Who keeps count of legs; `leg_began` gives them their `visit`."""

    def leg_began(self, leg: "Leg") -> None: ...
    def leg_ended(self, leg: "Leg") -> None: ...
    def has_another(self, worker: Worker) -> bool: ...
    def note_failure(self, failure: LegFailure) -> None: ...
    def note_silence(self, worker: Worker) -> None: ...


class Leg:
    """What both kinds share. `poke` is called after everything that someone may wait for. A leg
    that is over without being `is_whole` was aborted, or has a `failure`. `may_move`: another
    worker can do it if this one is given up. `is_alone`: the request has no other leg."""

    __slots__ = ("_call", "_pieces", "_raw_headers", "_wire", "failure", "is_alone", "is_over",
                 "is_stream", "is_whole", "may_move", "poke", "request", "status", "visit",
                 "was_sent", "worker")  # fmt: skip

    visit: Visit

    def __init__(
        self, wire: "Wire", worker: Worker, request: RoutedRequest, poke: Callable[[], None]
    ):
        self._wire = wire
        self.worker = worker
        self.request = request
        self.poke = poke
        self.failure: LegFailure | None = None
        self.is_alone = False
        self.is_over = False
        self.is_whole = False
        self.may_move = False
        self.was_sent = False
        self.is_stream = False
        self.status = 0
        self._raw_headers: RawHeaders = ()
        self._pieces: list[bytes] = []

    def begin(self, pool: UpstreamPool, head: bytes, body: bytes) -> None:
        self._wire.note_begin(self)
        self._call = pool.send(self.worker.origin, head, body, self)

    @property
    def headers(self) -> dict[str, str]:
        """Those meant for the client."""
        return end_to_end(self._raw_headers)

    def abort(self) -> None:
        """Hang up, unless it is over."""
        if not self.is_over:
            self._end()
            self._call.abort()

    def break_off(self, reason: str) -> None:
        """The worker's answer makes no sense: hang up and blame it."""
        self.give_up(LegBroken(self.worker, reason))

    def give_up(self, failure: LegFailure) -> None:
        """Hang up, with this as the reason."""
        if not self.is_over:
            self._call.abort()
        if self.failure is None:
            self._fail(failure)

    def request_sent(self) -> None:
        self.was_sent = True
        self.poke()

    def answer_began(self, status: int, headers: RawHeaders) -> None:
        self.status, self._raw_headers = status, headers
        self.is_stream = status < 400 and _is_event_stream(headers)

    def call_failed(self, error: UpstreamError) -> None:
        """Before the connection stands nothing was sent; afterwards nobody knows what was done."""
        kind = LegRefused if isinstance(error, NotConnected) else LegBroken
        self._fail(kind(self.worker, str(error)))

    def body_arrived(self, data: bytes) -> None:
        raise NotImplementedError

    def answer_ended(self) -> None:
        raise NotImplementedError

    def _whole_body(self) -> bytes | None:
        """The body, or None if it tells of an error, which is then this leg's failure."""
        body = b"".join(self._pieces)
        if self.status < 400:
            return body
        self._fail(LegRejected(self.worker, self.status, self.headers, body))
        return None

    def _complete(self) -> None:
        self.is_whole = True
        self._end()
        self.poke()

    def _fail(self, failure: LegFailure) -> None:
        self.failure = self._wire.failed(failure)
        self._end()
        self.poke()

    def _end(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._wire.note_end(self)


class AnswerLeg(Leg):
    """The leg whose answer the client gets. `has_answer`: all of it is in `body`, or it is a
    stream whose first event is here: `take_first`, then `flow_into`; both get whole events.
    `rejection`: the error that the worker told inside the stream."""

    __slots__ = ("_cutter", "_is_paused", "_num_events_seen", "_num_held_bytes", "_take", "body",
                 "has_answer", "rejection")  # fmt: skip

    def __init__(
        self, wire: "Wire", worker: Worker, request: RoutedRequest, poke: Callable[[], None]
    ):
        super().__init__(wire, worker, request, poke)
        self.body = b""
        self.has_answer = False
        self.rejection: LegRejected | None = None
        self._cutter = sse.EventCutter()
        self._is_paused = False
        self._num_events_seen = 0
        self._num_held_bytes = 0
        self._take: Callable[[bytes], None] | None = None

    @property
    def is_done(self) -> bool:
        """The stream's last event is here."""
        return self._cutter.is_done

    def take_first(self) -> bytes:
        """The stream's events so far."""
        first, self._pieces = b"".join(self._pieces), []
        return first

    def flow_into(self, take: Callable[[bytes], None]) -> None:
        """Hand on what follows, as it comes; `resume` lets it come."""
        assert self.has_answer
        self._take = take

    @property
    def num_events_seen(self) -> int | None:
        """None while nobody takes events, or another worker could not go on."""
        is_flowing = self._take is not None and not self._is_paused
        return self._num_events_seen if self.may_move and is_flowing else None

    def pause(self) -> None:
        self._is_paused = True
        if not self.is_over:
            self._call.pause()

    def resume(self) -> None:
        self._is_paused = False
        if not self.is_over:
            self._call.resume()

    def body_arrived(self, data: bytes) -> None:
        if not self.is_stream:
            self._pieces.append(data)
            return
        events = self._cutter.feed(data)
        if not events:
            return
        if self.rejection is None:
            self._note_rejection(events)
        self._num_events_seen += 1
        if self._take is not None:
            self._take(events)
        else:
            self._hold(events)

    def _hold(self, events: bytes) -> None:
        self._pieces.append(events)
        self._num_held_bytes += len(events)
        if self._num_held_bytes > MAX_HELD_BYTES:
            self._call.pause()
        if not self.has_answer:
            self.has_answer = True
            self.poke()

    def _note_rejection(self, events: bytes) -> None:
        """The client will read it; so must the worker's breaker."""
        self.rejection = rejection_in(self.worker, events)
        if self.rejection is not None:
            self.visit.verdict = outcome_in_stream(self.rejection.status)

    def answer_ended(self) -> None:
        if not self.is_stream:
            body = self._whole_body()
            if body is None:
                return
            self.body, self.has_answer = body, True
        elif not self._cutter.is_done:
            began = "without [DONE]" if self.has_answer else "before it began"
            self._fail(LegBroken(self.worker, f"its stream ended {began}"))
            return
        self._complete()


class PrefillLeg(Leg):
    """The leg that only has to succeed. A stream is watched for errors inside it. `body` is kept
    only if the leg was asked to. `decode_id`: the worker that its KV goes to."""

    __slots__ = ("_cutter", "_keeps_body", "body", "decode_id")

    def __init__(
        self,
        wire: "Wire",
        worker: Worker,
        request: RoutedRequest,
        poke: Callable[[], None],
        keeps_body: bool,
    ):
        super().__init__(wire, worker, request, poke)
        self.body = b""
        self.decode_id = ""
        self._keeps_body = keeps_body
        self._cutter = sse.EventCutter()

    @property
    def transfer(self) -> Transfer | None:
        """What its worker says about writing the KV, if it does."""
        return transfer_in(self._raw_headers)

    def body_arrived(self, data: bytes) -> None:
        if not self.is_stream:
            if self._keeps_body or self.status >= 400:
                self._pieces.append(data)
            return
        events = self._cutter.feed(data)
        rejection = rejection_in(self.worker, events)
        if rejection is not None:
            self._call.abort()
            self._fail(rejection)
        elif self._keeps_body:
            self._pieces.append(events)

    def answer_ended(self) -> None:
        body = self._whole_body()
        if body is None:
            return
        if self.is_stream and not self._cutter.is_done:
            self._fail(LegBroken(self.worker, "its stream ended without [DONE]"))
            return
        self.body = body
        self._complete()


class Wire:
    """The router's side of all connections to workers. `drain_limit_s`: how long a leg may go on
    that nobody waits for. `stall_limit_s`: how long a stream may be silent that could go on at
    another worker."""

    def __init__(self, ledger: Ledger, drain_limit_s: float, stall_limit_s: float):
        self._ledger = ledger
        self._stall_limit_s = stall_limit_s
        self._stalls = StallWatch[AnswerLeg]()
        self._silences = StallWatch[AnswerLeg](_NUM_SILENCE_LOOKS)
        self._looking: list[asyncio.TimerHandle] = []
        self._legs: set[Leg] = set()
        self._drains: Deadlines[Leg] = Deadlines(drain_limit_s, Leg.abort)
        self._pool: UpstreamPool
        self.loop: asyncio.AbstractEventLoop

    def attach(self, pool: UpstreamPool) -> None:
        """A pool belongs to a running event loop, so it comes later."""
        self._pool = pool
        self.loop = pool.loop
        self._look_every(self._stall_limit_s / NUM_LOOKS, self._look_for_stalls)
        self._look_every(SILENCE_S / _NUM_SILENCE_LOOKS, self._look_for_silence)

    def start_answer(
        self,
        worker: Worker,
        request: RoutedRequest,
        route: str,
        body: bytes,
        headers: bytes,
        poke: Callable[[], None],
        is_alone: bool = False,
    ) -> AnswerLeg:
        """Send a request whose answer is for the client; `headers` are whole lines."""
        leg = AnswerLeg(self, worker, request, poke)
        leg.is_alone = is_alone
        leg.begin(self._pool, _post(route, worker, headers, body), body)
        return leg

    def start_prefill(
        self,
        worker: Worker,
        request: RoutedRequest,
        route: str,
        body: bytes,
        headers: bytes,
        poke: Callable[[], None],
        keeps_body: bool,
    ) -> PrefillLeg:
        """Send a request of which only success matters."""
        leg = PrefillLeg(self, worker, request, poke, keeps_body)
        leg.begin(self._pool, _post(route, worker, headers, body), body)
        return leg

    def let_finish(self, leg: PrefillLeg) -> None:
        """Nobody waits for this leg any more: it may end by itself, within a limit."""
        if not leg.is_over:
            leg.poke, leg.may_move = _ignore, False
            self._drains.add(leg)

    async def fetch(
        self,
        worker: Worker,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> WholeAnswer:
        """A short exchange beside the requests for tokens; error statuses are answers, too."""
        try:
            answer = await self._pool.fetch(worker.origin, method, target, headers, body, timeout_s)
        except NotConnected as error:
            raise self.failed(LegRefused(worker, str(error))) from error
        except UpstreamError as error:
            raise self.failed(LegBroken(worker, str(error))) from error
        return WholeAnswer(worker, answer.status, end_to_end(answer.headers), answer.body)

    def failed(self, failure: LegFailure) -> LegFailure:
        """Report a failure; returns it to be raised."""
        self._ledger.note_failure(failure)
        return failure

    def note_begin(self, leg: Leg) -> None:
        self._legs.add(leg)
        self._ledger.leg_began(leg)

    def note_end(self, leg: Leg) -> None:
        self._legs.discard(leg)
        self._drains.discard(leg)
        self._ledger.leg_ended(leg)

    def give_up_on(self, worker: Worker) -> None:
        """The worker does not answer any more: what can go on elsewhere does so now."""
        for leg in list(self._legs):
            if leg.worker is worker and leg.may_move:
                leg.break_off(f"it is {worker.health.phase}: {worker.health.reason}")

    def _look_every(self, interval_s: float, look: Callable[[], None]) -> None:
        loop, place = asyncio.get_running_loop(), len(self._looking)

        def again() -> None:
            look()
            self._looking[place] = loop.call_later(interval_s, again)

        self._looking.append(loop.call_later(interval_s, again))

    def _answers(self) -> Iterator[AnswerLeg]:
        return (leg for leg in self._legs if isinstance(leg, AnswerLeg))

    def _look_for_stalls(self) -> None:
        for leg in self._stalls.look(self._answers()):
            if self._ledger.has_another(leg.worker):
                leg.break_off(f"no event came for {self._stall_limit_s:g} s")

    def _look_for_silence(self) -> None:
        """One stream may wait for its turn; a worker whose streams all do may be gone."""
        silent = set(self._silences.look(self._answers()))
        if silent:
            moving = {leg.worker for leg in self._silences.last_seen if leg not in silent}
            for worker in {leg.worker for leg in silent} - moving:
                if self._ledger.has_another(worker):
                    self._ledger.note_silence(worker)

    def close(self) -> None:
        """No leg outlives this."""
        for timer in self._looking:
            timer.cancel()
        self._drains.close()
        for leg in list(self._legs):
            leg.abort()


def _post(route: str, worker: Worker, headers: bytes, body: bytes) -> bytes:
    return request_head(b"POST", route.encode(), worker.origin, headers, len(body))


def _ignore() -> None:
    """In place of `poke` when nobody waits."""


def _is_event_stream(headers: RawHeaders) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower() == b"text/event-stream"
    return False
