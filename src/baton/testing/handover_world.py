"""A prefill and a decode engine in one process, joined by a network that a test controls.

Everything is real but time, the sockets and the copying: both roles, both engines, the block pools
and the bytes in them. A test decides when each side runs, a message arrives, a posted write
lands, and what breaks. Every landing is checked: it must hit blocks of its own transfer.
Elsewhere: the rules that drive it (tests/unit/disagg), real sockets (tests/integration).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest, Handover
from baton.core.sampling import SamplingParams
from baton.disagg.config import DisaggConfig
from baton.disagg.decode import DecodeRole
from baton.disagg.prefill import PrefillRole
from baton.disagg.role import EngineRole
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.engine.runner import ModelRunner
from baton.ipc.peer_link import LostReason, PeerConnected, PeerEvent, PeerLost, PeerMessage
from baton.kvcache.block_pool import BlockPool
from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.storage import SharedSegment
from baton.messages.engine import TokenOutput
from baton.messages.handover import EngineHello, HandoverMessage
from baton.messages.regions import RegionDescriptor
from baton.testing.hash_model import HashModel
from baton.transfer.protocol import Copy, Ticket, TicketState, TransportStats

PREFILL_ADDRESS = "10.0.0.1:5000"
MODEL = HashModel()
CONFIG = DisaggConfig(bootstrap_timeout_s=30.0, waiting_timeout_s=40.0)


@dataclass
class WorldTicket:
    window: str
    copies: list[Copy]
    state: TicketState = TicketState.PENDING
    error: str = ""
    progress: int = 0


@dataclass
class WorldWriter:
    """A prefill engine's connection to decode's pool; writes land when the test says so."""

    world: "HandoverWorld"
    writer_id: str
    is_alive: bool = True
    tickets: deque[WorldTicket] = field(default_factory=deque)

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = WorldTicket(window, list(copies))
        self.tickets.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes effect when the test lets the writer get to it, as with a real one."""

    def close(self) -> None:
        self.is_alive = False
        if not self.world.transport.can_recall:
            return  # each lands, or its writer dies, when the test says so
        for ticket in self.tickets:
            ticket.state = TicketState.CANCELLED
        self.tickets.clear()
        self.world.writers.discard(id(self))


class WorldTransport:
    """Decode's region, as the decode role sees it."""

    name = "world"
    same_host_only = False
    writer_id = "decode"

    def __init__(self, world: "HandoverWorld", can_fence: bool, can_recall: bool):
        self.can_fence = can_fence
        self.can_recall = can_recall
        self.windows: set[str] = set()
        self._world = world

    @property
    def descriptor(self) -> RegionDescriptor:
        return RegionDescriptor(backend="world", host_id="", address="", num_bytes=0)

    def live_writers(self) -> frozenset[str]:
        return frozenset(self._world.live_writer_ids())

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        assert window not in self.windows, f"window {window} is opened twice"
        self.windows.add(window)

    def close_window(self, window: str) -> None:
        self.windows.discard(window)

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> WorldWriter:
        raise AssertionError("decode connects to nobody")

    def set_on_completion(self, callback: Callable[[], None]) -> None:
        raise AssertionError("the world calls tick itself")

    def stats(self) -> TransportStats:
        return TransportStats(0, 0, 0, 0.0)

    def close(self) -> None:
        pass


class WorldPeers:
    """Stands in for `DecodePeers`: connecting is instant and cannot fail."""

    def __init__(self, world: "HandoverWorld", writer_id: str):
        self._world = world
        self._writer_id = writer_id
        self.open: dict[str, WorldWriter] = {}

    def connect(self, key: str, regions: Sequence[RegionDescriptor]) -> None:
        if key not in self.open:
            writer = WorldWriter(self._world, self._writer_id)
            self.open[key] = writer
            self._world.writers.add(id(writer))
            self._world.all_writers.append(writer)

    def get(self, key: str) -> WorldWriter | None:
        return self.open.get(key)

    def take_failures(self) -> list[tuple[str, str]]:
        return []

    def drop(self, key: str) -> None:
        writer = self.open.pop(key, None)
        if writer is not None:
            writer.close()


