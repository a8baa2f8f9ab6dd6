"""A prefill and a decode engine in one process, joined by a network that a test controls.

Everything is real but time, the sockets and the copying: both roles, both engines, the block pools
and the bytes in them. A test decides when each side runs, a message arrives, a posted write
lands, and what breaks. Every landing is checked: it must hit blocks of its own transfer.

What the network does is what PeerLink lets it do: messages of one connection come in order, each
once or again, and a lost connection takes an end of them along; events of different connections
overtake each other.
Elsewhere: decode's pool and the writes (handover_pool.py), the rules that drive it
(tests/unit/disagg), real sockets (tests/integration).
"""

from collections import deque
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
from baton.testing.handover_pool import WorldPeers, WorldTicket, WorldTransport, WorldWriter
from baton.testing.hash_model import HashModel
from baton.transfer.protocol import TicketState

PREFILL_ADDRESS = "10.0.0.1:5000"
MODEL = HashModel()
CONFIG = DisaggConfig(bootstrap_timeout_s=30.0, waiting_timeout_s=40.0)


class Side:
    """One engine with its role; `turn` is one round of its loop."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        chunk: int,
        clock: FakeClock,
        prompt_slack_ms: float = 0.0,
    ):
        self.layout = MODEL.kv_layout(block_size)
        self.segment = SharedSegment(num_blocks * self.layout.block_bytes)
        self.checksums = BlockChecksums(self.segment.view(), self.layout.block_bytes)
        pool_view = MODEL.kv_view(self.segment.view(), self.layout, num_blocks)
        self.core = EngineCore(
            EngineConfig(
                page_size=block_size,
                chunked_prefill_size=chunk,
                prompt_slack_ms=prompt_slack_ms,
            ),
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


@dataclass
class Life:
    """What a decode engine was asked for and said, from its start to its death."""

    requests: dict[str, EngineRequest] = field(default_factory=dict)
    outputs: list[TokenOutput] = field(default_factory=list)


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
        self._can_fence, self._can_recall, self._verify_kv = can_fence, can_recall, verify_kv
        self._decode_blocks, self._prefill_blocks = decode_blocks, prefill_blocks
        self._chunk = chunk
        self.is_hung = False
        self.is_decode_hung = False
        self.is_cut_off = False
        """Whoever tries to connect learns that nobody is there."""
        self._num_prefills = 0
        self._num_decodes = 0
        self._num_links = 0
        self._num_requests = 0
        self._link: str | None = None  # prefill's key of the open connection
        self._is_loss_unread = False
        self._said: list[tuple[deque[PeerEvent], PeerMessage]] = []  # on the open connection
        self._regions: dict[str, WorldTransport] = {}  # by their place
        self.past_lives: list[Life] = []
        self.decode_requests: dict[str, EngineRequest] = {}
        self.prefill_requests: set[str] = set()
        self.late_legs: list[EngineRequest] = []
        self._replaced: list[Side] = []
        self.decode = self._new_decode()
        self.prefill = self._new_prefill()

    @property
    def all_writers(self) -> list[WorldWriter]:
        """Of decode's pool as it is now."""
        return self.transport.all_writers

    @property
    def is_linked(self) -> bool:
        return self._link is not None

    @property
    def num_said(self) -> int:
        """Messages that were said on the open connection."""
        return len(self._said)

    def submit(
        self, prompt: list[int], num_new: int, *, prefill: bool, decode: bool, is_late: bool = False
    ) -> None:
        """A request of which one leg may get lost on the way, or come late: `bring_late_leg`."""
        room = self._num_requests
        self._num_requests += 1
        if decode:
            self._submit_to_decode(
                self._request(f"d{room}", prompt, num_new, room, PREFILL_ADDRESS)
            )
        elif is_late:
            self.late_legs.append(self._request(f"d{room}", prompt, num_new, room, PREFILL_ADDRESS))
        if prefill:
            self._submit_to_prefill(self._request(f"p{room}", prompt, 1, room, ""))
        elif is_late:
            self.late_legs.append(self._request(f"p{room}", prompt, 1, room, ""))

    def bring_late_leg(self, index: int) -> None:
        request = self.late_legs.pop(index)
        if request.request_id.startswith("d"):
            self._submit_to_decode(request)
        else:
            self._submit_to_prefill(request)

    def land_write(
        self, writer: WorldWriter, window: str = "", *, is_damaged: bool = False
    ) -> None:
        """The oldest write of this writer, and of this window if one is named, arrives; damaged:
        with one bit that is wrong."""
        ticket = self._take(writer, window)
        if self._has_landed(writer, ticket, sum(copy.num_bytes for copy in ticket.copies)):
            if is_damaged:
                view = self.decode.segment.view()
                view[ticket.copies[0].dst_offset] ^= 1
            ticket.end(TicketState.DONE)

    def fail_write(self, writer: WorldWriter, window: str = "") -> None:
        """Half of it arrives."""
        ticket = self._take(writer, window)
        half = sum(copy.num_bytes for copy in ticket.copies) // 2
        if self._has_landed(writer, ticket, half):
            ticket.end(TicketState.FAILED, "injected")

    def cancel_write(self, writer: WorldWriter) -> None:
        """The writer gets to the first cancel that it was asked for, if to any."""
        for ticket in writer.tickets:
            if ticket.is_cancel_asked:
                ticket.end(TicketState.CANCELLED)
                writer.take(ticket)
                return

    def cut_link(
        self,
        reason: LostReason,
        *,
        num_kept_by_decode: int = 0,
        num_kept_by_prefill: int = 0,
        is_hello_lost: bool = False,
    ) -> None:
        """The control connection breaks. Of what was under way on it the first messages to either
        side arrive yet; decode's hello or prefill's is lost with the rest, if it has not been
        read."""
        if self._link is None:
            return
        key, self._link = self._link, None
        self._is_loss_unread = True
        self._said.clear()
        self._cut_inbox(self.decode, PREFILL_ADDRESS, num_kept_by_decode, is_hello_lost)
        self.decode.inbox.append(PeerLost(key=PREFILL_ADDRESS, reason=reason))
        if self._cut_inbox(self.prefill, key, num_kept_by_prefill, is_hello_lost):
            return  # it has not come to know that there was a connection
        self.prefill.inbox.append(PeerLost(key=key, reason=reason))

    @property
    def can_overtake(self) -> bool:
        return len({event.key for event in self.prefill.inbox}) > 1

    def overtake(self) -> None:
        """Of the first two events in turn that come to prefill from different connections the later
        one comes first."""
        inbox = self.prefill.inbox
        for index in range(len(inbox) - 1):
            if inbox[index].key != inbox[index + 1].key:
                inbox[index], inbox[index + 1] = inbox[index + 1], inbox[index]
                return

    def say_again(self, index: int) -> None:
        """A message that was said on this connection comes once more."""
        inbox, event = self._said[index]
        inbox.append(event)

    def kill_prefill(self) -> None:
        """The prefill process dies, with every write it had not finished, and a new one starts."""
        self.cut_link(LostReason.CLOSED)
        for writer in self.all_writers:
            if writer.writer_id == self._writer_id:
                writer.die("the writer is gone")
        self.prefill_requests.clear()
        self.is_hung = False
        self.prefill.segment.close()
        self.prefill = self._new_prefill()

    def replace_prefill(self) -> None:
        """The prefill process hangs for good, its writes under way, and another one is started in
        its place."""
        self.cut_link(LostReason.HEARTBEAT)
        self.prefill_requests.clear()
        self.is_hung = False
        self._replaced.append(self.prefill)
        self.prefill = self._new_prefill()

    def end_replaced(self) -> None:
        """Those that were replaced die."""
        for writer in self.all_writers:
            if writer.writer_id != self._writer_id:
                writer.die("the writer is gone")
        self.transport.all_writers[:] = [w for w in self.all_writers if w.is_alive or w.tickets]
        for side in self._replaced:
            side.segment.close()
        self._replaced.clear()

    def kill_decode(self) -> None:
        """The decode process dies; a new one starts, with a pool of its own."""
        self.cut_link(LostReason.CLOSED)
        self.transport.die()
        self.past_lives.append(Life(self.decode_requests, self.decode.outputs))
        self.decode_requests = {}
        self.is_decode_hung = self._is_loss_unread = False
        self.decode.segment.close()
        self.decode = self._new_decode()

    def settle(self) -> None:
        """Let everything run to its end: no more faults, and as much time as any deadline takes."""
        self.is_hung = self.is_decode_hung = self.is_cut_off = self.peers.is_slow = False
        self.end_replaced()
        for key in list(self.peers.pending):
            self.peers.finish(key)
        for _ in range(400):
            for side in (self.decode, self.prefill):
                side.receive(len(side.inbox))
                side.turn()
            for writer in self.all_writers:
                while writer.tickets:
                    self.land_write(writer)
            self.clock.advance(0.5)

    def check_writes(self) -> None:
        """No write that may still arrive has lost its blocks, at either end."""
        size = self.decode.layout.block_bytes
        held_by_prefill = {b for held in self.prefill.core.pool.holders().values() for b in held}
        for writer in self.all_writers:
            for ticket in writer.tickets:
                self._check_target(ticket)
                if writer.writer_id != self._writer_id:
                    continue  # of one that was replaced, which does nothing any more
                for copy in ticket.copies:
                    first, num_blocks = copy.src_offset // size, copy.num_bytes // size
                    assert held_by_prefill >= set(range(first, first + num_blocks)), ticket.window

    def close(self) -> None:
        """Let go of the pools' memory."""
        self.end_replaced()
        self.prefill.segment.close()
        self.decode.segment.close()

    def _submit_to_decode(self, request: EngineRequest) -> None:
        self.decode_requests[request.request_id] = request
        self.decode.role.submit(request)

    def _submit_to_prefill(self, request: EngineRequest) -> None:
        self.prefill_requests.add(request.request_id)
        self.prefill.role.submit(request)

    def _take(self, writer: WorldWriter, window: str) -> WorldTicket:
        ticket = next(t for t in writer.tickets if window in ("", t.window))
        writer.take(ticket)
        return ticket

    def _has_landed(self, writer: WorldWriter, ticket: WorldTicket, num_bytes: int) -> bool:
        """The first so many bytes, unless a fence keeps them out."""
        if self.transport.can_fence and ticket.window not in self.transport.windows:
            ticket.end(TicketState.FAILED, "the window is closed")
            return False
        self._check_target(ticket)
        target = self.decode.segment.view()
        for copy in ticket.copies:
            length = min(num_bytes, copy.num_bytes)
            source = writer.source[copy.src_offset :][:length]
            target[copy.dst_offset :][:length] = source
            num_bytes -= length
        return True

    def _check_target(self, ticket: WorldTicket) -> None:
        if self.transport.can_fence and ticket.window not in self.transport.windows:
            return
        size = self.decode.layout.block_bytes
        allowed = self._blocks_of(ticket.window)
        for copy in ticket.copies:
            for block in range(copy.dst_offset // size, (copy.dst_offset + copy.num_bytes) // size):
                assert block in allowed, f"{ticket.window} writes block {block}, not its own"

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

    def _new_decode(self) -> Side:
        side = Side(self._decode_blocks, self.block_size, self._chunk, self.clock)
        life = f"-{self._num_decodes}" if self._num_decodes else ""
        self._num_decodes += 1
        self._decode_id = f"decode-engine{life}"
        self.transport = WorldTransport(self._decode_id, self._can_fence, self._can_recall)
        self._regions[self._decode_id] = self.transport
        side.role = DecodeRole(
            side.core,
            side.layout,
            side.checksums if self._verify_kv else None,
            [self.transport],
            lambda address, message: self._send_to_prefill(side, address, message),
            self._acknowledge_loss,
            self._decode_id,
            CONFIG,
            self.clock,
        )
        return side

    def _new_prefill(self) -> Side:
        side = Side(self._prefill_blocks, self.block_size, self._chunk, self.clock)
        name = f"prefill-engine-{self._num_prefills}"
        self._num_prefills += 1
        self._writer_id = name
        self.peers = WorldPeers(self._regions, name, side.segment.view())
        side.role = PrefillRole(
            side.core,
            side.layout,
            side.checksums,
            self.peers,
            lambda key, message: self._send_to_decode(side, key, message),
            CONFIG,
            self.clock,
        )
        return side

    def _send_to_prefill(self, side: Side, address: str, message: HandoverMessage) -> None:
        if address != PREFILL_ADDRESS or self._is_loss_unread:
            return  # gone, or not there at all
        if self._link is None and self.is_cut_off:
            self._is_loss_unread = True
            side.inbox.append(PeerLost(key=PREFILL_ADDRESS, reason=LostReason.UNREACHABLE))
            return
        if self._link is None:
            self._link = f"link-{self._num_links}"
            self._num_links += 1
            hello = EngineHello(engine_id=self._decode_id)
            self.prefill.inbox.append(PeerConnected(key=self._link, hello=hello))
            hello = EngineHello(engine_id=self._writer_id)
            side.inbox.append(PeerConnected(key=PREFILL_ADDRESS, hello=hello))
        self._say(self.prefill, PeerMessage(key=self._link, message=message))

    def _acknowledge_loss(self, address: str) -> None:
        self._is_loss_unread &= address != PREFILL_ADDRESS

    def _send_to_decode(self, side: Side, key: str, message: HandoverMessage) -> None:
        if side is self.prefill and key == self._link:
            self._say(self.decode, PeerMessage(key=PREFILL_ADDRESS, message=message))

    def _say(self, side: Side, event: PeerMessage) -> None:
        side.inbox.append(event)
        self._said.append((side.inbox, event))

    @staticmethod
    def _cut_inbox(side: Side, key: str, num_kept: int, is_hello_lost: bool) -> bool:
        """Drop what does not arrive any more of the connection that this side knows by `key`. Was
        it all of it?"""
        events = list(side.inbox)
        losses = [i for i, e in enumerate(events) if e.key == key and isinstance(e, PeerLost)]
        begin = losses[-1] + 1 if losses else 0  # what is before is of another connection
        is_greeting_unread = any(
            isinstance(e, PeerConnected) and e.key == key for e in events[begin:]
        )
        is_unknown = is_hello_lost and is_greeting_unread
        kept = events[:begin]
        for event in events[begin:]:
            if event.key != key:
                kept.append(event)
            elif isinstance(event, PeerMessage) and num_kept > 0 and not is_unknown:
                num_kept -= 1
                kept.append(event)
            elif isinstance(event, PeerConnected) and not is_unknown:
                kept.append(event)
        side.inbox.clear()
        side.inbox.extend(kept)
        return is_unknown
