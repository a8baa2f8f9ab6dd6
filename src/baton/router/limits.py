"""How much a tenant may ask for: at the same time, and per minute. Pure; time is given.

What a minute allows runs back continuously, so a tenant that was silent may send a minute's worth
at once and then goes on at the steady rate. A request larger than a whole minute's tokens is let in
when nothing is used, and paid for by a longer pause.
Invariant: a refused request uses up nothing, and every one that entered leaves exactly once.
Elsewhere: whose key it is (keys.py), sharing turns among tenants (waiting.py), HTTP (tenants.py).
"""

import math

import msgspec

SECONDS_PER_MINUTE = 60.0
_ROUNDING = 1e-6
"""Of a request: what is left of one after a pause that was computed to the end of it."""


class TenantRules(msgspec.Struct, frozen=True, kw_only=True):
    """None: no limit. `weight`: its share of turns beside other tenants. `max_priority`: the most
    urgent `priority` it may send."""

    weight: float = 1.0
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_priority: int | None = None


class OverLimit(msgspec.Struct, frozen=True):
    """`limit`: concurrent, requests or tokens. `wait_s`: until this very request would be let in,
    if the tenant sends nothing else."""

    limit: str
    message: str
    wait_s: float


class Usage:
    """What one tenant has used up of a minute's `capacity`, which may change."""

    __slots__ = ("_at_s", "_used")

    def __init__(self) -> None:
        self._used = 0.0
        self._at_s = 0.0

    def used(self, capacity: int, now_s: float) -> float:
        rested_s = max(0.0, now_s - self._at_s)
        return max(0.0, self._used - rested_s * capacity / SECONDS_PER_MINUTE)

    def wait_s(self, amount: int, capacity: int, now_s: float) -> float:
        """How long until `amount` more is allowed; 0 for now."""
        excess = self.used(capacity, now_s) + min(amount, capacity) - capacity
        return max(0.0, excess) * SECONDS_PER_MINUTE / capacity if excess > _ROUNDING else 0.0

    def add(self, amount: int, capacity: int, now_s: float) -> None:
        self._used = self.used(capacity, now_s) + amount
        self._at_s = now_s


class TenantBook:
    """One tenant's use, and how often it was let in or refused."""

    def __init__(self) -> None:
        self.num_running = 0
        self.num_entered = 0
        self.num_tokens = 0
        self.num_refused: dict[str, int] = {}
        self._requests = Usage()
        self._tokens = Usage()

    def enter(self, rules: TenantRules, num_tokens: int, now_s: float) -> OverLimit | None:
        """A request arrives. Let in, it must be given to `leave` in the end."""
        over = self._over(rules, num_tokens, now_s)
        if over is not None:
            self.num_refused[over.limit] = self.num_refused.get(over.limit, 0) + 1
            return over
        if rules.requests_per_minute is not None:
            self._requests.add(1, rules.requests_per_minute, now_s)
        if rules.tokens_per_minute is not None:
            self._tokens.add(num_tokens, rules.tokens_per_minute, now_s)
            self.num_tokens += num_tokens
        self.num_running += 1
        self.num_entered += 1
        return None

    def leave(self) -> None:
        assert self.num_running > 0
        self.num_running -= 1

    def headers(self, rules: TenantRules, now_s: float) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*`, of the limits that there are."""
        headers: dict[str, str] = {}
        for name, usage, capacity in (
            ("requests", self._requests, rules.requests_per_minute),
            ("tokens", self._tokens, rules.tokens_per_minute),
        ):
            if capacity is not None:
                used = usage.used(capacity, now_s)
                reset_s = used * SECONDS_PER_MINUTE / capacity
                headers[f"x-ratelimit-limit-{name}"] = str(capacity)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(capacity - used)))
                headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(reset_s * 1000)}ms"
        return headers

    def _over(self, rules: TenantRules, num_tokens: int, now_s: float) -> OverLimit | None:
        most = rules.max_concurrent
        if most is not None and self.num_running >= most:
            message = f"{self.num_running} requests are running, of {most} at a time"
            return OverLimit("concurrent", message, 0.0)
        per_minute = rules.requests_per_minute
        if per_minute is not None:
            wait_s = self._requests.wait_s(1, per_minute, now_s)
            if wait_s > 0:
                return OverLimit("requests", f"{per_minute} requests per minute", wait_s)
        per_minute = rules.tokens_per_minute
        if per_minute is not None:
            wait_s = self._tokens.wait_s(num_tokens, per_minute, now_s)
            if wait_s > 0:
                message = f"{per_minute} tokens per minute; this request counts for {num_tokens}"
                return OverLimit("tokens", message, wait_s)
        return None