class Side:
    """One engine with its role; `turn` is one round of its loop."""

    def __init__(self, num_blocks: int, block_size: int, chunk: int, clock: FakeClock):
        self.layout = MODEL.kv_layout(block_size)
        self.segment = SharedSegment(num_blocks * self.layout.block_bytes)
        self.checksums = BlockChecksums(self.segment.view(), self.layout.block_bytes)
        pool_view = MODEL.kv_view(self.segment.view(), self.layout, num_blocks)
        self.core = EngineCore(
            EngineConfig(page_size=block_size, chunked_prefill_size=chunk),
            ModelRunner(MODEL, pool_view, block_size),
            BlockPool(num_blocks),
            context_length=200,
            vocab_size=MODEL.vocab_size,
            clock=clock,
        )
        self.clock = clock
        self.inbox: deque[PeerEvent] = deque()
        self.role: EngineRole
        self.outputs: list[TokenOutput] = []

    def receive(self, count: int) -> None:
        for _ in range(min(count, len(self.inbox))):
            self.role.on_event(self.inbox.popleft())

    def turn(self) -> None:
        self.role.tick(self.clock.now_s())
        if self.core.has_work:
            self.core.step()
            self.role.tick(self.clock.now_s())
        self.outputs += self.core.take_outputs()
        self.core.pool.check_invariants()


