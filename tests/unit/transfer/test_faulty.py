"""Each fault on real shared memory and real sockets, with time and order in the test's hands."""

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from baton.core.clock import FakeClock
from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.testing.faulty import FaultConfig, faulty
from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    DEADLINE_S,
    WINDOW,
    MakeTransport,
    Side,
    apply,
    block,
)
from baton.transfer import (
    LinkConfig,
    RoutedTransport,
    ShmTransport,
    SimulatedLink,
    TcpTransport,
    parse_link,
)
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState
from baton.transfer.routed_peer import Route

NUM_BLOCKS = 64
REGION_BYTES = NUM_BLOCKS * BLOCK_BYTES
OTHER_WINDOW = "transfer-2"
BACKENDS: dict[str, MakeTransport] = {"shm": ShmTransport, "tcp": TcpTransport}


class TestLoop:
    """Calls run when the test asks; timers when its clock has come to them."""

    __test__ = False

    def __init__(self, clock: FakeClock):
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def submit(self, call: Callable[[], None]) -> bool:
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
        return True

    def run(self, call: Callable[[], None]) -> None:
        call()

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        due_s = self._clock.now_s() + delay_s
        heapq.heappush(self._timers, (due_s, next(self._numbers), call))

    def stop(self) -> None:
        self._calls.clear()

    def run_now(self) -> None:
        """What is to run by now, without waiting."""
        while True:
            with self._changed:
                calls, self._calls = self._calls, []
            while self._timers and self._timers[0][0] <= self._clock.now_s() + 1e-9:
                calls.append(heapq.heappop(self._timers)[2])
            if not calls:
                return
            for call in calls:
                call()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Until the real transport has brought it about."""
        while True:
            self.run_now()
            if condition():
                return
            with self._changed:
                assert self._changed.wait_for(lambda: self._calls, DEADLINE_S), "nothing happens"


class World:
    """A writer behind a route, an owner, and the test's time."""

    def __init__(self, backend: str, route: FaultConfig | Route):
        self.clock = FakeClock(100.0)
        self.loop = TestLoop(self.clock)
        self.route = route
        make = BACKENDS[backend]
        self.writer = Side(lambda segment: self._routed(make(segment), segment), REGION_BYTES, 7)
        self.owner = Side(make, REGION_BYTES)
        for window in (WINDOW, OTHER_WINDOW):
            self.owner.transport.open_window(window, [(0, REGION_BYTES)])
        self.peer: Peer = self.writer.connect(self.owner)

    def _routed(
        self, inner: ShmTransport | TcpTransport, segment: SharedSegment
    ) -> RoutedTransport:
        if isinstance(self.route, FaultConfig):
            view = segment.view()
            return faulty(inner, self.route, view, clock=self.clock, loop=self.loop)
        return RoutedTransport(inner, self.route, clock=self.clock, loop=self.loop)

    def write(self, copies: Sequence[Copy], window: str = WINDOW) -> Ticket:
        ticket = self.peer.post_write(window, copies)
        self.settle(ticket)
        return ticket

    def settle(self, *tickets: Ticket) -> None:
        self.loop.run_until(lambda: all(t.state is not TicketState.PENDING for t in tickets))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.run_now()

    def expected(self, *copies: Copy) -> bytes:
        target = bytearray(REGION_BYTES)
        apply(copies, self.writer.view, target)
        return bytes(target)

    def num_wrong_bytes(self, *copies: Copy) -> int:
        expected = self.expected(*copies)
        return sum(one != other for one, other in zip(self.owner.view, expected, strict=True))


@contextmanager
def world(backend: str, route: FaultConfig | Route) -> Iterator[World]:
    made = World(backend, route)
    try:
        yield made
    finally:
        made.writer.close()
        made.owner.close()


both = pytest.mark.parametrize("backend", BACKENDS)


@both
def test_nothing_arrives_before_bandwidth_and_delay_allow_it(backend: str) -> None:
    link = LinkConfig(bits_per_s=8 * BLOCK_BYTES, delay_s=0.5)  # a block a second
    with world(backend, SimulatedLink(link)) as made:
        first = made.peer.post_write(WINDOW, [block(3, 0, 2)])
        second = made.peer.post_write(WINDOW, [block(9, 5)])
        made.pass_time(2.49)
        assert made.owner.view == bytes(REGION_BYTES)
        assert first.state is TicketState.PENDING
        made.pass_time(0.01)
        made.settle(first)
        assert made.owner.view == made.expected(block(3, 0, 2))
        made.pass_time(0.99)
        assert second.state is TicketState.PENDING
        made.pass_time(0.01)
        made.settle(second)
        assert made.owner.view == made.expected(block(3, 0, 2), block(9, 5))
        assert made.writer.transport.stats().num_bytes == 3 * BLOCK_BYTES


