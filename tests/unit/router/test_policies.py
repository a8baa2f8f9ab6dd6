"""Policies: fair where they promise it, and never out of the candidates."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.policies import (
    CacheRules,
    Policy,
    PolicyName,
    RoleState,
    RoutedRequest,
    make_policy,
)
from baton.router.policies.prefix_index import MAX_HOLDERS, PrefixIndex
from baton.router.policies.roster import TOKENS_PER_REQUEST, Roster
from baton.router.policies.slo_aware import choose_pair
from baton.router.policies.speeds import Speeds

REQUEST = RoutedRequest(num_prompt_tokens=100, num_new_tokens=20)


def make_state(num: int, speeds: Speeds | None = None, prefix: str = "w") -> RoleState:
    roster = Roster()
    for i in range(num):
        roster.add(f"{prefix}{i}", f"http://{prefix}{i}:1")
        roster.set_usable(f"{prefix}{i}", True)
    return RoleState(roster, PrefixIndex(1000), speeds or Speeds())


def policy_of(name: PolicyName, **rules: float) -> Policy:
    return make_policy(name, computes=True, cache=CacheRules(**rules))  # type: ignore[arg-type]


def pick(
    state: RoleState,
    name: PolicyName,
    request: RoutedRequest = REQUEST,
    *,
    seed: int = 1,
    excluded: set[str] | None = None,
) -> str:
    choice = policy_of(name).choose(request, state, random.Random(seed), excluded or set())
    assert choice is not None
    return choice.worker_id


def send(state: RoleState, worker_id: str, request: RoutedRequest = REQUEST) -> None:
    num_hits = state.prefixes.num_hits(request.prefix_hashes, worker_id)
    state.roster.begin(worker_id, request.num_tokens, request.num_uncached(num_hits))
    state.prefixes.note(request.prefix_hashes, worker_id)


def leave(state: RoleState, worker_id: str, request: RoutedRequest = REQUEST) -> None:
    """The only request there ends."""
    pending = state.roster.load_of(worker_id).num_pending
    state.roster.end(worker_id, request.num_tokens, pending)


roster_steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "report", "usable", "unusable", "remove"]),
        st.integers(0, 4),
        st.integers(0, 50),
    ),
    max_size=80,
)


@given(roster_steps)
def test_a_roster_counts_as_a_plain_list_would(history: list[tuple[str, int, int]]) -> None:
    state = make_state(5)
    roster, running = state.roster, {f"w{i}": list[int]() for i in range(5)}
    for what, index, number in history:
        worker_id = f"w{index}"
        if worker_id not in running:
            continue
        match what:
            case "begin":
                roster.begin(worker_id, number)
                running[worker_id].append(number)
            case "end" if running[worker_id]:
                roster.end(worker_id, running[worker_id].pop())
            case "report":
                roster.report(worker_id, number, 10 * number)
            case "usable" | "unusable":
                roster.set_usable(worker_id, what == "usable")
                assert (worker_id in roster) == (what == "usable")
            case "remove":
                roster.remove(worker_id)
                del running[worker_id]
        roster.check_invariants()
        for id_, tokens in running.items():
            load = roster.load_of(id_)
            assert (load.num_requests, load.num_tokens) == (len(tokens), sum(tokens))
        weights = [load.weight for load in roster]
        least = roster.least_loaded()
        assert (least is None) == (not weights)
        assert least is None or roster.load_of(least).weight == min(weights)


@given(
    roster_steps,
    st.sampled_from(PolicyName),
    st.integers(),
    st.sets(st.sampled_from(["w0", "w1", "w2", "w3", "w4"])),
    st.lists(st.integers(0, 3), max_size=4),
    st.none() | st.text(max_size=3),
)
@settings(max_examples=300)
def test_chooses_only_who_may_be_chosen_and_repeats_itself(
    history: list[tuple[str, int, int]],
    name: PolicyName,
    seed: int,
    excluded: set[str],
    hashes: list[int],
    session: str | None,
) -> None:
    state = make_state(5)
    request = RoutedRequest(
        num_prompt_tokens=50, prefix_hashes=tuple(hashes), session_key=session or None
    )
    for what, index, number in history:
        if what == "begin":
            send(state, f"w{index}", request)
        elif what in ("usable", "unusable"):
            state.roster.set_usable(f"w{index}", what == "usable")
        elif what == "report":
            state.roster.report(f"w{index}", number, 10 * number)
    allowed = {load.worker_id for load in state.roster} - excluded
    policy = policy_of(name)
    choice = policy.choose(request, state, random.Random(seed), excluded)
    assert (choice is None) == (not allowed)
    assert choice is None or choice.worker_id in allowed
    assert choice == policy.choose(request, state, random.Random(seed), excluded)


@given(st.integers(1, 6), st.integers(1, 60), st.booleans())
def test_round_robin_never_favours_anyone(num: int, num_requests: int, ends_at_once: bool) -> None:
    state, counts = make_state(num), Counter({f"w{i}": 0 for i in range(num)})
    for _ in range(num_requests):
        worker_id = pick(state, PolicyName.ROUND_ROBIN)
        send(state, worker_id)
        counts[worker_id] += 1
        if ends_at_once:
            leave(state, worker_id)
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(2, 6), st.integers(1, 60))
def test_round_robin_goes_on_fairly_after_one_was_away(num: int, num_requests: int) -> None:
    state = make_state(num)
    state.roster.set_usable("w0", False)
    for _ in range(num_requests):
        worker_id = pick(state, PolicyName.ROUND_ROBIN)
        assert worker_id != "w0"
        send(state, worker_id)
    state.roster.set_usable("w0", True)
    assert pick(state, PolicyName.ROUND_ROBIN) == "w0"


@given(st.integers(1, 6), st.integers(0, 40))
def test_least_loaded_keeps_counts_within_one_while_only_adding(
    num: int, num_requests: int
) -> None:
    state = make_state(num)
    for _ in range(num_requests):
        send(state, pick(state, PolicyName.LEAST_LOADED))
    counts = [load.num_requests for load in state.roster]
    assert max(counts) - min(counts) <= 1


def test_least_loaded_does_not_herd_on_idle_workers() -> None:
    state, used = make_state(3), []
    for _ in range(6):
        worker_id = pick(state, PolicyName.LEAST_LOADED)
        used.append(worker_id)
        send(state, worker_id)
        leave(state, worker_id)
    assert used == ["w0", "w1", "w2", "w0", "w1", "w2"]


def test_least_loaded_counts_tokens_not_requests() -> None:
    state = make_state(2)
    send(state, "w0", RoutedRequest(num_prompt_tokens=8000))
    for _ in range(3):
        send(state, "w1", RoutedRequest(num_prompt_tokens=100))
    assert pick(state, PolicyName.LEAST_LOADED) == "w1"


def test_least_loaded_counts_requests_of_unknown_size_too() -> None:
    state = make_state(2)
    for _ in range(2):
        send(state, "w0", RoutedRequest())
    send(state, "w1", RoutedRequest())
    assert pick(state, PolicyName.LEAST_LOADED) == "w1"


def test_least_loaded_sees_requests_of_others_but_counts_its_own_once() -> None:
    state = make_state(2)
    send(state, "w1")
    state.roster.report("w0", 4, 400)
    state.roster.report("w1", 1, 120)
    assert state.roster.load_of("w1").foreign_requests == 0
    assert state.roster.load_of("w1").foreign_tokens == 0
    assert pick(state, PolicyName.LEAST_LOADED) == "w1"


def test_least_loaded_goes_by_tokens_where_workers_report_no_requests() -> None:
    state = make_state(2)
    state.roster.report("w0", None, 500)
    state.roster.report("w1", None, 10)
    assert pick(state, PolicyName.LEAST_LOADED) == "w1"
    state.roster.forget_report("w0")
    assert pick(state, PolicyName.LEAST_LOADED) == "w0"


def test_power_of_two_does_not_herd_on_what_another_router_said_last() -> None:
    """This router's own requests are left out here, as another router does not see them until the
    next report: the least loaded gets all of them, of two drawn ones nobody gets
    much more than two shares."""
    state = make_state(10)
    for i in range(10):
        state.roster.report(f"w{i}", 5 if i else 4, 500)
    most = {}
    for name in (PolicyName.LEAST_LOADED, PolicyName.POWER_OF_TWO):
        draw, policy = random.Random(3), policy_of(name)
        choices = (policy.choose(REQUEST, state, draw) for _ in range(200))
        counts = Counter(choice.worker_id for choice in choices if choice)
        most[name] = max(counts.values())
    assert most[PolicyName.LEAST_LOADED] == 200
    assert most[PolicyName.POWER_OF_TWO] <= 2.5 * 20


def test_power_of_two_is_far_more_even_than_random() -> None:
    spreads = {}
    for name in (PolicyName.RANDOM, PolicyName.POWER_OF_TWO):
        state, draw, policy = make_state(20), random.Random(5), policy_of(name)
        for _ in range(2000):
            choice = policy.choose(REQUEST, state, draw)
            assert choice is not None
            send(state, choice.worker_id)
        counts = [load.num_requests for load in state.roster]
        spreads[name] = max(counts) - min(counts)
    assert spreads[PolicyName.POWER_OF_TWO] * 4 < spreads[PolicyName.RANDOM]


def test_random_uses_all() -> None:
    state, draw, policy = make_state(5), random.Random(1), policy_of(PolicyName.RANDOM)
    counts = Counter(
        choice.worker_id for _ in range(1000) if (choice := policy.choose(REQUEST, state, draw))
    )
    assert len(counts) == 5
    assert min(counts.values()) > 150


def chat(*turns: int) -> RoutedRequest:
    return RoutedRequest(num_prompt_tokens=16 * len(turns), prefix_hashes=turns)


def test_cache_aware_sends_later_turns_where_the_first_went() -> None:
    state = make_state(4)
    first = pick(state, PolicyName.CACHE_AWARE, chat(1, 2))
    send(state, first, chat(1, 2))
    for turn in (chat(1, 2, 3), chat(1, 2, 3, 4, 5)):
        assert pick(state, PolicyName.CACHE_AWARE, turn) == first
        send(state, first, turn)
    assert pick(state, PolicyName.CACHE_AWARE, chat(7, 8)) != first


def test_cache_aware_wants_a_share_of_the_prompt() -> None:
    state = make_state(2)
    send(state, "w0", chat(1))
    policy = policy_of(PolicyName.CACHE_AWARE, threshold=0.5)
    draw = random.Random(1)
    near, far = chat(1, 2), chat(1, 2, 3)
    assert [
        (choice.worker_id, choice.reason)
        for request in (near, far)
        if (choice := policy.choose(request, state, draw))
    ] == [("w0", "cache_hit"), ("w1", "cache_miss")]


def test_cache_aware_leaves_a_worker_that_is_far_too_busy() -> None:
    state = make_state(2)
    policy = policy_of(PolicyName.CACHE_AWARE, balance_abs=3, balance_rel=1.5)
    reasons = []
    for _ in range(5):
        send(state, "w0", chat(1, 2))
        choice = policy.choose(chat(1, 2), state, random.Random(1))
        assert choice is not None
        reasons.append((choice.worker_id, choice.reason))
    hit, spilled = ("w0", "cache_hit"), ("w1", "balance")
    assert reasons == [hit, hit, hit, spilled, spilled]


def test_cache_aware_prefers_the_less_loaded_of_two_that_know_the_prompt() -> None:
    state = make_state(3)
    for worker_id in ("w0", "w0", "w1"):
        send(state, worker_id, chat(1, 2))
    assert pick(state, PolicyName.CACHE_AWARE, chat(1, 2)) == "w1"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([(1,), (1, 2), (1, 2, 3), (4,), (4, 5)]),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(1, 6),
)
def test_the_index_is_bounded_and_finds_no_more_than_was_sent(
    history: list[tuple[int, tuple[int, ...], bool]], max_hashes: int
) -> None:
    index, sent = PrefixIndex(max_hashes), {f"w{i}": set[int]() for i in range(4)}
    for number, hashes, forgets in history:
        worker_id = f"w{number}"
        if forgets:
            index.forget(worker_id)
            sent[worker_id].clear()
        else:
            index.note(hashes, worker_id)
            sent[worker_id].update(hashes)
        index.check_invariants()
        for prompt in ((1, 2, 3), (4, 5)):
            for id_, known in sent.items():
                assert index.num_hits(prompt, id_) <= len([h for h in prompt if h in known])


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(
    lambda own: tuple(hash(tuple(own[: end + 1])) for end in range(len(own)))
)


@given(
    st.lists(st.tuples(st.integers(0, 3), prompts), max_size=20),
    prompts,
    st.sets(st.integers(0, 3)),
)
def test_the_index_finds_the_longest_beginning_among_usable_workers(
    sent: list[tuple[int, tuple[int, ...]]], prompt: tuple[int, ...], usable: set[int]
) -> None:
    index, known = PrefixIndex(10_000), {i: set[int]() for i in range(4)}
    for number, hashes in sent:
        index.note(hashes, str(number))
        known[number].update(hashes)
    hits = {i: sum(hash_ in known[i] for hash_ in prompt) for i in range(4)}
    assert all(index.num_hits(prompt, str(i)) == hits[i] for i in range(4))
    best = max((hits[i] for i in usable), default=0)
    found, holders = index.longest_match(prompt, lambda id_: int(id_) in usable)
    assert found == best
    assert {int(id_) for id_ in holders} == (
        {i for i in usable if hits[i] == best} if best else set()
    )


def test_the_index_forgets_longer_beginnings_first() -> None:
    index = PrefixIndex(3)
    index.note((1, 2, 3), "w0")
    index.note((8,), "w1")
    assert index.num_hits((1, 2, 3), "w0") == 2
    assert index.num_hits((8,), "w1") == 1


def test_the_index_keeps_the_latest_holders_of_what_all_have() -> None:
    index = PrefixIndex(10)
    for i in range(MAX_HOLDERS + 5):
        index.note((1,), f"w{i}")
    assert index.num_hits((1,), "w0") == 0
    assert index.num_hits((1,), f"w{MAX_HOLDERS + 4}") == 1
    index.check_invariants()


def session(key: str) -> RoutedRequest:
    return RoutedRequest(session_key=key)


def test_only_the_keys_of_a_worker_that_left_move_and_they_come_back() -> None:
    state, keys = make_state(8), [f"session-{i}" for i in range(400)]

    def where() -> dict[str, str]:
        return {key: pick(state, PolicyName.CONSISTENT_HASH, session(key)) for key in keys}

    before = where()
    state.roster.set_usable("w3", False)
    during = where()
    assert all(during[key] == before[key] for key in keys if before[key] != "w3")
    moved = [during[key] for key in keys if before[key] == "w3"]
    assert moved
    assert "w3" not in moved
    assert len(set(moved)) > 3, "the keys of one worker go to many"
    state.roster.set_usable("w3", True)
    assert where() == before


def test_a_newcomer_takes_keys_from_others_only_for_itself() -> None:
    state, keys = make_state(4), [f"session-{i}" for i in range(400)]
    before = {key: pick(state, PolicyName.CONSISTENT_HASH, session(key)) for key in keys}
    state.roster.add("new", "http://new:1")
    state.roster.set_usable("new", True)
    after = {key: pick(state, PolicyName.CONSISTENT_HASH, session(key)) for key in keys}
    moved = [key for key in keys if after[key] != before[key]]
    assert {after[key] for key in moved} == {"new"}
    assert 0.1 < len(moved) / len(keys) < 0.3


def test_places_on_the_ring_are_those_of_the_urls_and_even() -> None:
    one, other = Roster(), Roster()
    for i in range(10):
        one.add(f"a{i}", f"http://h{i}:1")
        other.add(f"b{9 - i}", f"http://h{9 - i}:1")
    counts: Counter[str] = Counter()
    for key in range(5000):
        found = one.ring.find(str(key), lambda _: True)
        assert found is not None
        same = other.ring.find(str(key), lambda _: True)
        assert same == found.replace("a", "b")
        counts[found] += 1
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_without_a_session_the_least_loaded_is_taken() -> None:
    state = make_state(2)
    send(state, "w0")
    assert pick(state, PolicyName.CONSISTENT_HASH) == "w1"


def test_slo_aware_prefers_a_fast_worker_with_some_queue_to_a_slow_idle_one() -> None:
    speeds = Speeds()
    speeds.note_prefill("w0", 10_000, 1.0)
    speeds.note_prefill("w1", 1_000, 1.0)
    state = make_state(2, speeds)
    send(state, "w0", RoutedRequest(num_prompt_tokens=500))
    request = RoutedRequest(num_prompt_tokens=400)
    assert pick(state, PolicyName.SLO_AWARE, request) == "w0"  # 0.09 s against 0.4
    send(state, "w0", RoutedRequest(num_prompt_tokens=8000))
    assert pick(state, PolicyName.SLO_AWARE, request) == "w1"


def test_slo_aware_counts_only_what_is_not_cached() -> None:
    state = make_state(2)
    request = RoutedRequest(num_prompt_tokens=160, prefix_hashes=tuple(range(10)))
    send(state, "w0", request)
    leave(state, "w0", request)
    send(state, "w0", RoutedRequest(num_prompt_tokens=100))
    assert pick(state, PolicyName.SLO_AWARE, request) == "w0"


def test_slo_aware_takes_turns_among_equals() -> None:
    state, used = make_state(3), []
    for _ in range(6):
        worker_id = pick(state, PolicyName.SLO_AWARE)
        used.append(worker_id)
        send(state, worker_id)
        leave(state, worker_id)
    assert used == ["w0", "w1", "w2", "w0", "w1", "w2"]


def test_a_pair_is_chosen_together_where_the_link_decides() -> None:
    speeds = Speeds()
    prefills, decodes = make_state(2, speeds, "p"), make_state(2, speeds, "d")
    for prefill, decode, seconds in (
        ("p0", "d0", 0.9),
        ("p0", "d1", 0.5),
        ("p1", "d0", 0.01),
        ("p1", "d1", 0.7),
    ):
        speeds.note_transfer(prefill, decode, 1000, seconds)
    request = RoutedRequest(num_prompt_tokens=1000)
    pair = choose_pair(request, prefills, decodes, random.Random(1))
    assert pair is not None
    assert (pair.prefill_id, pair.decode_id) == ("p1", "d0")
    excluded = choose_pair(request, prefills, decodes, random.Random(1), {"d0"})
    assert excluded is not None
    assert (excluded.prefill_id, excluded.decode_id) == ("p0", "d1")
    assert choose_pair(request, prefills, decodes, random.Random(1), {"d0", "d1"}) is None


def test_in_a_big_fleet_slo_aware_finds_an_idle_worker_or_the_cached_prompt() -> None:
    state = make_state(300)
    for i in range(300):
        if i != 123:
            send(state, f"w{i}", RoutedRequest(num_prompt_tokens=4000))
    assert pick(state, PolicyName.SLO_AWARE, RoutedRequest(num_prompt_tokens=100)) == "w123"
    known = RoutedRequest(num_prompt_tokens=32_000, prefix_hashes=tuple(range(2000)))
    state.prefixes.note(known.prefix_hashes[:1000], "w7")
    assert pick(state, PolicyName.SLO_AWARE, known) == "w7"


@pytest.mark.parametrize("sample", [0.0, -1.0, float("nan"), float("inf")])
def test_odd_measurements_are_left_out(sample: float) -> None:
    speeds = Speeds()
    speeds.note_handover("d", sample)
    speeds.note_prefill("d", 100, sample)
    assert speeds.handover_s.of("d") == Speeds().handover_s.of("d")
    assert speeds.prefill.of("d") == Speeds().prefill.of("d")


def test_speeds_follow_what_is_measured_and_strangers_get_the_mean() -> None:
    speeds = Speeds()
    values = []
    for _ in range(20):
        speeds.note_prefill("w", 1000, 0.1)
        values.append(speeds.prefill.of("stranger"))
    for _ in range(20):
        speeds.note_prefill("w", 1000, 1.0)
        values.append(speeds.prefill.of("w"))
    assert values[19] == pytest.approx(10_000)
    assert values[-1] == pytest.approx(1000, rel=0.15)
    assert all(after <= before for before, after in pairwise(values[19:]))
    speeds.forget("w")
    assert speeds.prefill.of("w") == speeds.prefill.of("stranger")


def test_a_request_weighs_beside_its_tokens() -> None:
    state = make_state(1)
    send(state, "w0")
    assert state.roster.load_of("w0").weight == REQUEST.num_tokens + TOKENS_PER_REQUEST
