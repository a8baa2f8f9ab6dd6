"""Requests that wait for their turn: who is next, who must give up, and how long it may take.

Higher priorities go first, always. Within one priority, tenants share by tokens: start-time fair
queueing (Goyal, Vin, Cheng 1996), in which a tenant's turn comes at its virtual time, and what it
starts moves that time on by the request's tokens. Within one tenant, first come, first served.
Every request that arrives leaves in exactly one way: started by `start_next`, refused by `arrive`,
displaced by a more important one, expired, or withdrawn by its client.
Invariant: at most `max_waiting` wait and at most `max_running` run.
Elsewhere: futures, timers and HTTP (admission.py), SGLang's `priority` field (prompt_shape.py).
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from baton.router.policies.ordered import OrderedIds

MAX_RETRY_AFTER_S = 60
MAX_IDLE_TENANTS = 4096
SHARE_OF_NEWEST = 0.1
"""Weight of the newest interval between two starts in their mean."""


@dataclass(frozen=True)
class WaitingRules:
    """`max_running` None: nothing ever waits. `low_values_first`: priority 0 before priority 1, as
    with SGLang's --schedule-low-priority-values-first; its default, and ours, is that higher values
    go first."""

    max_running: int | None = None
    max_waiting: int = 100
    max_wait_s: float = 60.0
    low_values_first: bool = False


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits or runs. `rank` orders priorities: the least is first. `weight`: its
    tenant's share of turns; who has 2 starts twice the tokens of who has 1."""

    id: str
    tenant: str
    rank: int
    num_tokens: int
    arrived_s: float
    deadline_s: float
    weight: float = 1.0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """`status` and `retry_after_s` are HTTP's."""

    status: int
    code: str
    message: str
    retry_after_s: int


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """`refusal` is for the newcomer; `displaced` must be told theirs. Neither: it waits."""

    refusal: Refusal | None = None
    displaced: tuple[str, Refusal] | None = None


class _Level:
    """The requests of one priority, by tenant, and the tenants' virtual times."""

    def __init__(self) -> None:
        self.lines: dict[str, OrderedDict[str, Ticket]] = {}
        self.turns = OrderedIds()
        self.finish: OrderedDict[str, float] = OrderedDict()
        self.now = 0.0
        self.num_waiting = 0
        self.num_running = 0
        self._num_turns = 0

    def push(self, ticket: Ticket) -> None:
        line = self.lines.get(ticket.tenant)
        if line is None:
            line = self.lines[ticket.tenant] = OrderedDict()
            self._set_turn(ticket.tenant)
        line[ticket.id] = ticket
        self.num_waiting += 1

    def pop(self) -> Ticket:
        tenant = self.turns.first()
        assert tenant is not None
        ticket = next(iter(self.lines[tenant].values()))
        self.charge(ticket)
        self.remove(ticket)
        if tenant in self.lines:
            self._set_turn(tenant)
        return ticket

    def charge(self, ticket: Ticket) -> None:
        """Its tenant starts this request now."""
        self.now = max(self.now, self.finish.get(ticket.tenant, 0.0))
        self._set_finish(ticket.tenant, self.now + max(1, ticket.num_tokens) / ticket.weight)

    def correct(self, ticket: Ticket, num_tokens: int) -> None:
        """Its tenant used so many tokens more than it was charged for (or fewer)."""
        tenant = ticket.tenant
        if tenant in self.finish:
            self._set_finish(tenant, self.finish[tenant] + num_tokens / ticket.weight)
            if tenant in self.lines:
                self._set_turn(tenant)

    def remove(self, ticket: Ticket) -> None:
        line = self.lines[ticket.tenant]
        del line[ticket.id]
        self.num_waiting -= 1
        if not line:
            del self.lines[ticket.tenant]
            self.turns.discard(ticket.tenant)

    def longest(self) -> tuple[str, int]:
        """The tenant with the most waiting requests."""
        tenant = max(self.lines, key=lambda name: len(self.lines[name]))
        return tenant, len(self.lines[tenant])

    def num_before(self, ticket: Ticket) -> int:
        """How many of this priority are served before it, if requests are alike: its own tenant's
        earlier ones, and of each other tenant as many, and one more, times its share."""
        own = 0
        for id_ in self.lines[ticket.tenant]:
            if id_ == ticket.id:
                break
            own += 1
        others = sum(
            min(len(line), math.ceil((own + 1) * next(iter(line.values())).weight / ticket.weight))
            for name, line in self.lines.items()
            if name != ticket.tenant
        )
        return own + others

    def _set_turn(self, tenant: str) -> None:
        self._num_turns += 1
        start = max(self.now, self.finish.get(tenant, 0.0))
        self.turns.put(tenant, (start, self._num_turns))

    def _set_finish(self, tenant: str, at: float) -> None:
        """Tenants without requests are forgotten once time has passed them, or are too many."""
        self.finish[tenant] = at
        self.finish.move_to_end(tenant)
        while len(self.finish) > MAX_IDLE_TENANTS + len(self.lines):
            self.finish.popitem(last=False)


