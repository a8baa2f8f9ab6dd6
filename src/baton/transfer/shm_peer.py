"""Writing into a peer's shared memory: one copy from block to block, on threads of our own.

A window's writes all wait in the queue that its name hashes to, so they keep their order; the
queues of all peers take turns at the threads, TURN_BYTES at a time, so that a huge write holds
nobody up for longer than a turn.

Invariant: a peer's segment is unmapped before its connection is closed, so that the owner who sees
the connection end knows that nothing can be written any more.
Elsewhere: getting the segment (shm.py).
"""

import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from baton.transfer.config import queue_of
from baton.transfer.protocol import Copy, Ticket, TicketState, find_bad_copy
from baton.transfer.ticket import WriteAccount, WriteTicket

PIECE_BYTES = 1 << 20
"""A cancel waits for one piece at most: about 0.1 ms of copying."""

TURN_BYTES = 8 << 20
"""About 1 ms of copying."""

_PREFAULT_PIECE_BYTES = 256 << 10
"""A write waits for one piece at most: about 0.15 ms."""

_CLOSED_HERE = "this side closed the peer"
_CANCELLED = "cancelled by this side"
_MADV_POPULATE_WRITE = 23  # Linux 5.14; not yet named in the mmap module
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class PinnedBuffer:
    """The address of a writable buffer, which stays mapped until `release`."""

    def __init__(self, buffer: mmap.mmap):
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(buffer)
        self.address = ctypes.addressof(self._anchor)

    def release(self) -> None:
        self._anchor = None


class MappedRegion:
    """A peer's segment, mapped for writing."""

    def __init__(self, fd: int, num_bytes: int, prefault_bytes: int):
        self.num_bytes = num_bytes
        self._map = mmap.mmap(fd, num_bytes)
        self._pin = PinnedBuffer(self._map)
        self._prefault_end = min(prefault_bytes, num_bytes)
        self._num_prefaulted = 0

    @property
    def address(self) -> int:
        return self._pin.address

    @property
    def needs_prefault(self) -> bool:
        return self._num_prefaulted < self._prefault_end

    def prefault_piece(self) -> None:
        """Map the next pages, so that the first write to each does not fault."""
        start = self._num_prefaulted
        length = min(_PREFAULT_PIECE_BYTES, self._prefault_end - start)
        if _libc.madvise(self.address + start, length, _MADV_POPULATE_WRITE) == 0:
            self._num_prefaulted += length
        else:
            # An older kernel or no memory left: the write itself will fault, as it always may.
            self._prefault_end = start

    def unmap(self) -> None:
        self._pin.release()
        self._map.close()