class HandoverWorld:
    """See the module docstring. Pools are small, so that there is never quite enough room."""

    def __init__(
        self,
        *,
        can_fence: bool,
        can_recall: bool = True,
        prefill_blocks: int = 24,
        decode_blocks: int = 24,
        block_size: int = 4,
        chunk: int = 10,
        verify_kv: bool = False,
    ):
        self.clock = FakeClock()
        self.block_size = block_size
        self._prefill_blocks, self._chunk = prefill_blocks, chunk
        self.writers: set[int] = set()
        self.all_writers: list[WorldWriter] = []
        self.is_hung = False
        self._num_prefills = 0
        self._num_links = 0
        self._link: str | None = None  # prefill's key of the open connection
        self._is_loss_unread = False
        self.transport = WorldTransport(self, can_fence, can_recall)
        self.decode = Side(decode_blocks, block_size, chunk, self.clock)
        self.decode.role = DecodeRole(
            self.decode.core,
            self.decode.layout,
            self.decode.checksums if verify_kv else None,
            [self.transport],
            self._send_to_prefill,
            self._acknowledge_loss,
            "decode-engine",
            CONFIG,
            self.clock,
        )
        self.prefill = self._new_prefill()
        self.decode_requests: dict[str, EngineRequest] = {}
        self.prefill_requests: set[str] = set()
        self._num_requests = 0

    def submit(self, prompt: list[int], num_new: int, *, prefill: bool, decode: bool) -> None:
        """A request of which one leg may get lost on the way."""
        room = self._num_requests
        self._num_requests += 1
        if decode:
            request = self._request(f"d{room}", prompt, num_new, room, PREFILL_ADDRESS)
            self.decode_requests[request.request_id] = request
            self.decode.role.submit(request)
        if prefill:
            request = self._request(f"p{room}", prompt, 1, room, "")
            self.prefill_requests.add(request.request_id)
            self.prefill.role.submit(request)

    def land_write(self, writer: WorldWriter) -> None:
        """The oldest write of this writer arrives."""
        ticket = writer.tickets.popleft()
        size = self.decode.layout.block_bytes
        is_open = ticket.window in self.transport.windows
        if self.transport.can_fence and not is_open:
            ticket.state, ticket.error = TicketState.FAILED, "the window is closed"
            return
        allowed = self._blocks_of(ticket.window)
        for copy in ticket.copies:
            for block in range(copy.dst_offset // size, (copy.dst_offset + copy.num_bytes) // size):
                assert block in allowed, f"{ticket.window} writes block {block}, not its own"
            source = self.prefill.segment.view()[copy.src_offset :][: copy.num_bytes]
            self.decode.segment.view()[copy.dst_offset :][: copy.num_bytes] = source
        ticket.state = TicketState.DONE

    def fail_write(self, writer: WorldWriter) -> None:
        ticket = writer.tickets.popleft()
        ticket.state, ticket.error = TicketState.FAILED, "injected"

    def cut_link(self, reason: LostReason) -> None:
        """The control connection breaks; what was under way on it is lost."""
        if self._link is None:
            return
        key, self._link = self._link, None
        self._is_loss_unread = True
        _drop_messages(self.decode.inbox)
        _drop_messages(self.prefill.inbox)
        self.decode.inbox.append(PeerLost(key=PREFILL_ADDRESS, reason=reason))
        self.prefill.inbox.append(PeerLost(key=key, reason=reason))

    def kill_prefill(self) -> None:
        """The prefill process dies, with every write it had not finished, and a new one starts."""
        self.cut_link(LostReason.CLOSED)
        for writer in list(self.all_writers):
            writer.close()
        self.all_writers.clear()
        self.prefill_requests.clear()
        self.is_hung = False
        self.prefill.segment.close()
        self.prefill = self._new_prefill()

    def settle(self) -> None:
        """Let everything run to its end: no more faults, and as much time as any deadline takes."""
        self.is_hung = False
        for _ in range(400):
            for side in (self.decode, self.prefill):
                side.receive(len(side.inbox))
                side.turn()
            for writer in self.all_writers:
                while writer.tickets:
                    self.land_write(writer)
            self.clock.advance(0.5)

    def close(self) -> None:
        """Let go of the pools' memory."""
        self.prefill.segment.close()
        self.decode.segment.close()

    def live_writer_ids(self) -> set[str]:
        return {writer.writer_id for writer in self.all_writers if id(writer) in self.writers}

    def _blocks_of(self, window: str) -> set[int]:
        """Decode blocks that belong to this transfer: its request's, or in its quarantine."""
        role, pool = self.decode.role, self.decode.core.pool
        assert isinstance(role, DecodeRole)
        holder = role.transfers().get(window, f"quarantine:{window}")
        return set(pool.held_by(holder))

    def _request(
        self, name: str, prompt: list[int], num_new: int, room: int, address: str
    ) -> EngineRequest:
        return EngineRequest(
            request_id=name,
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_new_tokens=num_new, temperature=0.0),
            handover=Handover(room=room, peer_address=address),
        )

    def _new_prefill(self) -> Side:
        side = Side(self._prefill_blocks, self.block_size, self._chunk, self.clock)
        name = f"prefill-engine-{self._num_prefills}"
        self._num_prefills += 1
        self._writer_id = name
        peers = WorldPeers(self, name)
        side.role = PrefillRole(
            side.core,
            side.layout,
            side.checksums,
            peers,
            lambda key, message: self._send_to_decode(side, key, message),
            CONFIG,
            self.clock,
        )
        return side

    def _send_to_prefill(self, address: str, message: HandoverMessage) -> None:
        if address != PREFILL_ADDRESS or self._is_loss_unread:
            return  # gone, or not there at all
        if self._link is None:
            self._link = f"link-{self._num_links}"
            self._num_links += 1
            hello = EngineHello(engine_id="decode-engine", writer_ids=[])
            self.prefill.inbox.append(PeerConnected(key=self._link, hello=hello))
            hello = EngineHello(engine_id=self._writer_id, writer_ids=[self._writer_id])
            self.decode.inbox.append(PeerConnected(key=PREFILL_ADDRESS, hello=hello))
        self.prefill.inbox.append(PeerMessage(key=self._link, message=message))

    def _acknowledge_loss(self, address: str) -> None:
        self._is_loss_unread &= address != PREFILL_ADDRESS

    def _send_to_decode(self, side: Side, key: str, message: HandoverMessage) -> None:
        if side is self.prefill and key == self._link:
            self.decode.inbox.append(PeerMessage(key=PREFILL_ADDRESS, message=message))


def _drop_messages(inbox: deque[PeerEvent]) -> None:
    kept = [event for event in inbox if not isinstance(event, PeerMessage)]
    inbox.clear()
    inbox.extend(kept)
