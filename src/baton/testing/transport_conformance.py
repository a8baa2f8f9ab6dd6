"""What every `KvTransport` must do, as checks that run on each backend.

    @pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
    def test_my_backend(check): check(make_my_transport)

`make(segment)` builds a transport over a segment; `REMOTE_CHECKS` take `(make, backend)` and use a
second process (region_owner.py). Checks ask only what the capability flags promise.

Invariant: a check leaves no thread, descriptor or process behind, and waits for events with a
deadline, never for a fixed time.
Elsewhere: the contract in words (transfer/protocol.py), each backend's own tests.
"""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.testing.region_owner import RemoteOwner
from baton.transfer.protocol import Copy, KvTransport, Peer, Ticket, TicketState

MakeTransport = Callable[[SharedSegment], KvTransport]

BLOCK_BYTES = 4096
NUM_BLOCKS = 4096
REGION_BYTES = BLOCK_BYTES * NUM_BLOCKS
DEADLINE_S = 20.0
SOON_S = 2.0
WINDOW = "transfer-1"
WHOLE_REGION = [(0, REGION_BYTES)]


class Side:
    """One region with its transport; its completion callback wakes `wait`."""

    def __init__(self, make: MakeTransport, num_bytes: int = REGION_BYTES, fill: int | None = None):
        self.segment = SharedSegment(num_bytes)
        self.view = self.segment.view()
        if fill is not None:
            self.view[:] = random.Random(fill).randbytes(num_bytes)
        self.transport = make(self.segment)
        self._changed = threading.Condition()
        self.num_completions = 0
        self.transport.set_on_completion(self._on_completion)

    def connect(self, owner: "Side") -> Peer:
        return self.transport.connect(owner.transport.descriptor, SOON_S)

    def wait(self, *tickets: Ticket) -> None:
        """Until none is PENDING, woken by the completion callback only."""

        def all_settled() -> bool:
            return all(ticket.state is not TicketState.PENDING for ticket in tickets)

        with self._changed:
            settled = self._changed.wait_for(all_settled, DEADLINE_S)
        assert settled, f"still pending after {DEADLINE_S} s"

    def write(self, peer: Peer, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = peer.post_write(window, copies)
        self.wait(ticket)
        return ticket

    def close(self) -> None:
        self.transport.close()
        self.view.release()
        self.segment.close()

    def _on_completion(self) -> None:
        with self._changed:
            self.num_completions += 1
            self._changed.notify_all()


@contextlib.contextmanager
def pair(make: MakeTransport) -> Iterator[tuple[Side, Side]]:
    """A writer with random bytes, and an owner with zeros and one window over everything."""
    writer, owner = Side(make, fill=7), Side(make)
    owner.transport.open_window(WINDOW, WHOLE_REGION)
    try:
        yield writer, owner
    finally:
        close_together(writer, owner)


def close_together(*sides: Side) -> None:
    """At the same time: a library may take a second to end its threads."""
    with ThreadPoolExecutor(len(sides)) as pool:
        list(pool.map(Side.close, sides))


def block(source: int, target: int, count: int = 1) -> Copy:
    return Copy(source * BLOCK_BYTES, target * BLOCK_BYTES, count * BLOCK_BYTES)


def scattered(num_blocks: int, seed: int) -> list[Copy]:
    rng = random.Random(seed)
    sources = rng.sample(range(NUM_BLOCKS), num_blocks)
    targets = rng.sample(range(NUM_BLOCKS), num_blocks)
    return [block(source, target) for source, target in zip(sources, targets, strict=True)]


def apply(copies: Sequence[Copy], source: memoryview, target: bytearray) -> None:
    for copy in copies:
        piece = source[copy.src_offset : copy.src_offset + copy.num_bytes]
        target[copy.dst_offset : copy.dst_offset + copy.num_bytes] = piece


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """For what has no event to wait for: another process's view, the kernel's counters."""
    give_up_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_s, f"{what}: not within {deadline_s} s"
        time.sleep(0.001)


def expect(ticket: Ticket, state: TicketState) -> None:
    assert ticket.state is state, f"{ticket.state} instead of {state}: {ticket.error}"
    assert bool(ticket.error) or state is not TicketState.FAILED, "a failure must say why"


def expect_no_connection(writer: Side, owner: Side) -> None:
    stage = "connected"
    try:
        writer.connect(owner)
    except TransferError as error:
        stage = error.stage
    assert stage == "connect", f"the stage of the failure is {stage}"


def check_exact_bytes_of_odd_ranges(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        copies = [Copy(1, 5, 1), Copy(100, 17, 4095), Copy(70001, 9999, 3_000_001), Copy(7, 8, 0)]
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(writer.connect(owner), WINDOW, copies), TicketState.DONE)
        assert owner.view == expected


def check_empty_write_is_done(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, []), TicketState.DONE)
        expect(writer.write(peer, WINDOW, [Copy(0, 0, 0)]), TicketState.DONE)
        assert owner.view == bytes(REGION_BYTES)


