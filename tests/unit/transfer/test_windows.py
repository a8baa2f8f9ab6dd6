import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.transfer.windows import Window, WindowTable

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda p: (p[0], p[0] + p[1])),
    max_size=8,
)


@given(RANGES, st.integers(0, 80), st.integers(1, 30))
def test_contains_agrees_with_a_set_of_bytes(
    ranges: list[tuple[int, int]], start: int, length: int
) -> None:
    allowed = {byte for low, high in ranges for byte in range(low, high)}
    wanted = set(range(start, start + length))
    assert Window("w", ranges).contains(start, start + length) == (wanted <= allowed)


def test_close_waits_for_who_is_inside_and_lets_nobody_in_again() -> None:
    table = WindowTable(100)
    table.open("w", [(0, 100)])
    window = table.get("w")
    assert window is not None
    closed = threading.Event()

    def close() -> None:
        table.close("w")
        closed.set()

    with window.lock:
        closer = threading.Thread(target=close)
        closer.start()
        assert not closed.wait(0.05)
    closer.join()
    assert not window.is_open
    assert table.get("w") is None


def test_a_name_cannot_be_open_twice_and_ranges_stay_inside() -> None:
    table = WindowTable(100)
    table.open("w", [(0, 100)])
    with pytest.raises(ValueError, match="open already"):
        table.open("w", [])
    with pytest.raises(ValueError, match=r"\[0, 101\)"):
        table.open("x", [(0, 101)])
