"""The tenants' gate: limits by tenant, answered as OpenAI's API answers them, and their metrics.

Invariant: no more tenants are remembered than the file of keys has.
Elsewhere: limits (limits.py), keys (keys.py), fair turns (waiting.py).
"""

import contextlib
import math
from collections.abc import Collection, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baton.core.clock import Clock
from baton.router.errors import Problem, RouterFailure
from baton.router.exchange import Exchange
from baton.router.keys import Caller
from baton.router.limits import OverLimit, TenantBook
from baton.router.prompt_shape import priority_of


class TenantGate:
    def __init__(self, clock: Clock, low_values_first: bool) -> None:
        self._clock = clock
        self._low_values_first = low_values_first
        self._books: dict[str, TenantBook] = {}

    @contextlib.contextmanager
    def entered(self, exchange: Exchange, caller: Caller, num_tokens: int) -> Iterator[None]:
        """While the request runs; raises RouterFailure."""
        self._check_priority(exchange, caller)
        book = self._books.get(caller.tenant)
        if book is None:
            book = self._books[caller.tenant] = TenantBook()
        now_s = self._clock.now_s()
        over = book.enter(caller.rules, num_tokens, now_s)
        exchange.add_headers(book.headers(caller.rules, now_s))
        if over is not None:
            raise _refused(caller.tenant, over)
        try:
            yield
        finally:
            book.leave()

    def keep_only(self, tenants: Collection[str]) -> None:
        """The others' keys are gone; what of theirs still runs holds its own book."""
        self._books = {name: book for name, book in self._books.items() if name in tenants}

    def metrics(self) -> Collector:
        return _TenantMetrics(self)

    def books(self) -> dict[str, TenantBook]:
        return self._books

    def _check_priority(self, exchange: Exchange, caller: Caller) -> None:
        most = caller.rules.max_priority
        if most is None:
            return
        priority = priority_of(exchange.generation)
        if priority < most if self._low_values_first else priority > most:
            side = "lower" if self._low_values_first else "higher"
            raise RouterFailure(
                Problem(
                    status=403,
                    code="priority_not_allowed",
                    message=f"priority is {priority}; this key may send none {side} than {most}",
                    param="priority",
                )
            )


def _refused(tenant: str, over: OverLimit) -> RouterFailure:
    retry_after_s = max(1, math.ceil(over.wait_s))
    return RouterFailure(
        Problem(
            status=429,
            code="rate_limit_exceeded",
            message=f"tenant {tenant} is at its limit: {over.message}; "
            f"try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
    )


class _TenantMetrics(Collector):
    def __init__(self, gate: TenantGate):
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        entered = CounterMetricFamily(
            "baton_router_tenant_requests", "Requests let in, by tenant.", labels=["tenant"]
        )
        tokens = CounterMetricFamily(
            "baton_router_tenant_tokens",
            "Tokens counted against a tenant's limit per minute.",
            labels=["tenant"],
        )
        refused = CounterMetricFamily(
            "baton_router_tenant_refused",
            "Requests refused by a tenant's limit (concurrent, requests, tokens).",
            labels=["tenant", "limit"],
        )
        running = GaugeMetricFamily(
            "baton_router_tenant_running", "Requests that wait or run.", labels=["tenant"]
        )
        for tenant, book in self._gate.books().items():
            entered.add_metric([tenant], book.num_entered)
            tokens.add_metric([tenant], book.num_tokens)
            running.add_metric([tenant], book.num_running)
            for limit, num in book.num_refused.items():
                refused.add_metric([tenant, limit], num)
        yield from (entered, tokens, refused, running)
