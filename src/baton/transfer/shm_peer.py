"""Writing into a peer's shared memory: one copy from block to block, on threads of our own.

Invariant: a peer's segment is unmapped before its connection is closed, so that the owner who sees
the connection end knows that nothing can be written any more.
Elsewhere: getting the segment (shm.py).
"""

import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from baton.transfer.protocol import Copy, Ticket, TicketState, find_bad_copy
from baton.transfer.ticket import WriteAccount, WriteTicket

PIECE_BYTES = 1 << 20
"""A cancel waits for one piece at most: about 0.1 ms of copying."""

_PREFAULT_PIECE_BYTES = 256 << 10
"""A write waits for one piece at most: about 0.15 ms."""

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
    """Threads that take turns at the peers that have work; one works for a peer at a time."""

    def __init__(self, num_threads: int):
        self._condition = threading.Condition()
        self._ready: deque[ShmPeer] = deque()
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"baton-shm-copy-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def schedule(self, peer: "ShmPeer") -> None:
        with self._condition:
            self._ready.append(peer)
            self._condition.notify()

    def stop(self) -> None:
        """End the threads after their current piece of work; peers must be closed already."""
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
                peer = self._ready.popleft()
            if peer.work_once():
                self.schedule(peer)


class ShmPeer:
    """The writer's side of one peer's segment. `let_go` closes the connection, after unmapping."""

    def __init__(
        self,
        name: str,
        region: MappedRegion,
        source_address: int,
        source_bytes: int,
        threads: CopyThreads,
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
        self._queue: deque[WriteTicket] = deque()
        self._is_scheduled = False
        self._worker: int | None = None
        self._is_closed = False
        self._has_let_go = False
        self._loss = ""

    @property
    def is_alive(self) -> bool:
        return not self._loss and not self._is_closed

    def start(self) -> None:
        if self._region.needs_prefault:
            with self._condition:
                self._schedule()

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = self._account.new_ticket(window, copies)
        error = find_bad_copy(copies, self._source_bytes, self._region.num_bytes)
        with self._condition:
            error = error or self._loss or ("this side closed the peer" if self._is_closed else "")
            if not error:
                self._queue.append(ticket)
                self._schedule()
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
            queued, self._queue = self._queue, deque()
        for ticket in queued:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {loss}")

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            queued, self._queue = self._queue, deque()
            while self._worker not in (None, threading.get_ident()):
                self._condition.wait()
            is_idle = self._worker is None
        for ticket in queued:
            ticket.settle(TicketState.CANCELLED, "this side closed the peer")
        if is_idle:
            self._release()

    def work_once(self) -> bool:
        """One ticket, or one piece of prefaulting (on a copy thread); True if there is more."""
        with self._condition:
            if self._is_closed:
                return False
            ticket = self._queue.popleft() if self._queue else None
            self._worker = threading.get_ident()
        if ticket is not None:
            self._write(ticket)
        elif self._has_work():
            self._region.prefault_piece()
        with self._condition:
            self._worker = None
            self._condition.notify_all()
            self._is_scheduled = not self._is_closed and self._has_work()
            has_more, was_closed = self._is_scheduled, self._is_closed
        if was_closed:
            self._release()
        return has_more

    def _has_work(self) -> bool:
        return bool(self._queue) or (self._region.needs_prefault and not self._loss)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._threads.schedule(self)

    def _write(self, ticket: WriteTicket) -> None:
        ticket.start()
        for copy in split_pieces(ticket.copies, PIECE_BYTES):
            if self._must_stop(ticket):
                break
            ctypes.memmove(
                self._region.address + copy.dst_offset,
                self._source_address + copy.src_offset,
                copy.num_bytes,
            )
            ticket.num_bytes_moved += copy.num_bytes
        # Looked at once more after the last piece: what went to an owner that has died meanwhile
        # has not arrived.
        if self._loss:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {self._loss}")
        elif self._must_stop(ticket):
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")
        else:
            ticket.settle(TicketState.DONE)

    def _must_stop(self, ticket: WriteTicket) -> bool:
        return bool(self._loss) or ticket.is_cancel_requested or self._is_closed

    def _release(self) -> None:
        with self._condition:
            if self._has_let_go:
                return
            self._has_let_go = True
        self._region.unmap()
        self._let_go()


def split_pieces(copies: Sequence[Copy], piece_bytes: int) -> Iterator[Copy]:
    """The same copies, in order, none larger than `piece_bytes`."""
    for copy in copies:
        if copy.num_bytes <= piece_bytes:
            yield copy
            continue
        for start in range(0, copy.num_bytes, piece_bytes):
            length = min(piece_bytes, copy.num_bytes - start)
            yield Copy(copy.src_offset + start, copy.dst_offset + start, length)