def check_one_block(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        expect(writer.write(writer.connect(owner), WINDOW, [block(3, 9)]), TicketState.DONE)
        expected = bytearray(REGION_BYTES)
        apply([block(3, 9)], writer.view, expected)
        assert owner.view == expected


def check_thousands_of_scattered_blocks(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        copies = scattered(3000, seed=1)
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(writer.connect(owner), WINDOW, copies), TicketState.DONE)
        assert owner.view == expected


def check_the_whole_region_at_once(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, [block(0, 0, NUM_BLOCKS)]), TicketState.DONE)
        assert owner.view == writer.view


def check_later_writes_win(make: MakeTransport) -> None:
    """Writes of one window land in posting order."""
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(source, 0, 64)]) for source in range(100)]
        writer.wait(*tickets)
        assert owner.view[: 64 * BLOCK_BYTES] == writer.view[99 * BLOCK_BYTES : 163 * BLOCK_BYTES]


def check_completion_in_posting_order(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        sizes = [512, 1, 256, 2, 128, 0, 64]
        tickets = [peer.post_write(WINDOW, [block(0, 0, size)]) for size in sizes]
        for index, ticket in enumerate(tickets):
            writer.wait(ticket)
            assert all(earlier.state is TicketState.DONE for earlier in tickets[:index])


def check_concurrent_threads_and_peers(make: MakeTransport) -> None:
    """Several writers to one owner, each from several threads, each into its own window."""
    owner = Side(make)
    writers = [Side(make, fill=seed) for seed in range(3)]
    share = NUM_BLOCKS // 6
    expected = bytearray(REGION_BYTES)
    tickets: list[tuple[Side, Ticket]] = []
    threads = []
    for number in range(6):
        writer, first = writers[number // 2], number * share
        peer = writer.connect(owner)
        start, end = first * BLOCK_BYTES, (first + share) * BLOCK_BYTES
        owner.transport.open_window(f"window-{number}", [(start, end)])
        copies = [block(share - 1 - index, first + index) for index in range(share)]
        apply(copies, writer.view, expected)

        def post(
            writer: Side = writer,
            peer: Peer = peer,
            window: str = f"window-{number}",
            copies: list[Copy] = copies,
        ) -> None:
            for index in range(0, share, 50):
                tickets.append((writer, peer.post_write(window, copies[index : index + 50])))

        threads.append(threading.Thread(target=post))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer, ticket in tickets:
        writer.wait(ticket)
        expect(ticket, TicketState.DONE)
    assert owner.view == expected
    close_together(*writers, owner)


def check_both_directions(make: MakeTransport) -> None:
    with pair(make) as (first, second):
        first.transport.open_window("back", [(0, BLOCK_BYTES)])
        forth = first.connect(second).post_write(WINDOW, [block(5, 1)])
        first.wait(forth)
        expect(second.write(second.connect(first), "back", [block(1, 0)]), TicketState.DONE)
        assert first.view[:BLOCK_BYTES] == first.view[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]


def check_outside_of_the_regions_is_refused(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        bad_copies = [
            Copy(0, REGION_BYTES - 10, 11),
            Copy(REGION_BYTES - 10, 0, 11),
            Copy(0, -1, 10),
            Copy(-1, 0, 10),
            Copy(0, 0, -1),
            Copy(0, 1 << 62, 1),
        ]
        for bad in bad_copies:
            expect(writer.write(peer, WINDOW, [block(0, 0), bad]), TicketState.FAILED)
        assert owner.view == bytes(REGION_BYTES)
        assert writer.transport.stats().num_failures == len(bad_copies)
        expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)


def check_bad_windows_are_refused(make: MakeTransport) -> None:
    with pair(make) as (_, owner):
        for window, ranges in (
            ("beyond", [(0, REGION_BYTES + 1)]),
            ("negative", [(-1, 10)]),
            ("backwards", [(10, 9)]),
            (WINDOW, [(0, 1)]),
        ):
            with contextlib.suppress(ValueError):
                owner.transport.open_window(window, ranges)
                raise AssertionError(f"window {window} {ranges} was accepted")
        owner.transport.close_window(WINDOW)
        owner.transport.close_window(WINDOW)
        owner.transport.close_window("never opened")


def check_only_open_windows_are_written(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        if not owner.transport.can_fence:
            return
        peer = writer.connect(owner)
        half = REGION_BYTES // 2
        owner.transport.close_window(WINDOW)
        owner.transport.open_window("two parts", [(half, REGION_BYTES), (0, BLOCK_BYTES)])
        late = writer.write(peer, WINDOW, [block(0, 0)])
        unknown = writer.write(peer, "unknown", [block(0, 0)])
        across = writer.write(peer, "two parts", [Copy(0, half - 1, 2)])
        for ticket in (late, unknown, across):
            expect(ticket, TicketState.FAILED)
        assert owner.view == bytes(REGION_BYTES)
        inside = writer.write(peer, "two parts", [block(1, 0), Copy(0, half, half)])
        expect(inside, TicketState.DONE)
        assert owner.view[:BLOCK_BYTES] == writer.view[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert owner.view[half:] == writer.view[:half]


def check_a_closed_window_is_a_fence(make: MakeTransport) -> None:
    """While the writer keeps sending, nothing of the window changes after it was closed."""
    with pair(make) as (writer, owner):
        if not owner.transport.can_fence:
            return
        peer = writer.connect(owner)
        for number in range(20):
            window = f"fenced-{number}"
            owner.transport.open_window(window, WHOLE_REGION)
            owner.view[:1] = b"\0"
            tickets = [peer.post_write(window, [block(0, 0, NUM_BLOCKS)]) for _ in range(3)]
            wait_until(lambda: owner.view[0] == writer.view[0], "the first byte")
            owner.transport.close_window(window)
            owner.view[:] = bytes(REGION_BYTES)
            writer.wait(*tickets)
            assert owner.view == bytes(REGION_BYTES)
            expect(tickets[-1], TicketState.FAILED)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)


def check_cancel(make: MakeTransport) -> None:
    """After a cancelled ticket is settled, nothing more of it arrives; the peer goes on working."""
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        for _ in range(10):
            tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(4)]
            for ticket in reversed(tickets):
                peer.cancel(ticket)
            writer.wait(*tickets)
            owner.view[:] = bytes(REGION_BYTES)
            assert all(t.state in (TicketState.CANCELLED, TicketState.DONE) for t in tickets)
            expect(tickets[-1], TicketState.CANCELLED)
            assert owner.view == bytes(REGION_BYTES)
            expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)
        done = writer.write(peer, WINDOW, [block(0, 0)])
        peer.cancel(done)
        peer.cancel(done)
        expect(done, TicketState.DONE)


def check_peer_close_settles_everything(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(20)]
        peer.close()
        assert all(ticket.state is not TicketState.PENDING for ticket in tickets)
        expect(tickets[-1], TicketState.CANCELLED)
        assert not peer.is_alive
        peer.close()
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.FAILED)
        peer.cancel(tickets[0])
        expect(writer.write(writer.connect(owner), WINDOW, [block(0, 0)]), TicketState.DONE)