@both
def test_what_is_cancelled_on_the_link_never_arrives(backend: str) -> None:
    with world(backend, SimulatedLink(parse_link("1s"))) as made:
        stays, goes = (made.peer.post_write(WINDOW, [block(i, i)]) for i in (1, 2))
        made.peer.cancel(goes)
        made.loop.run_now()
        assert (stays.state, goes.state) == (TicketState.PENDING, TicketState.CANCELLED)
        made.pass_time(1.0)
        made.settle(stays)
        assert made.owner.view == made.expected(block(1, 1))


@both
def test_what_is_on_the_link_ends_with_the_peer(backend: str) -> None:
    with world(backend, SimulatedLink(parse_link("1s"))) as made:
        ticket = made.peer.post_write(WINDOW, [block(1, 1)])
        made.peer.close()
        assert ticket.state is TicketState.CANCELLED
        made.pass_time(5.0)
        assert made.owner.view == bytes(REGION_BYTES)
        late = made.peer.post_write(WINDOW, [])
        assert (late.state, late.error) == (TicketState.FAILED, "this side closed the peer")


def test_a_window_that_is_closed_while_bytes_are_on_the_link_is_a_fence() -> None:
    with world("tcp", SimulatedLink(parse_link("1s"))) as made:
        ticket = made.peer.post_write(WINDOW, [block(1, 1)])
        made.owner.transport.close_window(WINDOW)
        made.pass_time(1.0)
        made.settle(ticket)
        assert ticket.state is TicketState.FAILED
        assert made.owner.view == bytes(REGION_BYTES)


@both
def test_a_link_that_loses_fails_what_it_lost_when_it_would_arrive(backend: str) -> None:
    with world(backend, SimulatedLink(parse_link("2s,loss=1"))) as made:
        ticket = made.peer.post_write(WINDOW, [block(1, 1)])
        made.pass_time(1.9)
        assert ticket.state is TicketState.PENDING
        made.pass_time(0.1)
        assert (ticket.state, ticket.error) == (TicketState.FAILED, "lost on the simulated link")
        assert made.owner.view == bytes(REGION_BYTES)
        assert made.writer.transport.stats().num_failures == 1


@both
def test_a_lost_write_has_arrived_by_half(backend: str) -> None:
    with world(backend, FaultConfig(lose=1)) as made:
        ticket = made.write([block(0, 10, 3), block(20, 30)])
        assert (ticket.state, ticket.error) == (TicketState.FAILED, "write 1 was lost")
        assert made.owner.view == made.expected(block(0, 10, 2))


@both
def test_a_stalled_write_never_completes_but_can_be_cancelled(backend: str) -> None:
    with world(backend, FaultConfig(stall=1)) as made:
        ticket = made.peer.post_write(WINDOW, [block(0, 0)])
        made.pass_time(1e9)
        assert ticket.state is TicketState.PENDING
        made.peer.cancel(ticket)
        made.loop.run_now()
        assert ticket.state is TicketState.CANCELLED
        assert made.owner.view == bytes(REGION_BYTES)


@both
def test_a_refused_write_moves_no_byte(backend: str) -> None:
    with world(backend, FaultConfig(refuse=1)) as made:
        ticket = made.write([block(0, 0)])
        assert (ticket.state, ticket.error) == (TicketState.FAILED, "write 1 was refused")
        assert made.owner.view == bytes(REGION_BYTES)


@both
def test_a_duplicate_is_written_twice_and_counts_once(backend: str) -> None:
    with world(backend, FaultConfig(duplicate=1)) as made:
        ticket = made.write([block(4, 2, 2)])
        assert ticket.state is TicketState.DONE
        assert made.owner.view == made.expected(block(4, 2, 2))
        assert made.writer.transport.stats().num_writes == 1
        assert made.writer.transport._inner.stats().num_writes == 2  # type: ignore[attr-defined]


@both
def test_a_corrupted_write_is_done_with_one_wrong_byte(backend: str) -> None:
    with world(backend, FaultConfig(corrupt=1, seed=3)) as made:
        ticket = made.write([block(4, 2, 2), block(30, 40)])
        assert ticket.state is TicketState.DONE
        assert made.num_wrong_bytes(block(4, 2, 2), block(30, 40)) == 1


