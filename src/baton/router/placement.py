"""Where a request goes: one worker, or a prefill and a decode worker, chosen by the policies.

Keeps what policies see in step with the workers: who is healthy and not cut off by its breaker,
what runs where, which beginnings of prompts went where, how fast workers are. Requests go whole to
unified workers, or, where there are none, to decode workers that say that they take them.
Invariant: a worker may be chosen exactly while it is healthy, does not drain and its breaker admits
requests; a visit counts at its worker from `begin` to its only `end`.
Elsewhere: policies (policies/), health (workers.py), breakers (breakers.py), tasks (fleet.py).
"""

import random
from collections.abc import Collection

import msgspec

from baton.obs.logs import EventLog
from baton.router.breaker import BreakerPhase, Outcome
from baton.router.breakers import Breakers
from baton.router.config import RouterConfig, WorkerRole
from baton.router.metrics import RouterMetrics
from baton.router.plan import Plan
from baton.router.policies import Choice, PolicyName, RoleState, RoutedRequest, make_policy
from baton.router.policies.predict import handover_s, num_pending, prefill_s
from baton.router.policies.prefix_index import PrefixIndex
from baton.router.policies.roster import Roster
from baton.router.policies.slo_aware import choose_pair
from baton.router.policies.speeds import Speeds
from baton.router.split import PairCost, SplitReason, Splitter, WholeCost
from baton.router.transfer_report import Transfer
from baton.router.workers import Worker

SHORTEST_HANDOVER_S = 0.0001
HALF_MODES = ("prefill", "decode")
"""What workers of a pair say as their `disaggregation_mode`."""

_PREFILL, _DECODE, _REGULAR = WorkerRole.PREFILL, WorkerRole.DECODE, WorkerRole.REGULAR
"""To ask the enumeration for a member costs a call, in Python before 3.12."""

_log = EventLog("baton.router")


class Visit(msgspec.Struct, gc=False):
    """One request at one worker: the tokens it counts for, those of its prompt that are pending,
    and how many were pending there when it came. `is_alone`: no other worker has a part in it.
    `computed_s`: when its prompt was computed, at decode of a pair by the prefill worker.
    `verdict`: how it ended, where no exception says so."""

    worker_id: str
    role: WorkerRole
    is_alone: bool
    num_tokens: int
    num_pending: int
    num_ahead: int
    epoch: int
    began_s: float
    computed_s: float | None = None
    verdict: Outcome | None = None
    is_over: bool = False


