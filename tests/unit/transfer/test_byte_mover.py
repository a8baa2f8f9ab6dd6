"""The C++ classes that move bytes, on real memory and real sockets."""

import random
import socket
from array import array
from collections.abc import Iterator

import pytest

from baton.kernels._native import CopyRun, ReceiveRun, SendRun
from baton.kvcache.storage import SharedSegment
from baton.transfer.pinned_buffer import PinnedBuffer

_MIB = 1 << 20


class Memory:
    def __init__(self, num_bytes: int, seed: int | None = None):
        self.segment = SharedSegment(num_bytes)
        if seed is not None:
            self.segment.view()[:] = random.Random(seed).randbytes(num_bytes)
        self.pin = PinnedBuffer(self.segment.map)

    @property
    def content(self) -> bytes:
        return bytes(self.segment.map)

    @property
    def place(self) -> tuple[int, int]:
        return self.pin.address, self.pin.num_bytes

    def close(self) -> None:
        self.pin.release()
        self.segment.close()


@pytest.fixture
def source() -> Iterator[Memory]:
    memory = Memory(8 * _MIB, seed=1)
    yield memory
    memory.close()


@pytest.fixture
def target() -> Iterator[Memory]:
    memory = Memory(8 * _MIB)
    yield memory
    memory.close()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for each in ends:
        each.close()


def test_a_copy_goes_on_where_its_last_turn_ended(source: Memory, target: Memory) -> None:
    copies = [(0, 3 * _MIB, 2 * _MIB + 7), (5 * _MIB, 11, 1), (4 * _MIB, 6 * _MIB, _MIB)]
    run = CopyRun(*source.place, *target.place, array("q", sum(copies, ())))
    moved = []
    while not run.is_finished:
        run.advance(1)  # a piece: what is left of a range, but 1 MiB at most
        moved.append(run.num_bytes_moved)
    assert moved == [_MIB, 2 * _MIB, 2 * _MIB + 7, 2 * _MIB + 8, 3 * _MIB + 8]
    expected = bytearray(target.pin.num_bytes)
    for src, dst, length in copies:
        expected[dst : dst + length] = source.content[src : src + length]
    assert target.content == expected


def test_a_stopped_copy_moves_nothing_more(source: Memory, target: Memory) -> None:
    run = CopyRun(*source.place, *target.place, array("q", (0, 0, 4 * _MIB)))
    run.advance(1)
    run.stop()
    run.advance(4 * _MIB)
    assert run.num_bytes_moved == _MIB
    assert not run.is_finished
    assert target.content[_MIB:] == bytes(7 * _MIB)


def test_ranges_outside_of_their_region_are_refused(source: Memory, target: Memory) -> None:
    size = source.pin.num_bytes
    for bad in ((-1, 0, 2), (0, size - 1, 2), (size, 0, 1), (0, 0, 0), (5, 5, -1)):
        with pytest.raises(ValueError, match="outside of the region"):
            CopyRun(*source.place, *target.place, array("q", bad))
    with pytest.raises(ValueError, match="three numbers"):
        CopyRun(*source.place, *target.place, array("q", (0, 0)))
    with pytest.raises(ValueError, match="outside of the region"):
        SendRun(*source.place).add_ranges([(0, 1), (1, size + 1)])
    with pytest.raises(ValueError, match="outside of the region"):
        ReceiveRun(*target.place).expect([(size, size + 1)])


def test_what_is_sent_arrives_in_its_ranges_and_the_rest_beyond(
    source: Memory, target: Memory, sockets: tuple[socket.socket, socket.socket]
) -> None:
    near, far = sockets
    rng = random.Random(2)
    # More parts than one system call takes, and far more bytes than fit into the sockets.
    lengths = [rng.randrange(1, 4000) for _ in range(2500)]
    sending, receiving = SendRun(*source.place), ReceiveRun(*target.place)
    receiving.expect([(2000 * i, 2000 * i + 1) for i in range(3)])
    sending.add_text(b"abc")
    starts = [rng.randrange(_MIB) for _ in lengths]
    pieces = list(zip(starts, lengths, strict=True))
    sending.add_ranges([(start, start + length) for start, length in pieces])
    sending.add_text(b"the end")
    expected = b"".join(source.content[start : start + length] for start, length in pieces)
    room = memoryview(bytearray(2))
    assert 0 < sending.send(near.fileno(), 1 << 30) < 10 + len(expected), "the socket never fills"
    assert receiving.receive(far.fileno(), 1 << 30, room) == 5
    assert receiving.num_bytes_left == 0
    assert [target.content[2000 * i : 2000 * i + 1] for i in range(3)] == [b"a", b"b", b"c"]
    got = bytes(room)
    receiving.expect([(_MIB, _MIB + len(expected) - 2)])
    while receiving.num_bytes_left:
        sending.send(near.fileno(), 1 << 30)
        assert receiving.receive(far.fileno(), 100_000, memoryview(bytearray(0))) <= 100_000
    assert got + target.content[_MIB : _MIB + len(expected) - 2] == expected
    sending.send(near.fileno(), 1 << 30)
    assert sending.num_bytes == 0
    assert far.recv(100) == b"the end"


def test_nothing_yet_and_the_end_of_a_stream_are_told_apart(
    target: Memory, sockets: tuple[socket.socket, socket.socket]
) -> None:
    near, far = sockets
    receiving = ReceiveRun(*target.place)
    receiving.expect([(0, 10)])
    room = memoryview(bytearray(1))
    assert receiving.receive(far.fileno(), 10, room) == 0
    near.close()
    assert receiving.receive(far.fileno(), 10, room) == -1


def test_a_broken_connection_is_an_error(
    source: Memory, sockets: tuple[socket.socket, socket.socket]
) -> None:
    near, far = sockets
    far.close()
    sending = SendRun(*source.place)
    sending.add_ranges([(0, 10)])
    with pytest.raises(BrokenPipeError):
        sending.send(near.fileno(), 10)
    sending.clear()
    assert sending.num_bytes == 0
    assert sending.send(near.fileno(), 10) == 0


def test_what_was_stored_or_skipped_is_not_waited_for(target: Memory) -> None:
    receiving = ReceiveRun(*target.place)
    receiving.expect([(10, 12), (20, 25)])
    receiving.store(memoryview(b"abc"))
    receiving.skip(3)
    assert receiving.num_bytes_left == 4
    receiving.store(memoryview(b"d"))
    receiving.skip(1)
    assert target.content[10:12] + target.content[20:25] == b"abcd\0\0\0"
    with pytest.raises(ValueError, match="more bytes"):
        receiving.store(memoryview(b"defgh"))
    with pytest.raises(ValueError, match="num_bytes"):
        receiving.skip(4)
    receiving.expect_unwanted(7)
    receiving.skip(7)
    assert receiving.num_bytes_left == 0
