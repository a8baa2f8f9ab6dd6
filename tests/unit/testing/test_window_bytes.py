"""The model of a window's bytes, against every outcome that its writes can have."""

import itertools
import random

import pytest

from baton.testing.transport_checks.window_bytes import WindowBytes
from baton.transfer.protocol import Copy

NUM_BYTES = 24
RANGES = [(2, 9), (12, 20)]
SOURCE = memoryview(bytes(range(100, 100 + NUM_BYTES)))


def a_copy(rng: random.Random) -> Copy:
    start, end = rng.choice(RANGES)
    low, high = sorted((rng.randint(start, end), rng.randint(start, end)))
    return Copy(rng.randint(0, NUM_BYTES - (high - low)), low, high - low)


def values_of(copies: list[Copy], has_arrived: list[bool]) -> list[set[int]]:
    """What each byte may be, counted out one by one."""
    values = [{0} for _ in range(NUM_BYTES)]
    for copy, arrived in zip(copies, has_arrived, strict=True):
        for index in range(copy.num_bytes):
            sent = {SOURCE[copy.src_offset + index]}
            place = copy.dst_offset + index
            values[place] = sent if arrived else values[place] | sent
    return values


@pytest.mark.parametrize("seed", range(40))
def test_each_byte_may_be_what_it_may_be_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    copies = [a_copy(rng) for _ in range(rng.randint(0, 7))]
    has_arrived = [rng.random() < 0.5 for _ in copies]
    known = WindowBytes(RANGES, SOURCE, memoryview(bytes(NUM_BYTES)))
    for copy, arrived in zip(copies, has_arrived, strict=True):
        if arrived:
            known.arrived([copy])
        else:
            known.may_have_arrived([copy])
    values = values_of(copies, has_arrived)
    one_of_each = bytes(rng.choice(sorted(each)) for each in values)
    assert known.first_wrong(memoryview(one_of_each)) is None
    for place in itertools.chain(*(range(*each) for each in RANGES)):
        wrong = bytearray(one_of_each)
        wrong[place] = next(value for value in range(256) if value not in values[place])
        assert known.first_wrong(memoryview(wrong)) == place


def test_bytes_outside_of_the_window_are_not_its_own() -> None:
    known = WindowBytes([(2, 4)], SOURCE, memoryview(bytes(NUM_BYTES)))
    assert known.first_wrong(memoryview(bytes([1, 1, 0, 0, 1]))) is None