def check_transport_close_settles_everything(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(20)]
        writer.transport.close()
        assert all(ticket.state is not TicketState.PENDING for ticket in tickets)
        assert not peer.is_alive
        writer.transport.close()
        expect_no_connection(writer, owner)


def check_the_owner_closing_fails_the_writer(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)
        owner.transport.close()
        wait_until(lambda: not peer.is_alive, "the loss", SOON_S)
        expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.FAILED)
        expect_no_connection(writer, owner)


def check_live_writers(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        me = writer.transport.writer_id
        assert me not in owner.transport.live_writers()
        first, second = writer.connect(owner), writer.connect(owner)
        assert owner.transport.live_writers() == {me}
        first.close()
        assert owner.transport.live_writers() == {me}
        second.close()
        wait_until(lambda: not owner.transport.live_writers(), "the writer leaving", SOON_S)


def check_completion_callback_and_counters(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        for _ in range(5):
            writer.write(peer, WINDOW, [block(0, 0, 3)])
        wait_until(lambda: writer.num_completions == 5, "the callbacks", SOON_S)
        stats = writer.transport.stats()
        assert (stats.num_writes, stats.num_bytes) == (5, 15 * BLOCK_BYTES)
        assert stats.num_failures == 0
        assert 0 < stats.write_seconds < DEADLINE_S
        assert owner.num_completions == 0


def check_a_raising_callback_harms_nobody(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)

        def raise_error() -> None:
            raise RuntimeError("a bug of the caller")

        writer.transport.set_on_completion(raise_error)
        for _ in range(3):
            ticket = peer.post_write(WINDOW, [block(0, 0)])
            wait_until(lambda: ticket.state is TicketState.DONE, "the write", SOON_S)  # noqa: B023


def check_nothing_is_left_behind(make: MakeTransport) -> None:
    """Many connects and disconnects, from either end, leave no descriptor and no thread."""
    fds, threads = _num_fds(), threading.active_count()
    with pair(make) as (writer, owner):
        writer.connect(owner).close()
        wait_until(lambda: not owner.transport.live_writers(), "the writer leaving", SOON_S)
        open_fds, open_threads = _num_fds(), threading.active_count()
        for _ in range(50):
            peers = [writer.connect(owner) for _ in range(4)]
            for peer in peers:
                peer.post_write(WINDOW, [block(0, 0, 8)])
                peer.close()
        wait_until(lambda: _num_fds() == open_fds, "descriptors", SOON_S)
        assert threading.active_count() == open_threads
        third = Side(make)
        left_open = [writer.connect(third) for _ in range(4)]
        third.close()
        for peer in left_open:
            peer.close()
    wait_until(lambda: _num_fds() == fds, "descriptors", SOON_S)
    wait_until(lambda: threading.active_count() == threads, "threads", SOON_S)


def check_another_process(make: MakeTransport, backend: str) -> None:
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        copies = scattered(2000, seed=5)
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(peer, WINDOW, copies), TicketState.DONE)
        assert owner.ask(f"digest 0 {REGION_BYTES}") == hashlib.sha256(expected).hexdigest()
        assert owner.ask("writers") == writer.transport.writer_id
        writer.transport.close()
        wait_until(lambda: owner.ask("writers") == "", "the writer leaving", SOON_S)
    writer.close()


def check_a_killed_owner_fails_its_writers(make: MakeTransport, backend: str) -> None:
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)
        whole = [block(0, 0, NUM_BLOCKS)]
        tickets = [peer.post_write(WINDOW, whole) for _ in range(200)]
        os.kill(owner.process.pid, signal.SIGKILL)
        owner.process.wait()
        wait_until(lambda: not peer.is_alive, "the death", SOON_S)
        writer.wait(*tickets)
        expect(tickets[-1], TicketState.FAILED)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.FAILED)
    writer.close()