class WaitingLine:
    def __init__(self, rules: WaitingRules) -> None:
        self.rules = rules
        self._levels: dict[int, _Level] = {}
        self._waiting: dict[str, Ticket] = {}
        self._running: dict[str, Ticket] = {}
        self._deadlines = OrderedIds()
        self._interval_s: float | None = None
        self._last_start_s: float | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def waiting_by_priority(self) -> dict[int, int]:
        """Requests that wait, by their `priority`."""
        return {
            self._rank(rank): level.num_waiting
            for rank, level in self._levels.items()
            if level.num_waiting
        }

    def arrive(
        self,
        id_: str,
        *,
        tenant: str,
        priority: int,
        num_tokens: int,
        now_s: float,
        max_wait_s: float | None = None,
        weight: float = 1.0,
    ) -> Arrival:
        """A new request. `max_wait_s`: the client's own limit, if it is stricter. Call `start_next`
        afterwards."""
        assert id_ not in self._waiting
        assert id_ not in self._running
        limit_s = self.rules.max_wait_s
        ticket = Ticket(
            id=id_,
            tenant=tenant,
            rank=self._rank(priority),
            num_tokens=num_tokens,
            arrived_s=now_s,
            deadline_s=now_s + (limit_s if max_wait_s is None else min(limit_s, max_wait_s)),
            weight=weight,
        )
        displaced = None
        if not self._has_room():
            victim = self._victim_for(ticket)
            if victim is None:
                return Arrival(refusal=self._full())
            self._withdraw(victim)
            displaced = (victim.id, self._full())
        self._waiting[id_] = ticket
        self._deadlines.put(id_, ticket.deadline_s)
        self._levels.setdefault(ticket.rank, _Level()).push(ticket)
        return Arrival(displaced=displaced)

    def start_next(self, now_s: float) -> Ticket | None:
        """The next request that may run now; it must be given to `finish` in the end."""
        if not self._waiting or not self._may_run():
            return None
        rank = min(rank for rank, level in self._levels.items() if level.num_waiting)
        ticket = self._levels[rank].pop()
        del self._waiting[ticket.id]
        self._deadlines.discard(ticket.id)
        self._running[ticket.id] = ticket
        self._levels[rank].num_running += 1
        self._note_start(now_s)
        return ticket

    def finish(self, id_: str, num_tokens: int | None = None) -> None:
        """A running request has ended. `num_tokens`: what it really used, if that is known; its
        tenant is charged for that."""
        ticket = self._running.pop(id_)
        level = self._levels[ticket.rank]
        level.num_running -= 1
        if num_tokens is not None:
            extra = max(1, num_tokens) - max(1, ticket.num_tokens)
            level.correct(ticket, extra)
        self._drop_if_idle(ticket.rank)

    def withdraw(self, id_: str) -> bool:
        """The client of a waiting request left; False if it does not wait (any more)."""
        ticket = self._waiting.get(id_)
        if ticket is None:
            return False
        self._withdraw(ticket)
        return True

    def expire(self, now_s: float) -> list[tuple[str, Refusal]]:
        """Requests whose deadline has come, with what to tell their clients."""
        expired = []
        while (id_ := self._deadlines.first()) is not None:
            ticket = self._waiting[id_]
            if ticket.deadline_s > now_s:
                break
            self._withdraw(ticket)
            expired.append((id_, self._too_late(ticket, now_s)))
        return expired

    def next_deadline_s(self) -> float | None:
        """When to call `expire` next."""
        id_ = self._deadlines.first()
        return None if id_ is None else self._waiting[id_].deadline_s

    def estimated_wait_s(self, id_: str) -> float | None:
        """How long a waiting request will probably wait from now; None before anything was
        measured."""
        if self._interval_s is None:
            return None
        return (self.num_before(id_) + 1) * self._interval_s

    def num_before(self, id_: str) -> int:
        """How many of those that wait now will probably start before this one."""
        ticket = self._waiting[id_]
        num_before = sum(
            level.num_waiting for rank, level in self._levels.items() if rank < ticket.rank
        )
        return num_before + self._levels[ticket.rank].num_before(ticket)

    @property
    def expected_wait_s(self) -> float:
        """How long a request that came now, and was no more important than others, would
        probably wait; 0 before anything was measured."""
        if not self._waiting and self._may_run():
            return 0.0
        return (len(self._waiting) + 1) * (self._interval_s or 0.0)

    def _rank(self, priority: int) -> int:
        return priority if self.rules.low_values_first else -priority

    def _may_run(self) -> bool:
        limit = self.rules.max_running
        return limit is None or len(self._running) < limit

    def _has_room(self) -> bool:
        """Who can run at once needs no place among the waiting."""
        if not self._waiting and self._may_run():
            return True
        return len(self._waiting) < self.rules.max_waiting

    def _victim_for(self, ticket: Ticket) -> Ticket | None:
        """Who gives way in a full line: the last of the least important requests, taken from the
        tenant that has most of them; among equals only a tenant with more than the newcomer's."""
        if not self._waiting:
            return None
        rank = max(rank for rank, level in self._levels.items() if level.num_waiting)
        if rank < ticket.rank:
            return None
        level = self._levels[rank]
        tenant, num = level.longest()
        own = len(level.lines.get(ticket.tenant, ()))
        if rank == ticket.rank and num <= own + 1:
            return None
        return next(reversed(level.lines[tenant].values()))

    def _withdraw(self, ticket: Ticket) -> None:
        del self._waiting[ticket.id]
        self._deadlines.discard(ticket.id)
        self._levels[ticket.rank].remove(ticket)
        self._drop_if_idle(ticket.rank)

    def _drop_if_idle(self, rank: int) -> None:
        """A priority that nobody uses has nobody to be fair to; any number may be sent as one."""
        level = self._levels[rank]
        if not level.num_waiting and not level.num_running:
            del self._levels[rank]

    def _note_start(self, now_s: float) -> None:
        """Only intervals during which somebody waited tell how fast a line moves."""
        last_s = self._last_start_s
        if last_s is not None:
            interval_s = now_s - last_s
            if self._interval_s is None:
                self._interval_s = interval_s
            else:
                self._interval_s += SHARE_OF_NEWEST * (interval_s - self._interval_s)
        self._last_start_s = now_s if self._waiting else None

    def _retry_after_s(self) -> int:
        """Until the whole line has moved on."""
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self.expected_wait_s)))

    def _full(self) -> Refusal:
        num = self.rules.max_waiting
        return Refusal(
            status=429,
            code="queue_full",
            message=f"{num} requests are waiting already (--queue-size); try again later",
            retry_after_s=self._retry_after_s(),
        )

    def _too_late(self, ticket: Ticket, now_s: float) -> Refusal:
        waited_s = now_s - ticket.arrived_s
        return Refusal(
            status=503,
            code="queue_timeout",
            message=f"the request waited {waited_s:.1f} s for its turn, as long as it may "
            "(--queue-timeout-secs, or its own X-Baton-Deadline-Ms); try again later",
            retry_after_s=self._retry_after_s(),
        )

    def check_invariants(self) -> None:
        rules = self.rules
        assert len(self._waiting) <= rules.max_waiting + (1 if self._may_run() else 0)
        assert rules.max_running is None or len(self._running) <= rules.max_running
        assert not self._waiting.keys() & self._running.keys()
        in_lines = [
            id_ for level in self._levels.values() for line in level.lines.values() for id_ in line
        ]
        assert sorted(in_lines) == sorted(self._waiting)
        assert len(self._deadlines) == len(self._waiting)
        for level in self._levels.values():
            assert level.num_waiting == sum(len(line) for line in level.lines.values())
            assert all(level.lines.values())
            assert level.num_waiting or level.num_running
            assert len(level.turns) == len(level.lines)
        num_running = sum(level.num_running for level in self._levels.values())
        assert num_running == len(self._running)
