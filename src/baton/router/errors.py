"""What can go wrong between client and workers, and how the client is told.

    RouterFailure
    ├── NoWorker        no healthy worker of a role: 503, come back in a second
    ├── TurnedAway      it waited in vain, or too many wait: 503 or 429, with Retry-After
    ├── Expired         the request's time is up, or the router's: 504 or 503
    └── LegFailure      one worker, one leg of one request
        ├── LegRefused  nobody took the connection: nothing was sent, so trying elsewhere is safe
        ├── LegBroken   the connection ended, or its bytes made no sense
        ├── LegRegrouped its stream is right, but cannot be joined to the client's inside a step
        └── LegRejected the worker answered with an error: status and body are passed unchanged

Invariant: every failure names the stage (prefill, decode, worker) and the worker's URL.
Elsewhere: which of two failed legs is to blame (pair.py).
"""

import math
from collections.abc import Mapping

import msgspec

from baton.core.errors import BatonError
from baton.router.breaker import Outcome, outcome_of_status
from baton.router.config import WorkerRole
from baton.router.waiting import Refusal
from baton.router.workers import Worker

RETRY_AFTER_S = 1
CLIENT_GONE_STATUS = 499
"""nginx's: the client left, or had its request aborted."""
_MAX_SAID_CHARS = 300
_MAX_SAID_BYTES = 4096
_QUEUE_FULL = b"queue is full"
"""SGLang's words; its workers send no Retry-After with them."""


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    trace_id: str | msgspec.UnsetType = msgspec.UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the router's own, in OpenAI's shape."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self, trace_id: str = "") -> bytes:
        """`trace_id` is said beside OpenAI's fields, if there is one."""
        error = ErrorBody(
            message=self.message,
            type=_type_of(self.status),
            param=self.param,
            code=self.code,
            trace_id=trace_id or msgspec.UNSET,
        )
        return msgspec.json.encode({"error": error})


def _type_of(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case 503:
            return "service_unavailable_error"
        case 504:
            return "timeout_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"


class RouterFailure(BatonError):
    """Base of what a client's request can die of in the router."""

    def __init__(self, problem: Problem):
        super().__init__(problem.message)
        self.problem = problem


class NoWorker(RouterFailure):
    """`num_cut_off` of the `num_known` are healthy, but kept away by their breakers."""

    def __init__(
        self, role: WorkerRole, num_known: int, num_cut_off: int = 0, try_in_s: float = 0.0
    ):
        stage = stage_of(role)
        known = f"{num_known} known, none healthy" if num_known else "none known"
        if num_cut_off:
            known = f"{num_known} known, {num_cut_off} of them failed too many requests"
        super().__init__(
            Problem(
                status=503,
                code=f"no_{stage}_worker" if stage != "worker" else "no_worker",
                message=f"no {role} worker available ({known}); see GET /workers",
                retry_after_s=max(RETRY_AFTER_S, math.ceil(try_in_s)),
            )
        )
        self.num_known = num_known


class TurnedAway(RouterFailure):
    """The router itself is full; no worker was asked."""

    def __init__(self, refusal: Refusal):
        super().__init__(
            Problem(
                status=refusal.status,
                code=refusal.code,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
            )
        )


class Expired(RouterFailure):
    """Ended by the router itself."""


def request_expired(limit_s: float) -> Expired:
    return Expired(
        Problem(
            status=504,
            code="request_timeout",
            message=f"the request did not finish within {limit_s:g} s (--request-timeout-secs)",
        )
    )


def router_stopping() -> Expired:
    return Expired(
        Problem(
            status=503,
            code="router_stopping",
            message="the router is shutting down; send the request again",
            retry_after_s=RETRY_AFTER_S,
        )
    )


class LegFailure(RouterFailure):
    kind = "failure"

    @property
    def outcome(self) -> Outcome:
        """What it says of the worker, for its breaker."""
        return Outcome.FAILURE

    def __init__(self, worker: Worker, problem: Problem):
        super().__init__(problem)
        self.worker = worker
        self.suspects: tuple[Worker, ...] = (worker,)
        """Who may have caused it: a decode worker's error can be its prefill worker's."""


class LegRefused(LegFailure):
    kind = "refused"

    def __init__(self, worker: Worker, reason: str):
        stage = stage_of(worker.role)
        super().__init__(
            worker,
            Problem(
                status=503,
                code=f"{stage}_unreachable",
                message=f"{_name(worker)} cannot be reached: {reason}",
                retry_after_s=RETRY_AFTER_S,
            ),
        )


class LegBroken(LegFailure):
    kind = "broken"

    def __init__(self, worker: Worker, reason: str):
        stage = stage_of(worker.role)
        super().__init__(
            worker,
            Problem(
                status=503,
                code=f"{stage}_failed",
                message=f"{_name(worker)} failed during the request: {reason}",
                retry_after_s=RETRY_AFTER_S,
            ),
        )


class LegRegrouped(LegFailure):
    """Nobody's fault: asked from where the client is, the same worker may go on."""

    kind = "regrouped"

    def __init__(self, worker: Worker, reason: str):
        super().__init__(
            worker,
            Problem(
                status=503,
                code="regrouped",
                message=f"{_name(worker)} cannot go on with the stream: {reason}",
                retry_after_s=RETRY_AFTER_S,
            ),
        )
        self.suspects = ()

    @property
    def outcome(self) -> Outcome:
        return Outcome.NO_VERDICT


class LegRejected(LegFailure):
    """`headers` are the end-to-end headers of the worker's answer."""

    kind = "rejected"

    def __init__(self, worker: Worker, status: int, headers: Mapping[str, str], body: bytes):
        stage = stage_of(worker.role)
        super().__init__(
            worker,
            Problem(
                status=status,
                code=f"{stage}_rejected",
                message=f"{_name(worker)} answered {status}{_said(body)}",
            ),
        )
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def outcome(self) -> Outcome:
        if _QUEUE_FULL in self.body[:_MAX_SAID_BYTES]:
            return Outcome.OVERLOAD
        return outcome_of_status(self.status, self.headers, _code(self.body))

    @property
    def is_clients_fault(self) -> bool:
        return 400 <= self.status < 500


def stage_of(role: WorkerRole) -> str:
    return "worker" if role is WorkerRole.REGULAR else role.value


class _Said(msgspec.Struct):
    message: str
    code: str | int | None = None


class _Rejection(msgspec.Struct):
    error: _Said


_decode_rejection = msgspec.json.Decoder(_Rejection).decode


def _said(body: bytes) -> str:
    """The worker's own words, where they are in OpenAI's shape."""
    try:
        return ": " + _decode_rejection(body).error.message[:_MAX_SAID_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _code(body: bytes) -> str | int | None:
    try:
        return _decode_rejection(body).error.code
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _name(worker: Worker) -> str:
    if worker.role is WorkerRole.REGULAR:
        return f"worker {worker.url}"
    return f"{worker.role} worker {worker.url}"