def check_a_hung_owner_can_be_left(make: MakeTransport, backend: str) -> None:
    """A stopped owner blocks neither posting nor closing. What cannot be recalled stays PENDING
    until the owner has ended."""
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        os.kill(owner.process.pid, signal.SIGSTOP)
        started_s = time.monotonic()
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(4)]
        peer.cancel(tickets[0])
        peer.close()
        assert time.monotonic() - started_s < SOON_S
        left = tickets if writer.transport.can_recall else tickets[1:]
        assert all(ticket.state is not TicketState.PENDING for ticket in left)
        os.kill(owner.process.pid, signal.SIGKILL)
        writer.wait(*tickets)
    writer.close()


def check_a_slow_peer_holds_up_nobody(make: MakeTransport, backend: str) -> None:
    """With one owner stopped in the middle of large writes to every queue of it, all that goes to
    another arrives."""
    writer = Side(make, fill=3)
    windows = [f"{WINDOW}-{index}" for index in range(16)]
    whole = [block(0, 0, NUM_BLOCKS)]
    with RemoteOwner(backend, REGION_BYTES) as stopped, RemoteOwner(backend, REGION_BYTES) as well:
        for owner in (stopped, well):
            for window in windows:
                owner.ask(f"open {window} 0 {REGION_BYTES}")
        slow = writer.transport.connect(stopped.descriptor, SOON_S)
        fast = writer.transport.connect(well.descriptor, SOON_S)
        os.kill(stopped.process.pid, signal.SIGSTOP)
        held_up = [slow.post_write(window, whole) for window in windows]
        tickets = [fast.post_write(window, whole) for window in windows]
        writer.wait(*tickets)
        for ticket in tickets:
            expect(ticket, TicketState.DONE)
        if writer.transport.can_fence:  # its owner has to take part, so nothing else can be true
            assert any(ticket.state is TicketState.PENDING for ticket in held_up)
        wanted = hashlib.sha256(writer.view).hexdigest()
        assert well.ask(f"digest 0 {REGION_BYTES}") == wanted
    writer.close()