@both
def test_writes_of_another_window_overtake_and_those_of_the_same_do_not(backend: str) -> None:
    with world(backend, FaultConfig(overtake=0.5, hold_s=1.0, seed=1)) as made:
        tickets = [
            made.peer.post_write(window, [block(number, number)])
            for number, window in enumerate([WINDOW, WINDOW, OTHER_WINDOW])
        ]
        made.settle(tickets[2])
        assert [ticket.state for ticket in tickets[:2]] == [TicketState.PENDING] * 2
        assert made.owner.view == made.expected(block(2, 2))
        made.pass_time(1.0)
        made.settle(*tickets)
        assert made.owner.view == made.expected(block(0, 0, 3))


@both
def test_a_peer_that_dies_fails_everything_and_the_next_one_works(backend: str) -> None:
    with world(backend, FaultConfig(die_at=3)) as made:
        assert made.write([block(1, 1)]).state is TicketState.DONE
        tickets = [made.peer.post_write(WINDOW, [block(2, 2)]) for _ in range(3)]
        made.settle(*tickets)
        assert [ticket.state for ticket in tickets[1:]] == [TicketState.FAILED] * 2
        assert tickets[1].error == "write 3 killed it"
        assert not made.peer.is_alive
        assert made.write([block(3, 3)]).state is TicketState.FAILED
        made.peer = made.writer.connect(made.owner)
        assert made.write([block(3, 3)]).state is TicketState.DONE


@both
def test_a_peer_that_hangs_settles_nothing_until_it_is_closed(backend: str) -> None:
    with world(backend, FaultConfig(hang_at=2)) as made:
        assert made.write([block(1, 1)]).state is TicketState.DONE
        tickets = [made.peer.post_write(WINDOW, [block(2, 2)]) for _ in range(2)]
        made.peer.cancel(tickets[0])
        made.pass_time(1e9)
        assert made.peer.is_alive
        assert [ticket.state for ticket in tickets] == [TicketState.PENDING] * 2
        made.peer.close()
        assert [ticket.state for ticket in tickets] == [TicketState.CANCELLED] * 2
        assert made.owner.view == made.expected(block(1, 1))


@both
@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_brings_the_same_faults(backend: str, seed: int) -> None:
    def run() -> tuple[list[TicketState], bytes]:
        faults = FaultConfig(seed=seed, lose=0.2, refuse=0.2, duplicate=0.1, corrupt=0.2)
        with world(backend, faults) as made:
            states = [made.write([block(i, i)]).state for i in range(NUM_BLOCKS)]
            return states, bytes(made.owner.view)

    first, again = run(), run()
    assert first == again
    assert {TicketState.DONE, TicketState.FAILED} == set(first[0])


def test_two_seeds_bring_different_faults() -> None:
    def states(seed: int) -> list[TicketState]:
        with world("shm", FaultConfig(seed=seed, refuse=0.5)) as made:
            return [made.write([block(0, 0)]).state for _ in range(40)]

    assert states(1) != states(2)


def test_completion_is_told_once_for_each_write_whatever_became_of_it() -> None:
    faults = FaultConfig(seed=5, lose=0.3, refuse=0.2, duplicate=0.3, corrupt=0.2)
    with world("shm", faults) as made:
        for number in range(30):
            made.write([block(number, number, 2)])
        assert made.writer.num_completions == 30
        stats = made.writer.transport.stats()
        assert stats.num_writes + stats.num_failures == 30


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"lose": 1.5}, "lose 1.5 is not a share"),
        ({"stall": -0.1}, "stall -0.1 is not a share"),
        ({"lose": 0.6, "refuse": 0.6}, "add up to 1.2"),
        ({"hold_s": -1.0}, "hold_s -1 is not a time"),
        ({"die_at": 0}, "die_at 0 is no write's number"),
    ],
)
def test_impossible_faults_are_refused(faults: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        FaultConfig(**faults)  # type: ignore[arg-type]


def test_corruption_without_the_regions_bytes_is_refused() -> None:
    segment = SharedSegment(BLOCK_BYTES)
    transport = ShmTransport(segment)
    with pytest.raises(ConfigError, match="give region"):
        faulty(transport, FaultConfig(corrupt=1.0))
    transport.close()
    segment.close()
