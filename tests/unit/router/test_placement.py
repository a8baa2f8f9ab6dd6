"""Placement: in step with workers whatever happens, and the whole router with each policy."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.breaker import BreakerRules, Outcome
from baton.router.config import HealthRules, RouterConfig, WorkerRole, WorkerSpec
from baton.router.metrics import RouterMetrics
from baton.router.placement import Placement, Visit
from baton.router.policies import PolicyName, RoutedRequest
from baton.router.split import SplitRules
from baton.router.workers import Drainer, Worker, WorkerFacts, WorkerPool
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]
REQUEST = RoutedRequest(num_prompt_tokens=64, num_new_tokens=16, prefix_hashes=(1, 2, 3, 4))
ROLES = (WorkerRole.PREFILL, WorkerRole.DECODE, WorkerRole.REGULAR)


class Place:
    """A pool and a placement that follows it, as the fleet joins them."""

    def __init__(self, **options: Any):
        options = {"pd_disaggregation": True, "seed": 1} | options
        self.pool = WorkerPool(HealthRules(failure_threshold=1), self._follow)
        self.metrics = RouterMetrics(self.pool)
        self.config = RouterConfig(**options)
        self.placement = Placement(self.config, self.metrics)
        self._num = 0

    def _follow(self, worker: Worker) -> None:
        self.placement.follow(worker, is_known=self.pool.get(worker.id) is worker)

    def add(self, role: WorkerRole, is_healthy: bool = True) -> Worker:
        self._num += 1
        spec = WorkerSpec(f"http://h{self._num}:1", role)
        worker = self.pool.add(f"{role}{self._num}", spec, 0.0)
        if is_healthy:
            self.pool.note_success(worker, 0.0)
        return worker

    def plan(self, request: RoutedRequest = REQUEST, now_s: float = 0.0) -> list[Worker] | None:
        plan = self.placement.plan(request, (), now_s)
        return None if plan is None else plan.workers

    def counted(self, text: str) -> bool:
        return text in self.metrics.render().decode()


steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("join", "leave", "well", "ill", "restart", "whole", "load", "plan", "wait"),
                *("drain", "take back", "policy", *Outcome),
            ]
        ),
        st.integers(0, 5),
    ),
    max_size=100,
)


@given(steps, st.sampled_from(PolicyName))
def test_stays_in_step_with_the_workers(
    history: list[tuple[str | Outcome, int]], policy: PolicyName
) -> None:
    place = Place(policy=policy, breaker=BreakerRules(failure_threshold=2))
    workers = [place.add(role) for role in ROLES]
    visits: list[Visit] = []
    now_s, num_pids = 0.0, 0
    for what, number in history:
        worker = workers[number % len(workers)] if workers else None
        if isinstance(what, Outcome):
            if visits:
                place.placement.end(visits.pop(number % len(visits)), what, now_s)
        elif what == "join":
            workers.append(place.add(ROLES[number % 3], is_healthy=False))
        elif what == "wait":
            now_s += number / 2
        elif what == "policy":
            other = list(PolicyName)[number % len(PolicyName)]
            place.placement.follow_config(replace(place.config, policy=other))
        elif what == "plan":
            planned = place.plan(now_s=now_s)
            for chosen in planned or ():
                assert chosen.is_available
                assert chosen in workers
                is_alone = len(planned or ()) == 1
                visits.append(place.placement.begin(chosen, REQUEST, now_s, is_alone))
        elif worker is not None:
            match what:
                case "leave":
                    workers.remove(worker)
                    place.pool.remove(worker.id)
                case "well":
                    place.pool.note_success(worker, now_s)
                case "ill":
                    place.pool.note_failure(worker, "ill", now_s)
                case "drain":
                    place.pool.note_drain(worker, Drainer.OPERATOR, True)
                case "take back":
                    place.pool.note_drain(worker, Drainer.OPERATOR, False)
                case "restart":
                    num_pids += 1
                    place.pool.note_facts(worker, WorkerFacts(pid=num_pids))
                case "whole":
                    facts = WorkerFacts(takes_whole_requests=number % 2 == 0)
                    place.pool.note_facts(worker, facts)
                case "load":
                    place.placement.note_load(worker, number, 100 * number)
        place.placement.check_invariants()
        for known in workers:
            num = sum(visit.worker_id == known.id for visit in visits)
            load = place.placement.states[known.role].roster.load_of(known.id)
            assert load.num_requests == num
    place.placement.breakers.catch_up(now_s + 1000)
    for known in workers:
        is_usable = known.id in place.placement.states[known.role].roster
        assert is_usable == known.is_available


def test_prefill_counts_what_it_must_compute_and_decode_what_it_must_keep() -> None:
    place = Place()
    prefill, decode = place.add(WorkerRole.PREFILL), place.add(WorkerRole.DECODE)
    for expected in (64, 1):  # the second time all but the last token is cached
        visit = place.placement.begin(prefill, REQUEST, 0.0)
        assert visit.num_tokens == expected
        place.placement.end(visit, Outcome.SUCCESS, 1.0)
    assert place.placement.begin(decode, REQUEST, 0.0).num_tokens == 80


def test_speed_is_measured_over_what_was_ahead() -> None:
    place = Place()
    prefill = place.add(WorkerRole.PREFILL)
    request = RoutedRequest(num_prompt_tokens=100)
    first = place.placement.begin(prefill, request, 0.0)
    second = place.placement.begin(prefill, request, 0.0)
    place.placement.note_computed(first, 0.1)
    place.placement.note_computed(second, 0.2)
    assert place.placement.speeds.prefill.of(prefill.id) == pytest.approx(1000)


def test_the_time_of_a_transfer_is_not_prefills() -> None:
    place = Place()
    prefill = place.add(WorkerRole.PREFILL)
    visit = place.placement.begin(prefill, RoutedRequest(num_prompt_tokens=100), 0.0)
    place.placement.note_computed(visit, 0.3, transfer_s=0.2)
    assert place.placement.speeds.prefill.of(prefill.id) == pytest.approx(1000)


def test_another_process_at_the_address_begins_anew() -> None:
    place = Place(breaker=BreakerRules(failure_threshold=1))
    prefill = place.add(WorkerRole.PREFILL)
    place.add(WorkerRole.DECODE)
    place.pool.note_facts(prefill, WorkerFacts(pid=1))
    visit = place.placement.begin(prefill, REQUEST, 0.0)
    prefixes = place.placement.states[WorkerRole.PREFILL].prefixes
    assert prefixes.num_hits(REQUEST.prefix_hashes, prefill.id) == 4
    place.placement.end(visit, Outcome.FAILURE, 0.0)
    assert place.plan() is None
    place.pool.note_facts(prefill, WorkerFacts(pid=2))
    assert prefixes.num_hits(REQUEST.prefix_hashes, prefill.id) == 0
    assert place.plan() is not None


def test_a_short_prompt_goes_whole_a_long_one_is_split_when_streams_run() -> None:
    place = Place()
    prefill, _ = place.add(WorkerRole.PREFILL), place.add(WorkerRole.DECODE)
    unified = place.add(WorkerRole.REGULAR)
    place.placement.begin(prefill, RoutedRequest(num_prompt_tokens=1000), 0.0)
    assert place.plan(RoutedRequest(num_prompt_tokens=20)) == [unified]
    assert place.counted('placements_total{placement="whole",reason="whole_faster"} 1.0')
    place.placement.begin(unified, RoutedRequest(num_prompt_tokens=20), 0.0)
    planned = place.plan(RoutedRequest(num_prompt_tokens=5000))
    assert planned is not None
    assert len(planned) == 2
    assert place.counted('placements_total{placement="split",reason="would_stall_streams"} 1.0')


def test_a_cached_prompt_is_short_and_a_running_stream_is_no_queue() -> None:
    place = Place()
    for role in ROLES:
        place.add(role)
    unified = place.pool.of_role(WorkerRole.REGULAR)[0]
    prompt = RoutedRequest(num_prompt_tokens=4992, prefix_hashes=tuple(range(312)))
    visit = place.placement.begin(unified, prompt, 0.0)
    other = RoutedRequest(num_prompt_tokens=60)
    assert place.plan(other) != [unified], "a prompt is before it"
    place.placement.note_computed(visit, 1.0)
    assert place.plan(prompt) == [unified]
    assert place.counted('reason="whole_faster"} 1.0')
    assert place.placement.speeds.prefill.of(unified.id) == pytest.approx(4992)


def test_always_split_uses_unified_workers_only_where_no_pair_is() -> None:
    place = Place(split=SplitRules(is_conditional=False))
    prefill, decode = place.add(WorkerRole.PREFILL), place.add(WorkerRole.DECODE)
    unified = place.add(WorkerRole.REGULAR)
    assert place.plan() == [prefill, decode]
    place.pool.note_refusal(prefill, "gone", 0.0)
    assert place.plan() == [unified]
    assert place.counted('placements_total{placement="whole",reason="no_pair"} 1.0')


def test_decode_on_prefills_cores_takes_whole_requests_unless_long_beside_streams() -> None:
    place = Place(split=SplitRules(max_whole_tokens=512))
    prefill, decode = place.add(WorkerRole.PREFILL), place.add(WorkerRole.DECODE)
    split_only = place.add(WorkerRole.DECODE)
    assert not place.placement.needs_prefixes, "there is no choice"
    place.pool.note_facts(decode, WorkerFacts(takes_whole_requests=True))
    assert place.placement.needs_prefixes
    short, long = RoutedRequest(num_prompt_tokens=512), RoutedRequest(num_prompt_tokens=513)
    assert place.plan(long) == [decode]
    visit = place.placement.begin(decode, long, 0.0, is_alone=True)
    assert place.plan(short) == [decode], "though the other one is idle"
    assert place.plan(long) == [decode], "its streams wait anyway"
    place.placement.note_computed(visit, 0.5)
    assert place.plan(long) == [prefill, split_only]
    assert place.counted('placements_total{placement="whole",reason="shared_cores"} 3.0')
    assert place.counted('placements_total{placement="split",reason="would_stall_streams"} 1.0')
    assert place.placement.speeds.prefill.of(decode.id) == pytest.approx(2 * 513)
    place.pool.note_refusal(prefill, "gone", 0.0)
    assert place.plan(long) == [decode]
    assert place.counted('placements_total{placement="whole",reason="no_pair"} 1.0')
    place.pool.note_refusal(decode, "gone", 0.0)
    assert place.plan(short) is None


def test_a_cached_prompt_is_short_at_decode_too() -> None:
    place = Place(split=SplitRules(max_whole_tokens=512))
    place.add(WorkerRole.PREFILL)
    decode = place.add(WorkerRole.DECODE)
    place.pool.note_facts(decode, WorkerFacts(takes_whole_requests=True))
    prompt = RoutedRequest(num_prompt_tokens=4992, prefix_hashes=tuple(range(312)))
    visit = place.placement.begin(decode, prompt, 0.0, is_alone=True)
    place.placement.note_computed(visit, 1.0)
    assert place.plan(prompt) == [decode]
    assert len(place.plan(RoutedRequest(num_prompt_tokens=4992)) or ()) == 2


def test_half_of_a_pair_that_joined_as_unified_is_not_used() -> None:
    place = Place()
    prefill, decode = place.add(WorkerRole.PREFILL), place.add(WorkerRole.DECODE)
    stray = place.add(WorkerRole.REGULAR, is_healthy=False)
    said = {"disaggregation_mode": "decode"}
    place.pool.note_facts(stray, WorkerFacts(metadata=said))
    place.pool.note_success(stray, 0.0)
    place.pool.note_refusal(prefill, "gone", 0.0)
    assert place.plan() is None
    place.pool.note_facts(stray, WorkerFacts(metadata={"disaggregation_mode": "null"}))
    assert place.plan() == [stray]
    place.placement.check_invariants()
    assert decode.is_healthy


@pytest.mark.parametrize("policy", PolicyName)
def test_every_policy_serves_pairs_over_http(
    run: Run, cluster: ClusterMaker, policy: PolicyName
) -> None:
    async def scenario() -> None:
        async with cluster(2, 2, policy=policy) as c:
            bodies = [{"text": "a" * 500}, {"input_ids": [1] * 50}, {"text": "b", "user": "u"}]
            answers = await asyncio.gather(*(c.post("/generate", body) for body in bodies * 3))
            assert [status for status, _, _ in answers] == [200] * 9
            assert sum(len(worker.requests) for worker in c.decodes) == 9
            await c.until_quiet()
            c.fleet.placement.check_invariants()
            _, _, text = await c.get("/metrics")
            assert f'role="prefill",policy="{policy}"'.encode() in _sorted_labels(text)

    run(scenario)


def _sorted_labels(text: bytes) -> bytes:
    """Prometheus writes labels in any order; this is the one of the question."""
    lines = [line for line in text.split(b"\n") if line.startswith(b"baton_router_choices_total")]
    found = []
    for line in lines:
        labels = line[line.index(b"{") + 1 : line.index(b"}")].split(b",")
        found.append(b",".join(sorted(labels, key=lambda label: b"rp".find(label[:1]))))
    return b"\n".join(found)


def test_a_pool_of_all_three_kinds_serves_and_survives_the_loss_of_a_role(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, 1, pd_disaggregation=True) as c:
            for _ in range(4):
                assert (await c.post("/generate", {"text": "short"}))[0] == 200
            await c.prefills[0].stop()
            await c.until_healthy(2)
            before = len(c.regulars[0].requests)
            assert (await c.get("/readiness"))[0] == 200
            assert (await c.post("/generate", {"text": "short"}))[0] == 200
            assert len(c.regulars[0].requests) == before + 1
            assert "bootstrap_room" not in c.regulars[0].requests[-1].body

    run(scenario)


def test_decode_serves_alone_and_its_prompts_are_counted(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            c.decodes[0].info["takes_whole_requests"] = True
            c.fleet.doubt(c.fleet.pool.of_role(WorkerRole.DECODE)[0])
            await c.fleet.until(lambda _: c.fleet.placement.can_serve_whole())
            body = {"text": "a" * 400, "stream": True}
            status, headers, _ = await c.post("/generate", body)
            assert status == 200
            assert headers["X-Baton-Route"] == "whole; reason=shared_cores"
            assert "bootstrap_room" not in c.decodes[0].requests[-1].body
            assert not c.prefills[0].requests
            await c.until_quiet()
            assert c.fleet.placement.speeds.prefill.is_measured
            assert not c.fleet.placement.speeds.handover_s.is_measured
            await c.prefills[0].stop()
            await c.until_healthy(1)
            assert (await c.get("/readiness"))[0] == 200
            assert (await c.post("/generate", body))[0] == 200
            c.fleet.placement.check_invariants()

    run(scenario)


def test_others_serve_while_one_is_cut_off(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        rules = BreakerRules(failure_threshold=3, cool_down_s=1000, max_cool_down_s=1000)
        async with cluster(1, 2, policy="round_robin", breaker=rules) as c:
            c.decodes[0].script = Script(status=500, error={"error": {"message": "broken"}})
            statuses = [(await c.post("/generate", {"text": "a"}))[0] for _ in range(12)]
            assert statuses.count(500) == 3
            assert statuses[-5:] == [200] * 5

    run(scenario)


def test_when_all_are_cut_off_the_client_learns_when_to_come_back(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        rules = BreakerRules(failure_threshold=1, cool_down_s=30, max_cool_down_s=30)
        async with cluster(0, 0, 1, breaker=rules) as c:
            c.regulars[0].script = Script(status=500, error={"message": "no"})
            assert (await c.post("/generate", {"text": "a"}))[0] == 500
            status, headers, body = await c.post("/generate", {"text": "a"})
            assert (status, headers["Retry-After"]) == (503, "30")
            assert b"failed too many requests" in body

    run(scenario)


def test_measures_prefill_and_hand_over_of_streams(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            speeds = c.fleet.placement.speeds
            assert not speeds.prefill.is_measured
            assert not speeds.handover_s.is_measured
            assert (await c.post("/generate", {"text": "a" * 400, "stream": True}))[0] == 200
            await c.until_quiet()
            assert speeds.prefill.is_measured
            assert speeds.handover_s.is_measured
            for state in c.fleet.placement.states.values():
                assert all(load.num_pending == 0 for load in state.roster)

    run(scenario)


def failing_in_stream(error: dict[str, Any]) -> Script:
    return Script(error_event={"error": {"message": "it failed", **error}})


@pytest.mark.parametrize(
    ("code", "is_cut_off"), [(500, True), (503, False), (400, False), ("aborted", False)]
)
def test_an_error_inside_a_stream_counts_too(
    run: Run, cluster: ClusterMaker, code: int | str, is_cut_off: bool
) -> None:
    async def scenario() -> None:
        for shape in ((1, 1, 0), (0, 0, 1)):
            breaker = BreakerRules(failure_threshold=1)
            async with cluster(*shape, breaker=breaker, worker_wait_s=0.0) as c:
                worker = (c.decodes or c.regulars)[0]
                worker.script = failing_in_stream({"code": code})
                status, _, body = await c.post("/generate", {"text": "a", "stream": True})
                assert status == 200
                assert b"it failed" in body
                worker.script = Script()
                status, _, _ = await c.post("/generate", {"text": "a"})
                assert status == (503 if is_cut_off else 200)

    run(scenario)


def test_a_full_queue_in_sglangs_words_is_overload(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(breaker=BreakerRules(failure_threshold=1)) as c:
            error = {"error": {"message": "The request queue is full.", "code": 503}}
            c.decodes[0].script = Script(status=503, error=error)
            assert (await c.post("/generate", {"text": "a"}))[0] == 503
            c.decodes[0].script = Script()
            assert (await c.post("/generate", {"text": "a"}))[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    ("options", "has_unified", "needs"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"prefill_policy": PolicyName.CACHE_AWARE}, False, True),
        ({"policy": PolicyName.SLO_AWARE}, False, True),
        ({"pd_disaggregation": False, "prefill_policy": PolicyName.CACHE_AWARE}, True, False),
    ],
)
def test_prompts_are_looked_into_only_where_somebody_asks(
    options: dict[str, Any], has_unified: bool, needs: bool
) -> None:
    place = Place(**options)
    if has_unified:
        place.add(WorkerRole.REGULAR)
    assert place.placement.needs_prefixes == needs


@pytest.mark.parametrize("shape", [(1, 1, 0), (0, 0, 1)])
def test_a_probe_that_streams_lets_others_in_before_it_ends(
    run: Run, cluster: ClusterMaker, shape: tuple[int, int, int]
) -> None:
    async def scenario() -> None:
        rules = BreakerRules(failure_threshold=1, cool_down_s=1e-9)
        async with cluster(*shape, breaker=rules) as c:
            worker, gate = (c.decodes or c.regulars)[0], asyncio.Event()
            worker.script = Script(status=500, error={"message": "no"})
            assert (await c.post("/generate", {"text": "a"}))[0] == 500
            worker.script = Script(gates={2: gate})
            body = {"text": "a", "stream": True}
            async with c.session.post(c.url + "/generate", json=body) as probe:
                await probe.content.readuntil(b"\n\n")
                worker.script = Script()
                assert (await c.post("/generate", {"text": "a"}))[0] == 200
                gate.set()
                assert (await probe.read()).endswith(b"data: [DONE]\n\n")
            await c.until_quiet()
            c.fleet.placement.check_invariants()

    run(scenario)
