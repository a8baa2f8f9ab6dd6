import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.transfer.read_ahead import ReadAhead


@given(st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 12)), max_size=40))
def test_every_byte_comes_out_once_and_in_order(turns: list[tuple[bytes, int]]) -> None:
    ahead = ReadAhead(16)
    added, taken = b"", b""
    for arriving, wanted in turns:
        room = ahead.room()
        assert len(room) == 16 - ahead.num_bytes
        arrived = arriving[: len(room)]
        room[: len(arrived)] = arrived
        ahead.add(len(arrived))
        added += arrived
        taken += bytes(ahead.take(min(wanted, ahead.num_bytes)))
        assert added.startswith(taken)
        assert ahead.num_bytes == len(added) - len(taken)


def test_no_more_can_be_taken_than_came() -> None:
    ahead = ReadAhead(4)
    ahead.room()[:2] = b"ab"
    ahead.add(2)
    with pytest.raises(AssertionError, match="more bytes are taken"):
        ahead.take(3)
