"""The line of waiting requests: against a simple model, and the promises one by one."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.waiting import Refusal, WaitingLine, WaitingRules


def line_of(
    max_running: int = 1, max_waiting: int = 1000, max_wait_s: float = 60.0, **rules: bool
) -> WaitingLine:
    return WaitingLine(WaitingRules(max_running, max_waiting, max_wait_s, **rules))


def arrive(
    line: WaitingLine,
    id_: str,
    tenant: str = "t",
    priority: int = 0,
    num_tokens: int = 100,
    now_s: float = 0.0,
) -> Refusal | None:
    arrival = line.arrive(id_, tenant=tenant, priority=priority, num_tokens=num_tokens, now_s=now_s)
    line.check_invariants()
    return arrival.refusal


def start(line: WaitingLine, now_s: float = 0.0) -> str | None:
    ticket = line.start_next(now_s)
    line.check_invariants()
    return ticket.id if ticket else None


def serve_all(line: WaitingLine) -> list[str]:
    """One after the other, to the end."""
    order = []
    while (id_ := start(line)) is not None:
        order.append(id_)
        line.finish(id_)
    return order


def test_nobody_waits_while_there_is_room() -> None:
    line = line_of(max_running=2, max_waiting=0)
    for id_ in "ab":
        assert arrive(line, id_) is None
        assert start(line) == id_
    refusal = arrive(line, "c")
    assert refusal is not None
    assert (refusal.status, refusal.code) == (429, "queue_full")
    line.finish("a")
    assert arrive(line, "d") is None
    assert start(line) == "d"


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    line = line_of()
    for id_ in "abcde":
        arrive(line, id_)
    assert serve_all(line) == list("abcde")


@pytest.mark.parametrize(("low_first", "order"), [(False, "cab"), (True, "bac")])
def test_higher_priorities_go_first_or_lower_ones_if_asked(low_first: bool, order: str) -> None:
    line = line_of(low_values_first=low_first)
    for id_, priority in (("a", 0), ("b", -5), ("c", 7)):
        arrive(line, id_, priority=priority)
    assert line.waiting_by_priority() == {0: 1, -5: 1, 7: 1}
    assert serve_all(line) == list(order)


@given(
    st.dictionaries(st.sampled_from("wxyz"), st.integers(10, 2000), min_size=2),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_tenants_share_by_tokens_within_ten_percent(
    sizes: dict[str, int], max_running: int, order: object
) -> None:
    """Each tenant has requests of its own size and always some waiting; any of those that run may
    end first. Once every one has been served 30 of the biggest, shares are equal."""
    line = line_of(max_running=max_running, max_waiting=100_000)
    goal = 30 * max(sizes.values())
    num = {tenant: 2 * goal // size + 10 for tenant, size in sizes.items()}
    tenant_of = {}
    for tenant, size in sizes.items():
        for index in range(num[tenant]):
            id_ = f"{tenant}{index}"
            tenant_of[id_] = tenant
            line.arrive(id_, tenant=tenant, priority=0, num_tokens=size, now_s=0.0)
    served: Counter[str] = Counter()
    running: list[str] = []
    while len(served) < len(sizes) or min(served.values()) < goal:
        while (ticket := line.start_next(0.0)) is not None:
            running.append(ticket.id)
            served[ticket.tenant] += ticket.num_tokens
        ended = running.pop(order.randrange(len(running)))  # type: ignore[attr-defined]
        line.finish(ended)
    assert max(served.values()) <= 1.1 * min(served.values())


def test_a_greedy_tenant_does_not_delay_a_modest_one() -> None:
    line = line_of()
    for index in range(50):
        arrive(line, f"greedy{index}", "greedy")
    arrive(line, "modest", "modest")
    assert serve_all(line).index("modest") <= 1


def test_a_tenant_that_was_away_saves_up_nothing() -> None:
    line = line_of()
    for index in range(20):
        arrive(line, f"a{index}", "a")
    for _ in range(10):
        id_ = start(line)
        assert id_ is not None
        line.finish(id_)
    for index in range(10):
        arrive(line, f"b{index}", "b")
    first_six = serve_all(line)[:6]
    assert sum(id_.startswith("b") for id_ in first_six) == 3


def test_a_tenant_is_charged_for_what_it_really_used() -> None:
    line, served = line_of(), Counter[str]()
    for index in range(60):
        arrive(line, f"a{index}", "a", num_tokens=1000)  # says 1000, uses 100
        arrive(line, f"b{index}", "b", num_tokens=100)
    for _ in range(60):
        id_ = start(line)
        assert id_ is not None
        served[id_[0]] += 1
        line.finish(id_, 100)
        line.check_invariants()
    assert abs(served["a"] - served["b"]) <= 6


def test_leaving_costs_a_tenant_nothing() -> None:
    line = line_of()
    arrive(line, "running")
    start(line)
    for index in range(10):
        arrive(line, f"gone{index}", "a", num_tokens=10_000)
        assert line.withdraw(f"gone{index}")
    assert not line.withdraw("gone0")
    arrive(line, "a", "a")
    arrive(line, "b", "b")
    line.finish("running")
    assert serve_all(line) == ["a", "b"]


def test_a_full_line_gives_way_to_the_more_important() -> None:
    line = line_of(max_waiting=2)
    arrive(line, "running")
    start(line)
    arrive(line, "early", priority=1)
    arrive(line, "late", priority=1)
    assert arrive(line, "low", priority=0) is not None
    assert arrive(line, "equal", priority=1) is not None
    arrival = line.arrive("high", tenant="t", priority=2, num_tokens=1, now_s=0.0)
    assert arrival.refusal is None
    assert arrival.displaced is not None
    assert arrival.displaced[0] == "late"
    assert arrival.displaced[1].status == 429
    line.finish("running")
    assert serve_all(line) == ["high", "early"]


def test_a_full_line_has_a_place_for_who_has_none() -> None:
    line = line_of(max_waiting=4)
    arrive(line, "running")
    start(line)
    for index in range(4):
        arrive(line, f"greedy{index}", "greedy")
    for id_, victim in (("m0", "greedy3"), ("m1", "greedy2")):
        arrival = line.arrive(id_, tenant="modest", priority=0, num_tokens=1, now_s=0.0)
        assert arrival.displaced is not None
        assert arrival.displaced[0] == victim
        line.check_invariants()
    assert arrive(line, "m2", "modest") is not None, "both have two now"
    line.withdraw("m1")
    arrive(line, "third", "third")
    assert arrive(line, "m3", "modest") is not None, "to have two in place of one is no need"


def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    line = line_of(max_wait_s=5.0)
    arrive(line, "running")
    start(line)
    arrive(line, "a", now_s=1.0)
    line.arrive("hurried", tenant="t", priority=0, num_tokens=1, now_s=1.0, max_wait_s=2.0)
    assert line.next_deadline_s() == 3.0
    assert line.expire(2.9) == []
    [(id_, refusal)] = line.expire(3.0)
    assert (id_, refusal.status, refusal.code) == ("hurried", 503, "queue_timeout")
    assert "2.0 s" in refusal.message
    assert refusal.retry_after_s >= 1
    assert [id_ for id_, _ in line.expire(100.0)] == ["a"]
    assert line.next_deadline_s() is None
    line.check_invariants()


def test_the_wait_is_estimated_from_how_fast_the_line_moves() -> None:
    line = line_of(max_waiting=40)
    assert line.expected_wait_s == 0.0
    arrive(line, "0")
    start(line)
    assert arrive(line, "1") is None
    assert line.estimated_wait_s("1") is None
    for index in range(2, 40):
        arrive(line, str(index))
    for index in range(20):
        line.finish(str(index))
        assert start(line, now_s=2.0 * (index + 1)) == str(index + 1)
    assert line.estimated_wait_s("21") == pytest.approx(2.0, rel=0.1)
    assert line.estimated_wait_s("30") == pytest.approx(20.0, rel=0.1)
    arrive(line, "urgent", priority=1)
    assert line.estimated_wait_s("urgent") == pytest.approx(2.0, rel=0.1)
    assert line.estimated_wait_s("21") == pytest.approx(4.0, rel=0.1)
    arrive(line, "other", "other")
    assert line.estimated_wait_s("other") == pytest.approx(6.0, rel=0.1)
    for index in range(100, 119):
        arrive(line, str(index))
    assert line.expected_wait_s == pytest.approx(82.0, rel=0.1)
    refusal = arrive(line, "too many", "t")
    assert refusal is not None
    assert 60 >= refusal.retry_after_s > 40


def test_any_number_may_be_a_priority_without_filling_memory() -> None:
    line = line_of()
    for priority in range(-1000, 1000):
        arrive(line, str(priority), priority=priority)
        assert start(line) == str(priority)
        line.finish(str(priority), 5)
    assert not line._levels


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"),
            st.sampled_from("abc"),
            st.integers(0, 2),
            st.integers(0, 300),
            st.integers(1, 9),
        ),
        st.tuples(st.just("start")),
        st.tuples(st.just("finish"), st.integers(0, 9), st.none() | st.integers(0, 300)),
        st.tuples(st.just("withdraw"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(1, 4)),
    ),
    max_size=150,
)


class Model:
    """What the line promises, in the plainest form: a list in order of arrival, and counts."""

    def __init__(self, max_running: int, max_waiting: int):
        self.max_running, self.max_waiting = max_running, max_waiting
        self.waiting: list[tuple[str, str, int, float]] = []  # id, tenant, priority, deadline
        self.running: list[str] = []
        self.answered: Counter[str] = Counter()

    def has_room(self) -> bool:
        can_run = not self.waiting and len(self.running) < self.max_running
        return can_run or len(self.waiting) < self.max_waiting

    def drop(self, id_: str) -> None:
        self.waiting = [entry for entry in self.waiting if entry[0] != id_]
        self.answered[id_] += 1

    def may_start(self) -> set[str]:
        """Of the most important, the first of each tenant."""
        top = max(entry[2] for entry in self.waiting)
        firsts: dict[str, str] = {}
        for id_, tenant, priority, _ in self.waiting:
            if priority == top:
                firsts.setdefault(tenant, id_)
        return set(firsts.values())


@given(steps, st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=400)
def test_any_history_is_as_the_model_says(
    history: list[tuple[object, ...]], max_running: int, max_waiting: int
) -> None:
    line, model = line_of(max_running, max_waiting), Model(max_running, max_waiting)
    now_s, num = 0.0, 0
    for step in history:
        match step:
            case ("arrive", str(tenant), int(priority), int(num_tokens), int(limit_s)):
                num += 1
                id_, had_room = f"r{num}", model.has_room()
                arrival = line.arrive(
                    id_,
                    tenant=tenant,
                    priority=priority,
                    num_tokens=num_tokens,
                    now_s=now_s,
                    max_wait_s=limit_s,
                )
                if had_room:
                    assert arrival.refusal is None
                    assert arrival.displaced is None
                elif arrival.displaced is not None:
                    victim = next(e for e in model.waiting if e[0] == arrival.displaced[0])
                    assert victim[2] == min(entry[2] for entry in model.waiting)
                    assert victim[2] <= priority
                    model.drop(victim[0])
                else:
                    assert arrival.refusal is not None
                    assert all(entry[2] >= priority for entry in model.waiting)
                if arrival.refusal is None:
                    model.waiting.append((id_, tenant, priority, now_s + limit_s))
                else:
                    model.answered[id_] += 1
            case ("start",):
                ticket = line.start_next(now_s)
                can_start = model.waiting and len(model.running) < max_running
                assert (ticket is not None) == bool(can_start)
                if ticket is not None:
                    assert ticket.id in model.may_start()
                    model.waiting = [e for e in model.waiting if e[0] != ticket.id]
                    model.running.append(ticket.id)
            case ("finish", int(index), used) if model.running:
                id_ = model.running.pop(index % len(model.running))
                line.finish(id_, used)  # type: ignore[arg-type]
                model.answered[id_] += 1
            case ("withdraw", int(index)) if model.waiting:
                id_ = model.waiting[index % len(model.waiting)][0]
                assert line.withdraw(id_)
                model.drop(id_)
            case ("wait", int(seconds)):
                now_s += seconds
                expired = {id_ for id_, _ in line.expire(now_s)}
                assert expired == {e[0] for e in model.waiting if e[3] <= now_s}
                for id_ in expired:
                    model.drop(id_)
        line.check_invariants()
        assert line.num_waiting == len(model.waiting)
        assert line.num_running == len(model.running)
        for id_, *_ in model.waiting:
            estimate_s = line.estimated_wait_s(id_)
            assert estimate_s is None or estimate_s >= 0
    pending = {entry[0] for entry in model.waiting} | set(model.running)
    assert all(model.answered[f"r{i}"] + (f"r{i}" in pending) == 1 for i in range(1, num + 1))


def test_weights_share_turns() -> None:
    line = WaitingLine(WaitingRules(max_running=1, max_waiting=1000))
    line.arrive("first", tenant="x", priority=0, num_tokens=1, now_s=0.0)
    assert line.start_next(0.0) is not None
    for number in range(60):
        for tenant, weight in (("light", 1.0), ("heavy", 3.0)):
            line.arrive(
                f"{tenant}-{number}",
                tenant=tenant,
                priority=0,
                num_tokens=100,
                now_s=0.0,
                weight=weight,
            )
    running, started = "first", []
    for step in range(80):
        line.finish(running)
        ticket = line.start_next(float(step))
        assert ticket is not None
        running = ticket.id
        started.append(ticket.tenant)
        line.check_invariants()
    assert 58 <= started.count("heavy") <= 61
