"""The decode pool of a test's world, and the connections of prefill engines to it.

They stand in for a transport and for the threads that connect. Nothing happens by itself: whether
an attempt to connect ends, and how a write does, the test says.
Elsewhere: the engines and their messages (handover_world.py).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from baton.messages.regions import RegionDescriptor
from baton.transfer.guests import ANYONE
from baton.transfer.protocol import Copy, Ticket, TicketState, TransportStats


@dataclass
class WorldTicket:
    window: str
    copies: list[Copy]
    state: TicketState = TicketState.PENDING
    error: str = ""
    progress: int = 0
    is_cancel_asked: bool = False

    def end(self, state: TicketState, error: str = "") -> None:
        assert self.state is TicketState.PENDING
        self.state, self.error = state, error


@dataclass
class WorldWriter:
    """A prefill engine's connection to the pool of one life of decode; writes land when the test
    says so, those of one window in their order."""

    transport: "WorldTransport"
    writer_id: str
    guest: str
    source: memoryview
    is_alive: bool = True
    tickets: deque[WorldTicket] = field(default_factory=deque)

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = WorldTicket(window, list(copies))
        if self.is_alive:
            self.tickets.append(ticket)
        else:
            ticket.end(TicketState.FAILED, "the connection is closed")
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes effect when the test lets the writer get to it, as with a real one."""
        assert isinstance(ticket, WorldTicket)
        ticket.is_cancel_asked = True

    def close(self) -> None:
        self.is_alive = False
        if not self.transport.can_recall and self.tickets:
            return  # each lands, or its writer dies, when the test says so
        self._end_all(TicketState.CANCELLED, "")

    def die(self, why: str) -> None:
        """One of the two processes is gone, and with it whatever had not landed."""
        self.is_alive = False
        self._end_all(TicketState.FAILED, why)

    def take(self, ticket: WorldTicket) -> None:
        """This write is over."""
        self.tickets.remove(ticket)
        if not self.is_alive and not self.tickets:
            self.transport.writers.discard(id(self))

    def _end_all(self, state: TicketState, error: str) -> None:
        for ticket in self.tickets:
            ticket.end(state, error)
        self.tickets.clear()
        self.transport.writers.discard(id(self))


class WorldTransport:
    """Decode's region, as the decode role sees it, in one life of the engine."""

    name = "world"
    same_host_only = False
    writer_id = "decode"

    def __init__(self, place: str, can_fence: bool, can_recall: bool):
        self.can_fence = can_fence
        self.can_recall = can_recall
        self.windows: set[str] = set()
        self.writers: set[int] = set()
        self.all_writers: list[WorldWriter] = []
        self.is_gone = False
        self._guests: set[str] = {ANYONE}
        self._place = place

    @property
    def descriptor(self) -> RegionDescriptor:
        return RegionDescriptor(backend="world", host_id="", address=self._place, num_bytes=0)

    def admit(self, guest: str) -> RegionDescriptor:
        assert guest not in self._guests, f"{guest} is admitted twice"
        self._guests.add(guest)
        return msgspec.structs.replace(self.descriptor, address=f"{self._place}/{guest}")

    def expel(self, guest: str) -> None:
        self._guests.discard(guest)

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        live = [writer for writer in self.all_writers if id(writer) in self.writers]
        return frozenset(w.writer_id for w in live if guest in (None, w.guest))

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        assert window not in self.windows, f"window {window} is opened twice"
        self.windows.add(window)

    def close_window(self, window: str) -> None:
        self.windows.discard(window)

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> WorldWriter:
        raise AssertionError("decode connects to nobody")

    def take_in(self, writer_id: str, guest: str, source: memoryview) -> WorldWriter:
        """A prefill engine maps the region. Raises OSError if it is not there any more, or for no
        guest."""
        if self.is_gone:
            raise ConnectionRefusedError("the owner is gone")
        if guest not in self._guests:
            raise ConnectionRefusedError(f"{guest!r} is no guest")
        writer = WorldWriter(self, writer_id, guest, source)
        self.writers.add(id(writer))
        self.all_writers.append(writer)
        return writer

    def die(self) -> None:
        self.is_gone = True
        for writer in self.all_writers:
            writer.die("the owner is gone")

    def set_on_completion(self, callback: Callable[[], None]) -> None:
        raise AssertionError("the world calls tick itself")

    def stats(self) -> TransportStats:
        return TransportStats(0, 0, 0, 0.0)

    def close(self) -> None:
        pass


class WorldPeers:
    """Stands in for `DecodePeers`. Connecting is instant unless the test makes it slow."""

    def __init__(
        self, regions: dict[str, WorldTransport], writer_id: str, source: memoryview
    ) -> None:
        self.is_slow = False
        self.open: dict[str, WorldWriter] = {}
        self.pending: dict[str, RegionDescriptor] = {}
        self._failures: list[tuple[str, str]] = []
        self._regions = regions
        self._writer_id = writer_id
        self._source = source

    def connect(self, key: str, regions: Sequence[RegionDescriptor]) -> None:
        if key in self.pending or (key in self.open and self.open[key].is_alive):
            return
        self.drop(key)
        self.pending[key] = regions[0]
        if not self.is_slow:
            self.finish(key)

    def finish(self, key: str) -> None:
        """The attempt to connect ends, on a thread of its own."""
        place, _, guest = self.pending.pop(key).address.partition("/")
        try:
            writer = self._regions[place].take_in(self._writer_id, guest, self._source)
            self.open[key] = writer
        except OSError as error:
            self._failures.append((key, str(error)))

    def get(self, key: str) -> WorldWriter | None:
        return self.open.get(key)

    def take_failures(self) -> list[tuple[str, str]]:
        failures, self._failures = self._failures, []
        return failures

    def drop(self, key: str) -> None:
        self.pending.pop(key, None)
        writer = self.open.pop(key, None)
        if writer is not None:
            writer.close()
