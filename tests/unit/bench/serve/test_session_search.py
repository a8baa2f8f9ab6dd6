"""How many sessions a server sustains, found with few steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.serve.session_search import SessionSearch


def tried(
    sustained: int, most: int = 256, first: int = 1, precision: int = 16
) -> tuple[list[int], int]:
    search, numbers = SessionSearch(most, first, precision), list[int]()
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


@pytest.mark.parametrize(
    ("sustained", "numbers", "best"),
    [
        (0, [4, 2, 1], 0),
        (3, [4, 2, 3], 3),
        (10, [4, 8, 16, 12, 10, 11], 10),
        (40, [4, 8, 16, 32, 64, 48, 40, 44], 40),
    ],
)
def test_a_search_that_begins_higher_and_ends_sooner(
    sustained: int, numbers: list[int], best: int
) -> None:
    assert tried(sustained, first=4, precision=8) == (numbers, best)


@given(st.integers(0, 400), st.integers(1, 300), st.integers(1, 300), st.integers(1, 16))
def test_the_answer_is_right_to_its_part_and_no_number_is_tried_twice(
    sustained: int, most: int, first: int, precision: int
) -> None:
    numbers, best = tried(sustained, most, first, precision)
    true = min(sustained, most)
    assert best <= true <= best + max(1, best // precision)
    assert len(numbers) == len(set(numbers)) <= 16