class CopyThreads:
    """Threads that take turns at the queues that have work; one works at a queue at a time."""

    def __init__(self, num_threads: int):
        self._condition = threading.Condition()
        self._ready: deque[CopyQueue] = deque()
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"baton-shm-copy-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def schedule(self, queue: "CopyQueue") -> None:
        with self._condition:
            self._ready.append(queue)
            self._condition.notify()

    def stop(self) -> None:
        """End the threads after their current turn; peers must be closed already."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._ready and not self._is_stopping:
                    self._condition.wait()
                if not self._ready:
                    return
                queue = self._ready.popleft()
            if queue.peer.take_turn(queue):
                self.schedule(queue)


@dataclass(eq=False)
class CopyQueue:
    """Writes of one peer that move one after the other. `current` has begun, and `pieces` are what
    is left of it. `is_attended`: a thread is at it now. All but `pieces` under the peer's lock.
    """

    peer: "ShmPeer"
    prefaults: bool
    waiting: deque[WriteTicket] = field(default_factory=deque)
    current: WriteTicket | None = None
    pieces: Iterator[Copy] = field(default_factory=lambda: iter(()))
    is_scheduled: bool = False
    is_attended: bool = False

    def begin_next(self) -> WriteTicket | None:
        if self.current is None and self.waiting:
            self.current = self.waiting.popleft()
            self.pieces = split_pieces(self.current.copies, PIECE_BYTES)
            self.current.start()
        return self.current

    def take_unattended(self) -> list[WriteTicket]:
        """Whatever no thread is at right now; it is no longer in the queue."""
        taken, self.waiting = list(self.waiting), deque()
        if self.current is not None and not self.is_attended:
            taken.insert(0, self.current)
            self.current = None
        return taken


class ShmPeer:
    """The writer's side of one peer's segment. `let_go` closes the connection, after unmapping."""

    def __init__(
        self,
        name: str,
        region: MappedRegion,
        source_address: int,
        source_bytes: int,
        threads: CopyThreads,
        num_queues: int,
        account: WriteAccount,
        let_go: Callable[[], None],
    ):
        self.name = name
        self._region = region
        self._source_address = source_address
        self._source_bytes = source_bytes
        self._threads = threads
        self._account = account
        self._let_go = let_go
        self._condition = threading.Condition()
        self._queues = [CopyQueue(self, prefaults=index == 0) for index in range(num_queues)]
        self._busy: list[int] = []  # threads that copy or settle, each as often as it does so
        self._is_closed = False
        self._has_let_go = False
        self._loss = ""

    @property
    def is_alive(self) -> bool:
        return not self._loss and not self._is_closed

    def start(self) -> None:
        with self._condition:
            self._schedule(self._queues[0])

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = self._account.new_ticket(window, copies)
        error = find_bad_copy(copies, self._source_bytes, self._region.num_bytes)
        queue = self._queues[queue_of(window, len(self._queues))]
        with self._condition:
            error = error or self._loss or (_CLOSED_HERE if self._is_closed else "")
            if not error:
                queue.waiting.append(ticket)
                self._schedule(queue)
        if error:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {error}")
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, WriteTicket), "a ticket of another backend"
        ticket.is_cancel_requested = True

    def fail(self, loss: str) -> None:
        """The owner is gone: fail what is queued; a copy that runs stops at its next piece."""
        with self._condition:
            self._loss = self._loss or loss
        self._settle_unattended()

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            # In a completion callback we are busy: two of those must not wait for each other.
            if threading.get_ident() not in self._busy:
                while self._busy:
                    self._condition.wait()
        self._settle_unattended()

    def take_turn(self, queue: CopyQueue) -> bool:
        """TURN_BYTES of one ticket, or a piece of prefaulting (on a copy thread); True if there is
        more."""
        with self._condition:
            if self._is_closed:
                return False
            ticket = queue.begin_next()
            queue.is_attended = True
            self._busy.append(threading.get_ident())
        if ticket is not None:
            self._copy(queue, ticket)
        elif self._has_work(queue):
            self._region.prefault_piece()
        with self._condition:
            queue.is_attended = False
        if not self.is_alive:
            self._settle_unattended()
        with self._condition:
            queue.is_scheduled = has_more = not self._is_closed and self._has_work(queue)
        self._leave()
        return has_more

    def _settle_unattended(self) -> None:
        """Of a peer that is lost or closed: everything that no thread copies right now."""
        with self._condition:
            self._busy.append(threading.get_ident())
            dropped = [ticket for queue in self._queues for ticket in queue.take_unattended()]
        for ticket in dropped:
            self._settle(ticket)
        self._leave()

    def _leave(self) -> None:
        """This thread does no more here; the last one to leave a closed peer lets go of it."""
        with self._condition:
            self._busy.remove(threading.get_ident())
            must_let_go = self._is_closed and not self._busy and not self._has_let_go
            self._has_let_go = self._has_let_go or must_let_go
            self._condition.notify_all()
        if must_let_go:
            self._region.unmap()
            self._let_go()

    def _has_work(self, queue: CopyQueue) -> bool:
        if queue.waiting or queue.current is not None:
            return True
        return queue.prefaults and self._region.needs_prefault and not self._loss

    def _schedule(self, queue: CopyQueue) -> None:
        if not queue.is_scheduled and self._has_work(queue):
            queue.is_scheduled = True
            self._threads.schedule(queue)

    def _copy(self, queue: CopyQueue, ticket: WriteTicket) -> None:
        left = TURN_BYTES
        for copy in queue.pieces:
            if self._must_stop(ticket):
                break
            ctypes.memmove(
                self._region.address + copy.dst_offset,
                self._source_address + copy.src_offset,
                copy.num_bytes,
            )
            ticket.num_bytes_moved += copy.num_bytes
            left -= copy.num_bytes
            if left <= 0:
                return
        with self._condition:
            queue.current = None
        self._settle(ticket)

    def _settle(self, ticket: WriteTicket) -> None:
        """As it ended. Looked at once more after the last piece: what went to an owner that has
        died meanwhile has not arrived."""
        if self._loss:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {self._loss}")
        elif self._must_stop(ticket):
            ticket.settle(TicketState.CANCELLED, _CLOSED_HERE if self._is_closed else _CANCELLED)
        else:
            ticket.settle(TicketState.DONE)

    def _must_stop(self, ticket: WriteTicket) -> bool:
        return bool(self._loss) or ticket.is_cancel_requested or self._is_closed


def split_pieces(copies: Sequence[Copy], piece_bytes: int) -> Iterator[Copy]:
    """The same copies, in order, none larger than `piece_bytes`."""
    for copy in copies:
        if copy.num_bytes <= piece_bytes:
            yield copy
            continue
        for start in range(0, copy.num_bytes, piece_bytes):
            length = min(piece_bytes, copy.num_bytes - start)
            yield Copy(copy.src_offset + start, copy.dst_offset + start, length)
