"""A worker that fails requests gets none for a while, then one to try.

    CLOSED ──failures in the window──> OPEN ──cool-down over──> HALF_OPEN ──success──> CLOSED
                                         ^                          │
                                         └───────── failure ────────┘  (twice the cool-down)

Only a worker's own failures count: a client's errors, an overloaded worker that says so, and a leg
that was cancelled because the other one failed say nothing against it.
Invariant: OPEN admits nobody; HALF_OPEN admits one request at a time; a result counts only in the
phase in which its request was admitted, so what began before the breaker opened decides nothing
afterwards.
Elsewhere: health checks (workers.py): they ask whether somebody is there, this whether it works.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec


class BreakerPhase(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


CLOSED = BreakerPhase.CLOSED
"""What nearly all are nearly always; to ask the enumeration costs a call, in Python before 3.12."""

LEGAL_MOVES = {
    BreakerPhase.CLOSED: {BreakerPhase.OPEN},
    BreakerPhase.OPEN: {BreakerPhase.HALF_OPEN},
    BreakerPhase.HALF_OPEN: {BreakerPhase.CLOSED, BreakerPhase.OPEN},
}


@dataclass(frozen=True)
class BreakerRules:
    """Opens at `failure_threshold` failures within `window_s`, of which every success forgives one;
    closes after `success_threshold` probes in a row. The cool-down starts at `cool_down_s`, doubles
    with every failed probe up to `max_cool_down_s`. A probe without a result for `probe_limit_s`
    is given up, so that the next may go."""

    is_enabled: bool = True
    failure_threshold: int = 5
    success_threshold: int = 1
    window_s: float = 30.0
    cool_down_s: float = 1.0
    max_cool_down_s: float = 60.0
    probe_limit_s: float = 60.0


class Outcome(enum.StrEnum):
    """How a leg ended, as far as the worker is to blame. `NO_VERDICT`: the client or the router
    ended it, or the other leg failed first."""

    SUCCESS = "success"
    FAILURE = "failure"
    OVERLOAD = "overload"
    CLIENTS_FAULT = "clients_fault"
    NO_VERDICT = "no_verdict"


SUCCESS = Outcome.SUCCESS

_OVERLOAD_CODES = frozenset(("queue_full", "overloaded", "rate_limit_exceeded"))


def outcome_of_status(status: int, headers: Mapping[str, str], code: object = None) -> Outcome:
    """What a worker's answer says of the worker. 503 means overload only where the worker says
    when to come back, or why."""
    if status < 400:
        return Outcome.SUCCESS
    if status == 429:
        return Outcome.OVERLOAD
    says_when = any(name.lower() == "retry-after" for name in headers)
    if status == 503 and (says_when or code in _OVERLOAD_CODES):
        return Outcome.OVERLOAD
    return Outcome.CLIENTS_FAULT if status < 500 else Outcome.FAILURE


def outcome_in_stream(status: int) -> Outcome:
    """Of an error inside a stream, where no header could say when to come back: 503 is then what
    SGLang's workers say when their queue is full."""
    return Outcome.OVERLOAD if status == 503 else outcome_of_status(status, {})


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """`epoch` grows with every move and every probe. `probe_since_s` is set while a probe runs."""

    phase: BreakerPhase = BreakerPhase.CLOSED
    epoch: int = 0
    failures_s: tuple[float, ...] = ()
    num_successes: int = 0
    cool_down_s: float = 0.0
    opened_s: float = 0.0
    probe_since_s: float | None = None

    @property
    def may_try_s(self) -> float:
        """When an open breaker admits a probe."""
        return self.opened_s + self.cool_down_s