class Placement:
    def __init__(self, config: RouterConfig, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._draw = random.Random(config.seed)
        self.speeds = Speeds()
        self.states = {
            role: RoleState(
                Roster(),
                PrefixIndex(config.cache.max_hashes),
                self.speeds,
                has_streams=role is not _PREFILL,
            )
            for role in WorkerRole
        }
        self.breakers = Breakers(config.breaker, self._on_admitted, self._on_breaker_move)
        self._takes_pairs = config.pd_disaggregation
        self._unified = self.states[_REGULAR]
        self._splitter = Splitter(config.split)
        self._workers: dict[str, Worker] = {}
        self._pids: dict[str, int] = {}
        self._mentioned: set[str] = set()
        self._take_whole: set[str] = set()
        self._split_only: set[str] = set()
        """Decode workers, by whether they take whole requests."""
        self.follow_config(config)

    def follow_config(self, config: RouterConfig) -> None:
        """Choose by these policies and rules from now on; what is known of workers stays."""
        self._policies = {
            role: make_policy(
                config.policy_for(role),
                computes=role is not _DECODE,
                cache=config.cache,
            )
            for role in WorkerRole
        }
        self.breakers.rules = config.breaker
        self._splitter.rules = config.split
        self._metrics.choices.policy_for = config.policy_for
        self._asks_for_prefixes = any(
            config.policy_for(role) in (PolicyName.CACHE_AWARE, PolicyName.SLO_AWARE)
            for role in config.roles
        )
        self._asks_for_sessions = any(
            config.policy_for(role) is PolicyName.CONSISTENT_HASH
            for role in (*config.roles, _REGULAR)
        )
        self._asks_for_shapes = any(
            config.policy_for(role) not in (PolicyName.RANDOM, PolicyName.ROUND_ROBIN)
            for role in config.roles
        )
        self._asks_for_speeds = any(
            config.policy_for(role) is PolicyName.SLO_AWARE for role in config.roles
        )
        self._chooses_pairs = all(
            config.policy_for(role) is PolicyName.SLO_AWARE for role in (_PREFILL, _DECODE)
        )

    def follow(self, worker: Worker, is_known: bool) -> None:
        """A worker joined, left, changed its health or told something new of itself."""
        if not is_known:
            self._leave(worker)
            return
        if worker.id not in self._workers:
            self._join(worker)
        self._note_process(worker)
        self._note_kind(worker)
        self._mention_half(worker)
        if not worker.is_healthy:
            self._roster(worker.role).forget_report(worker.id)
        self._set_usable(worker)

    def _join(self, worker: Worker) -> None:
        self._workers[worker.id] = worker
        self.breakers.add(worker.id)
        self._roster(worker.role).add(worker.id, worker.url)

    def _leave(self, worker: Worker) -> None:
        del self._workers[worker.id]
        self._pids.pop(worker.id, None)
        self._mentioned.discard(worker.id)
        self._take_whole.discard(worker.id)
        self._split_only.discard(worker.id)
        state = self.states[worker.role]
        state.roster.remove(worker.id)
        state.prefixes.forget(worker.id)
        self.speeds.forget(worker.id)
        self.breakers.remove(worker.id)

    def _note_kind(self, worker: Worker) -> None:
        if worker.role is _DECODE:
            mine, other = self._take_whole, self._split_only
            if not worker.takes_whole_requests:
                mine, other = other, mine
            other.discard(worker.id)
            mine.add(worker.id)

    def _mention_half(self, worker: Worker) -> None:
        if worker.is_healthy and self._is_half(worker) and worker.id not in self._mentioned:
            self._mentioned.add(worker.id)
            _log.error(
                "worker is not unified",
                worker=worker.url,
                says=worker.facts.metadata["disaggregation_mode"] if worker.facts else "",
                mend="remove it, and add it with worker_type prefill or decode",
            )

    def _note_process(self, worker: Worker) -> None:
        """Another process at the same address has an empty cache, and has failed nobody yet."""
        pid = worker.facts.pid if worker.facts else None
        if pid is None:
            return
        if self._pids.get(worker.id, pid) != pid:
            self.states[worker.role].prefixes.forget(worker.id)
            self.speeds.forget(worker.id)
            self.breakers.reset(worker.id)
        self._pids[worker.id] = pid

    @property
    def needs_prefixes(self) -> bool:
        """Whether a choice may depend on how a prompt begins."""
        return self._asks_for_prefixes or self._is_mixed

    @property
    def needs_sessions(self) -> bool:
        """Whether a choice may depend on whose session a request belongs to."""
        return self._asks_for_sessions

    @property
    def needs_shapes(self) -> bool:
        """Whether a choice may depend on anything that requests say."""
        return self._asks_for_shapes or self._is_mixed

    @property
    def needs_speeds(self) -> bool:
        """Whether a choice may depend on how fast workers are."""
        return self._asks_for_speeds or self._is_mixed

    @property
    def _is_mixed(self) -> bool:
        if not self._takes_pairs:
            return False
        return len(self._unified.roster) > 0 or (bool(self._take_whole) and self.can_serve_whole())

    def can_serve_whole(self, tried: Collection[str] = ()) -> bool:
        """Whether one worker would do, of those not yet tried."""
        return self._whole_role(tried) is not None

    def _whole_role(self, tried: Collection[str] = ()) -> WorkerRole | None:
        """Whose workers get whole requests."""
        if self.has_usable(_REGULAR, tried):
            return _REGULAR
        if self._take_whole and self.has_usable(_DECODE, self._unfit(tried)):
            return _DECODE
        return None

    def _unfit(self, tried: Collection[str]) -> Collection[str]:
        """Decode workers that cannot have a whole request."""
        return {*self._split_only, *tried} if self._split_only else tried

    def note_load(self, worker: Worker, num_requests: int | None, num_tokens: int) -> None:
        if worker.id in self._workers:
            self._roster(worker.role).report(worker.id, num_requests, num_tokens)

    def plan(self, request: RoutedRequest, tried: Collection[str], now_s: float) -> Plan | None:
        """Whom to send it to: one worker that serves it whole, or (prefill, decode). None: a role
        has nobody."""
        self.breakers.catch_up(now_s)
        is_mixed = self._is_mixed
        whole = self._choose_whole(request, tried) if is_mixed or not self._takes_pairs else None
        if not self._takes_pairs:
            return None if whole is None else self._plan_whole(whole)
        pair = self._choose_pair(request, tried)
        if whole is None and pair is None:
            return None
        if not is_mixed:
            assert pair is not None
            return self._plan_pair(pair)
        decision = self._splitter.decide(
            request.num_uncached(self._num_hits(request, whole)),
            self._whole_cost(request, whole),
            self._pair_cost(request, pair),
        )
        self._metrics.placements.labels(
            "whole" if decision.is_whole else "split", decision.reason.value
        ).inc()
        if decision.is_whole:
            assert whole is not None
            return self._plan_whole(whole, decision.reason)
        assert pair is not None
        return self._plan_pair(pair, decision.reason)

    def has_usable(self, role: WorkerRole, tried: Collection[str] = ()) -> bool:
        return self._roster(role).least_loaded(tried) is not None

    def begin(
        self, worker: Worker, request: RoutedRequest, now_s: float, is_alone: bool = False
    ) -> Visit:
        """A request goes there now; `end` must follow exactly once."""
        id_, role, hashes = worker.id, worker.spec.role, request.prefix_hashes
        state, is_known = self.states[role], id_ in self._workers
        num_uncached = request.num_uncached(state.prefixes.num_hits(hashes, id_) if hashes else 0)
        visit = Visit(
            worker_id=id_,
            role=role,
            is_alone=is_alone,
            num_tokens=num_uncached if role is _PREFILL else request.num_tokens,
            num_pending=0 if role is _DECODE and not is_alone else num_uncached,
            num_ahead=num_pending(state, id_) if is_known else 0,
            epoch=self.breakers.admit(id_, now_s) if is_known else -1,
            began_s=now_s,
        )
        if is_known:
            state.roster.begin(id_, visit.num_tokens, visit.num_pending)
            if hashes:
                state.prefixes.note(hashes, id_)
        return visit

    def end(self, visit: Visit, outcome: Outcome, now_s: float) -> None:
        """The request has left its worker."""
        assert not visit.is_over, f"a visit to {visit.worker_id} ended twice"
        visit.is_over = True
        self.states[visit.role].roster.end(visit.worker_id, visit.num_tokens, visit.num_pending)
        self.breakers.report(visit.worker_id, visit.epoch, outcome, now_s)

    def note_answering(self, visit: Visit, now_s: float) -> None:
        """Its first byte is here. A probe has proved enough with that: others need not wait until
        a long stream has ended."""
        breaker = self.breakers.find(visit.worker_id)
        if breaker is not None and breaker.phase is BreakerPhase.HALF_OPEN:
            self.breakers.report(visit.worker_id, visit.epoch, Outcome.SUCCESS, now_s)

    def note_transfer(self, prefill: Visit, decode_id: str, transfer: Transfer) -> None:
        """A prefill worker said how long it wrote KV to this decode worker."""
        self.speeds.note_transfer(
            prefill.worker_id, decode_id, transfer.num_tokens, transfer.seconds
        )

    def note_computed(self, visit: Visit, now_s: float, transfer_s: float = 0.0) -> None:
        """Its prompt is computed: a prefill leg was answered, or the first token of a worker that
        serves it alone is here. At most once; of a short answer, the worker may have ended it
        before. `transfer_s` of the time was no computation."""
        num_tokens = visit.num_ahead + visit.num_pending
        self.speeds.note_prefill(visit.worker_id, num_tokens, now_s - visit.began_s - transfer_s)
        visit.computed_s = now_s
        if not visit.is_over:
            self._roster(visit.role).note_computed(visit.worker_id, visit.num_pending)
            visit.num_pending = 0

    def note_taken_over(self, decode: Visit, now_s: float) -> None:
        """Decode's first byte is here; it may have overtaken prefill's own answer."""
        waited_s = now_s - decode.computed_s if decode.computed_s is not None else 0.0
        self.speeds.note_handover(decode.worker_id, max(SHORTEST_HANDOVER_S, waited_s))

    def cut_off(self, role: WorkerRole, now_s: float) -> tuple[int, float]:
        """How many healthy workers of this role are kept away by their breakers, and how long until
        the first of them may be tried."""
        cut_off = [
            worker.id
            for worker in self._workers.values()
            if worker.role is role and worker.is_available and not self.breakers.admits(worker.id)
        ]
        return len(cut_off), self.breakers.soonest_try_s(cut_off, now_s)

    def _choose(
        self, role: WorkerRole, request: RoutedRequest, tried: Collection[str]
    ) -> Choice | None:
        state = self.states[role]
        if not len(state.roster):
            return None
        return self._policies[role].choose(request, state, self._draw, tried)

    def _choose_whole(self, request: RoutedRequest, tried: Collection[str]) -> Choice | None:
        role = self._whole_role(tried)
        if role is None:
            return None
        return self._choose(role, request, self._unfit(tried) if role is _DECODE else tried)

    def _choose_pair(
        self, request: RoutedRequest, tried: Collection[str]
    ) -> tuple[Choice, Choice] | None:
        prefills, decodes = self.states[_PREFILL], self.states[_DECODE]
        if self._chooses_pairs:
            found = choose_pair(request, prefills, decodes, self._draw, tried)
            if found is None:
                return None
            return Choice(found.prefill_id, "soonest"), Choice(found.decode_id, "soonest")
        prefill = self._choose(_PREFILL, request, tried)
        decode = self._choose(_DECODE, request, tried)
        return None if prefill is None or decode is None else (prefill, decode)

    def _whole_cost(self, request: RoutedRequest, choice: Choice | None) -> WholeCost | None:
        if choice is None:
            return None
        role = self._workers[choice.worker_id].role
        state = self.states[role]
        num_uncached = request.num_uncached(self._num_hits(request, choice))
        compute_s = num_uncached / self.speeds.prefill.of(choice.worker_id)
        return WholeCost(
            queue_s=prefill_s(request, state, choice.worker_id) - compute_s,
            compute_s=compute_s,
            num_streams=state.roster.load_of(choice.worker_id).total_requests,
            num_ahead=num_pending(state, choice.worker_id),
            num_uncached=num_uncached,
            shares_cores=role is _DECODE,
        )

    def _num_hits(self, request: RoutedRequest, choice: Choice | None) -> int:
        if choice is None:
            return 0
        prefixes = self.states[self._workers[choice.worker_id].role].prefixes
        return prefixes.num_hits(request.prefix_hashes, choice.worker_id)

    def _pair_cost(
        self, request: RoutedRequest, pair: tuple[Choice, Choice] | None
    ) -> PairCost | None:
        if pair is None:
            return None
        prefill_id, decode_id = (choice.worker_id for choice in pair)
        return PairCost(
            prefill_s=prefill_s(request, self.states[_PREFILL], prefill_id),
            handover_s=handover_s(request, self.states[_DECODE], decode_id, prefill_id),
        )

    def _taken(self, choice: Choice) -> Worker:
        worker = self._workers[choice.worker_id]
        self._metrics.choices.note(worker.spec.role, choice.reason)
        return worker

    def _plan_whole(self, whole: Choice, why: SplitReason | None = None) -> Plan:
        return Plan([self._taken(whole)], (whole.reason,), why)

    def _plan_pair(self, pair: tuple[Choice, Choice], why: SplitReason | None = None) -> Plan:
        prefill, decode = pair
        return Plan(
            [self._taken(prefill), self._taken(decode)], (prefill.reason, decode.reason), why
        )

    def _on_admitted(self, worker_id: str, _is_admitted: bool) -> None:
        self._set_usable(self._workers[worker_id])

    def _on_breaker_move(self, worker_id: str, phase: BreakerPhase) -> None:
        worker = self._workers[worker_id]
        self._metrics.breaker_moves.labels(worker.role.value, phase.value).inc()

    def _set_usable(self, worker: Worker) -> None:
        self._roster(worker.role).set_usable(worker.id, self._is_usable(worker))

    def _is_usable(self, worker: Worker) -> bool:
        return worker.is_available and self.breakers.admits(worker.id) and not self._is_half(worker)

    def _is_half(self, worker: Worker) -> bool:
        """A worker that joined a pool of pairs as a unified one, and says that it is one of a pair:
        it would refuse every whole request."""
        if worker.role is not _REGULAR or not self._takes_pairs:
            return False
        mode = worker.facts.metadata.get("disaggregation_mode") if worker.facts else None
        return mode in HALF_MODES

    def _roster(self, role: WorkerRole) -> Roster:
        return self.states[role].roster

    def check_invariants(self) -> None:
        for worker in self._workers.values():
            assert (worker.id in self._roster(worker.role)) == self._is_usable(worker)
        for state in self.states.values():
            state.roster.check_invariants()
            state.prefixes.check_invariants()
        self.breakers.check_invariants()