def check_a_large_write_holds_up_no_other_queue(make: MakeTransport, backend: str) -> None:
    """A small write passes those of the same peer that wait before it in another queue."""
    writer = Side(make, fill=3)
    names = [f"{WINDOW}-{index}" for index in range(64)]
    with RemoteOwner(backend, REGION_BYTES) as owner:
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        for name in names:
            owner.ask(f"open {name} 0 {REGION_BYTES}")
        large = [peer.post_write(names[0], [block(0, 0, NUM_BLOCKS)]) for _ in range(64)]
        small = [peer.post_write(name, [block(0, 0)]) for name in names[1:]]
        give_up_s = time.monotonic() + DEADLINE_S
        while not any(ticket.state is TicketState.DONE for ticket in small):
            assert time.monotonic() < give_up_s
        assert large[-1].state is TicketState.PENDING
        writer.wait(*small, *large)
    writer.close()


def check_a_stranger_is_refused(make: MakeTransport) -> None:
    """Who knows where a region is, but not its token, gets no connection, and the owner goes on."""
    with pair(make) as (writer, owner):
        place, slash, token = owner.transport.descriptor.address.partition("/")
        if not slash:
            return  # this backend has no token of its own
        before = owner.transport.stats().num_strangers
        for wrong in (token[:-1] + ("0" if token[-1] != "0" else "1"), "00" * (len(token) // 2)):
            guess = msgspec.structs.replace(owner.transport.descriptor, address=f"{place}/{wrong}")
            stage, text = "connected", ""
            try:
                writer.transport.connect(guess, SOON_S)
            except TransferError as error:
                stage, text = error.stage, str(error)
            assert stage == "connect", f"the stage of the failure is {stage}"
            assert wrong not in text, "an error shows the token"
        wait_until(lambda: owner.transport.stats().num_strangers == before + 2, "both are counted")
        assert owner.transport.live_writers() == frozenset()
        assert owner.view == bytes(REGION_BYTES)
        expect(writer.write(writer.connect(owner), WINDOW, [block(3, 9)]), TicketState.DONE)


def _num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


TRANSPORT_CHECKS: tuple[Callable[[MakeTransport], None], ...] = (
    check_exact_bytes_of_odd_ranges,
    check_empty_write_is_done,
    check_one_block,
    check_thousands_of_scattered_blocks,
    check_the_whole_region_at_once,
    check_later_writes_win,
    check_completion_in_posting_order,
    check_concurrent_threads_and_peers,
    check_both_directions,
    check_outside_of_the_regions_is_refused,
    check_bad_windows_are_refused,
    check_only_open_windows_are_written,
    check_a_closed_window_is_a_fence,
    check_cancel,
    check_peer_close_settles_everything,
    check_transport_close_settles_everything,
    check_the_owner_closing_fails_the_writer,
    check_live_writers,
    check_a_stranger_is_refused,
    check_completion_callback_and_counters,
    check_a_raising_callback_harms_nobody,
    check_nothing_is_left_behind,
)

REMOTE_CHECKS: tuple[Callable[[MakeTransport, str], None], ...] = (
    check_another_process,
    check_a_killed_owner_fails_its_writers,
    check_a_hung_owner_can_be_left,
    check_a_slow_peer_holds_up_nobody,
    check_a_large_write_holds_up_no_other_queue,
)