def as_of(breaker: Breaker, rules: BreakerRules, now_s: float) -> Breaker:
    """What time alone has changed: the cool-down is over, or a probe is given up."""
    if breaker.phase is BreakerPhase.OPEN and now_s >= breaker.may_try_s:
        return _moved(breaker, BreakerPhase.HALF_OPEN, num_successes=0)
    since_s = breaker.probe_since_s
    if since_s is not None and now_s - since_s >= rules.probe_limit_s:
        return msgspec.structs.replace(breaker, probe_since_s=None, epoch=breaker.epoch + 1)
    return breaker


def admits(breaker: Breaker) -> bool:
    """Whether a request may go there; `breaker` is as of now."""
    match breaker.phase:
        case BreakerPhase.CLOSED:
            return True
        case BreakerPhase.OPEN:
            return False
        case BreakerPhase.HALF_OPEN:
            return breaker.probe_since_s is None


def after_admission(breaker: Breaker, now_s: float) -> Breaker:
    """A request goes there; its result must be reported with the epoch of what is returned."""
    assert admits(breaker), f"a breaker that is {breaker.phase} admits nobody"
    if breaker.phase is BreakerPhase.CLOSED:
        return breaker
    return msgspec.structs.replace(breaker, probe_since_s=now_s, epoch=breaker.epoch + 1)


def after_outcome(
    breaker: Breaker, rules: BreakerRules, outcome: Outcome, epoch: int, now_s: float
) -> Breaker:
    """A request that was admitted in `epoch` has ended."""
    if outcome is SUCCESS and breaker.phase is CLOSED and not breaker.failures_s:
        return breaker  # nothing to forgive: the usual case, and quickly told
    if epoch != breaker.epoch or not rules.is_enabled:
        return breaker
    is_probe = breaker.phase is BreakerPhase.HALF_OPEN
    match outcome:
        case Outcome.SUCCESS:
            return _after_success(breaker, rules) if is_probe else _forgiven(breaker)
        case Outcome.FAILURE:
            return _after_failure(breaker, rules, now_s)
        case Outcome.OVERLOAD | Outcome.CLIENTS_FAULT | Outcome.NO_VERDICT:
            return _probe_over(breaker) if is_probe else breaker


def _forgiven(breaker: Breaker) -> Breaker:
    if not breaker.failures_s:
        return breaker
    return msgspec.structs.replace(breaker, failures_s=breaker.failures_s[1:])


def _after_success(breaker: Breaker, rules: BreakerRules) -> Breaker:
    num_successes = breaker.num_successes + 1
    if num_successes < rules.success_threshold:
        return msgspec.structs.replace(_probe_over(breaker), num_successes=num_successes)
    return _moved(
        breaker, BreakerPhase.CLOSED, failures_s=(), num_successes=num_successes, cool_down_s=0.0
    )


def _after_failure(breaker: Breaker, rules: BreakerRules, now_s: float) -> Breaker:
    if breaker.phase is BreakerPhase.HALF_OPEN:
        longer_s = min(2 * breaker.cool_down_s, rules.max_cool_down_s)
        return _moved(breaker, BreakerPhase.OPEN, opened_s=now_s, cool_down_s=longer_s)
    recent = tuple(s for s in breaker.failures_s if now_s - s < rules.window_s)
    failures_s = (*recent, now_s)
    if len(failures_s) < rules.failure_threshold:
        return msgspec.structs.replace(breaker, failures_s=failures_s)
    return _moved(
        breaker,
        BreakerPhase.OPEN,
        failures_s=failures_s,
        opened_s=now_s,
        cool_down_s=min(rules.cool_down_s, rules.max_cool_down_s),
    )


def _probe_over(breaker: Breaker) -> Breaker:
    return msgspec.structs.replace(breaker, probe_since_s=None, epoch=breaker.epoch + 1)


def _moved(breaker: Breaker, phase: BreakerPhase, **changes: object) -> Breaker:
    assert phase in LEGAL_MOVES[breaker.phase], f"{breaker.phase} to {phase}"
    return msgspec.structs.replace(
        breaker, phase=phase, epoch=breaker.epoch + 1, probe_since_s=None, **changes
    )
