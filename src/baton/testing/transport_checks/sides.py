"""What the checks of every transport stand on: two sides with a region each, and their bytes.

Elsewhere: the checks (bytes.py, windows.py, processes.py, hosts.py).
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
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
