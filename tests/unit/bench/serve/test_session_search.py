"""How many sessions a server sustains, found with few steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.serve.session_search import SessionSearch


def tried(sustained: int, most: int = 256) -> tuple[list[int], int]:
    search, numbers = SessionSearch(most), list[int]()
    while (number := search.next_number()) is not None:
        numbers.append(number)
        search.note(number, is_good=number <= sustained)
    return numbers, search.best


@pytest.mark.parametrize(
    ("sustained", "numbers", "best"),
    [
        (0, [1], 0),
        (1, [1, 2], 1),
        (5, [1, 2, 4, 8, 6, 5], 5),
        (256, [1, 2, 4, 8, 16, 32, 64, 128, 256], 256),
    ],
)
def test_known_searches(sustained: int, numbers: list[int], best: int) -> None:
    assert tried(sustained) == (numbers, best)


def test_it_stops_at_the_most() -> None:
    assert tried(1000, most=100) == ([1, 2, 4, 8, 16, 32, 64, 100], 100)


@given(st.integers(0, 400), st.integers(1, 300))
def test_the_answer_is_right_to_a_sixteenth_and_no_number_is_tried_twice(
    sustained: int, most: int
) -> None:
    numbers, best = tried(sustained, most)
    true = min(sustained, most)
    assert best <= true <= best + max(1, best // 16)
    assert len(numbers) == len(set(numbers)) <= 16
