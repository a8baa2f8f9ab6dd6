"""Limits of a tenant: what a minute allows, and that waiting as long as told is always enough."""

from hypothesis import given
from hypothesis import strategies as st

from baton.router.limits import OverLimit, TenantBook, TenantRules


def test_requests_per_minute_run_back_steadily() -> None:
    book, rules = TenantBook(), TenantRules(requests_per_minute=60)
    assert [book.enter(rules, 1, 100.0) for _ in range(60)] == [None] * 60
    over = book.enter(rules, 1, 100.0)
    assert over == OverLimit("requests", "60 requests per minute", 1.0)
    assert book.enter(rules, 1, 100.5) is not None
    assert book.enter(rules, 1, 101.0) is None
    assert book.enter(rules, 1, 101.0) is not None
    assert book.num_refused == {"requests": 3}
    assert book.headers(rules, 131.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "30",
        "x-ratelimit-reset-requests": "30000ms",
    }


def test_a_request_above_a_whole_minute_waits_until_all_is_free() -> None:
    book, rules = TenantBook(), TenantRules(tokens_per_minute=600)
    assert book.enter(rules, 2400, 0.0) is None
    over = book.enter(rules, 1, 0.0)
    assert over is not None
    assert over.wait_s == 180.1
    assert book.enter(rules, 9000, 239.0) is not None
    assert book.enter(rules, 9000, 240.0) is None


def test_concurrent_requests_are_counted_until_they_leave() -> None:
    book, rules = TenantBook(), TenantRules(max_concurrent=2)
    assert book.enter(rules, 1, 0.0) is None
    assert book.enter(rules, 1, 0.0) is None
    over = book.enter(rules, 1, 0.0)
    assert over is not None
    assert over.limit == "concurrent"
    book.leave()
    assert book.enter(rules, 1, 0.0) is None


def test_a_refusal_uses_up_nothing() -> None:
    book = TenantBook()
    rules = TenantRules(requests_per_minute=10, tokens_per_minute=100)
    assert book.enter(rules, 90, 0.0) is None
    for _ in range(50):
        assert book.enter(rules, 50, 0.0) is not None
    assert book.enter(rules, 10, 0.0) is None
    assert book.num_running == 2


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 100)), min_size=1, max_size=30),
)
def test_who_waits_as_long_as_told_is_let_in(
    per_minute: int, arrivals: list[tuple[int, float]]
) -> None:
    book, rules, now_s = TenantBook(), TenantRules(tokens_per_minute=per_minute), 1000.0
    allowed_from_start = per_minute
    for num_tokens, pause_s in arrivals:
        now_s += pause_s
        over = book.enter(rules, num_tokens, now_s)
        if over is None:
            continue
        assert over.wait_s > 0
        now_s += over.wait_s
        assert book.enter(rules, num_tokens, now_s) is None
    largest = max(num for num, _ in arrivals)
    most = allowed_from_start + (now_s - 1000.0) * per_minute / 60 + largest
    assert book.num_tokens <= most * 1.001 + 1
