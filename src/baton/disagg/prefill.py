"""The prefill side of the hand-over: compute a prompt, write its KV into the decode engine's pool.

A leg starts to compute only when decode has reserved blocks for it, so no work is done that nobody
can take. Finished blocks are written while the next chunk computes. Life of a leg:

    AWAITING_RESERVATION ─> COMPUTING ─> WRITING ─> (delivered)
              └──────────────────┴──────────┴─────> DRAINING ─> (failed)

Invariant: the blocks of a leg are released, and the decode side is told that it is over, only when
no write of that leg is pending any more.
Elsewhere: the other side (decode.py), copying (transfer/), messages (messages/handover.py).
"""

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from baton.core.clock import Clock
from baton.core.request import EngineRequest, Finish
from baton.disagg.config import DisaggConfig
from baton.disagg.role import UnifiedRole, aborted, failed
from baton.disagg.writers import Writers
from baton.engine.core import EngineCore
from baton.engine.sequence import Sequence, SequenceState
from baton.ipc.peer_link import PeerConnected, PeerEvent, PeerLost, PeerMessage
from baton.kvcache.block_hash import prompt_digest
from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.layout import KvLayout
from baton.messages.handover import (
    HandoverMessage,
    KvCancel,
    KvDelivered,
    KvFailed,
    KvReleased,
    KvReserved,
)
from baton.obs.logs import event_log
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState, merge_adjacent

log = event_log("disagg")

_MAX_PARKED = 8192
"""Reservations that may wait for their request; more than decode workers ever have under way."""
_REMEMBER_S = 10.0
"""How much later than its request's end a reservation may come and still be told why."""

Pair = tuple[int, int]  # (bootstrap_room, sample_index): what both legs of a request share


class LegState(enum.Enum):
    AWAITING_RESERVATION = "awaiting reservation"
    COMPUTING = "computing"
    WRITING = "writing"
    DRAINING = "draining"


_LEGAL = {
    LegState.AWAITING_RESERVATION: {LegState.COMPUTING},
    LegState.COMPUTING: {LegState.WRITING, LegState.DRAINING},
    LegState.WRITING: {LegState.DRAINING},
    LegState.DRAINING: set(),
}


@dataclass
class _Reservation:
    """Decode's blocks for one prompt, and who to answer."""

    message: KvReserved
    peer_key: str
    deadline_s: float


@dataclass
class _Leg:
    pair: Pair
    sequence: Sequence
    deadline_s: float
    state: LegState = LegState.AWAITING_RESERVATION
    reservation: _Reservation | None = None
    num_posted_blocks: int = 0
    tickets: list[Ticket] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    """Of the blocks posted so far, if decode wants them."""
    last_word: tuple[str, HandoverMessage] | None = None
    """Whom to tell, and what, when no write is pending any more."""

    def move_to(self, state: LegState) -> None:
        assert state in _LEGAL[self.state], f"{self.sequence.request_id}: {self.state} -> {state}"
        self.state = state

    @property
    def transfer_id(self) -> str | None:
        """None before decode has reserved."""
        return self.reservation.message.transfer_id if self.reservation is not None else None

    @property
    def has_pending_writes(self) -> bool:
        return any(ticket.state is TicketState.PENDING for ticket in self.tickets)


@dataclass(frozen=True)
class _GivenUp:
    """Why a leg ended before decode reserved, so that a late reservation hears of it at once."""

    finish: Finish
    forget_at_s: float


class PrefillRole:
    """Hand-overs of one prefill engine. `send` queues a message to a connected peer."""

    def __init__(
        self,
        core: EngineCore,
        layout: KvLayout,
        checksums: BlockChecksums,
        peers: Writers,
        send: Callable[[str, HandoverMessage], None],
        config: DisaggConfig,
        clock: Clock,
    ):
        self._core = core
        self._layout = layout
        self._checksums = checksums
        self._peers = peers
        self._send = send
        self._config = config
        self._clock = clock
        self._local = UnifiedRole(core)
        self._legs: dict[Pair, _Leg] = {}
        self._parked: dict[Pair, _Reservation] = {}
        self._draining: list[_Leg] = []
        self._given_up: OrderedDict[Pair, _GivenUp] = OrderedDict()
        core.on_progress = self._on_progress
        core.on_failure = self._on_failure

    @property
    def num_handovers(self) -> int:
        return len(self._legs) + len(self._draining)

    def submit(self, request: EngineRequest) -> None:
        if request.handover is None:
            self._local.submit(request)
            return
        pair = (request.handover.room, request.handover.sample_index)
        if pair in self._legs:
            message = f"bootstrap_room {pair[0]} is already in use on this prefill worker"
            self._core.refuse(request.request_id, failed(message, 400))
            return
        sequence = self._core.accept(request)
        if sequence is None:
            self._give_up(pair, failed("the prefill worker refused the request", 400))
            return
        self._given_up.pop(pair, None)
        deadline_s = self._clock.now_s() + self._config.bootstrap_timeout_s
        leg = self._legs[pair] = _Leg(pair, sequence, deadline_s)
        reservation = self._parked.pop(pair, None)
        if reservation is not None:
            self._start(leg, reservation)

    def abort(self, request_id: str, reason: str) -> None:
        leg = self._leg_of(request_id)
        if leg is None:
            self._local.abort(request_id, reason)
            return
        self._end(leg, aborted(reason))

    def on_event(self, event: PeerEvent) -> None:
        match event:
            case PeerConnected(key=key, hello=hello):
                log.info("decode engine connected", peer=key, engine_id=hello.engine_id)
            case PeerMessage(key=key, message=message):
                self._on_message(key, message)
            case PeerLost(key=key, reason=reason, detail=detail):
                self._on_peer_lost(key, detail or reason.value)

    def tick(self, now_s: float) -> None:
        self._forget_old(now_s)
        for key, error in self._peers.take_failures():
            self._fail_legs_of(key, f"cannot reach the decode worker's KV pool: {error}")
        for leg in list(self._legs.values()):
            self._advance(leg, now_s)
        for leg in [leg for leg in self._draining if not leg.has_pending_writes]:
            self._draining.remove(leg)
            self._release(leg)
        for pair, parked in list(self._parked.items()):
            if now_s >= parked.deadline_s:
                reason = f"no request for bootstrap_room {pair[0]} reached the prefill worker"
                self._give_up(pair, failed(f"{reason} within its bootstrap timeout", 504))

    def _forget_old(self, now_s: float) -> None:
        while self._given_up:
            pair, oldest = next(iter(self._given_up.items()))
            if now_s < oldest.forget_at_s:
                return
            del self._given_up[pair]

    def _on_message(self, key: str, message: HandoverMessage) -> None:
        match message:
            case KvReserved():
                self._on_reserved(key, message)
            case KvCancel(transfer_id=transfer_id, reason=reason):
                self._on_cancel(key, transfer_id, reason)
            case _:
                log.warning("unexpected message", peer=key, type=type(message).__name__)

    def _on_reserved(self, key: str, message: KvReserved) -> None:
        pair = (message.room, message.sample_index)
        deadline_s = self._clock.now_s() + self._config.bootstrap_timeout_s
        reservation = _Reservation(message, key, deadline_s)
        leg, given_up = self._legs.get(pair), self._given_up.pop(pair, None)
        known = leg.reservation if leg is not None else self._parked.get(pair)
        if given_up is not None:
            self._decline(reservation, given_up.finish)
        elif known is not None:
            if known.message.transfer_id != message.transfer_id:  # else it is said twice
                reason = f"bootstrap_room {pair[0]} is already reserved by another decode request"
                self._decline(reservation, failed(reason, 400))
        elif leg is not None:
            self._start(leg, reservation)
        elif len(self._parked) >= _MAX_PARKED:
            reason = f"{_MAX_PARKED} reservations wait for their requests at the prefill worker"
            self._decline(reservation, failed(reason, 503))
        else:
            self._parked[pair] = reservation

    def _on_cancel(self, key: str, transfer_id: str, reason: str) -> None:
        released = KvReleased(transfer_id=transfer_id)
        for leg in [*self._legs.values(), *self._draining]:
            if leg.transfer_id == transfer_id:
                if leg.state is not LegState.DRAINING:
                    finish = aborted(f"the decode worker cancelled: {reason}")
                    self._end(leg, finish, is_told=False)
                # To the connection that asked: the first one may have been lost meanwhile.
                leg.last_word = (key, released) if leg.has_pending_writes else None
                if leg.last_word is None:
                    self._send(key, released)
                return
        self._parked = {
            pair: parked
            for pair, parked in self._parked.items()
            if parked.message.transfer_id != transfer_id
        }
        self._send(key, released)

    def _start(self, leg: _Leg, reservation: _Reservation) -> None:
        """Both the request and its blocks are there: check that they fit, then compute."""
        leg.reservation = reservation
        error = self._mismatch(leg.sequence, reservation.message)
        leg.move_to(LegState.COMPUTING)
        if error is not None:
            self._end(leg, failed(error, 500))
            return
        self._peers.connect(reservation.peer_key, reservation.message.regions)
        leg.num_posted_blocks = reservation.message.num_cached_blocks
        self._core.scheduler.add(leg.sequence)

    def _mismatch(self, sequence: Sequence, reserved: KvReserved) -> str | None:
        """Why this reservation cannot be for this request, None if it can."""
        if reserved.layout_hash != self._layout.layout_hash:
            return (
                "prefill and decode do not have the same KV layout (model, --kv-cache-dtype, "
                f"--page-size): {self._layout.layout_hash} and {reserved.layout_hash}"
            )
        same_prompt = reserved.num_prompt_tokens == sequence.num_prompt_tokens and (
            reserved.prompt_digest == prompt_digest(sequence.request.prompt_token_ids)
        )
        if not same_prompt:
            return "prefill and decode were sent different prompts under one bootstrap_room"
        num_blocks = -(-sequence.num_prompt_tokens // self._layout.block_size)
        if reserved.num_cached_blocks + len(reserved.block_ids) != num_blocks:
            return (
                f"decode reserved {len(reserved.block_ids)} blocks, the prompt needs {num_blocks}"
            )
        return None

    def _on_progress(self, sequence: Sequence) -> None:
        handover = sequence.request.handover
        assert handover is not None
        leg = self._legs[handover.room, handover.sample_index]
        if sequence.state is SequenceState.HELD:
            leg.move_to(LegState.WRITING)
        self._post_finished_blocks(leg)

    def _on_failure(self, sequence: Sequence, finish: Finish) -> None:
        leg = self._leg_of(sequence.request_id)
        if leg is None:
            self._core.end(sequence, finish)
        else:
            self._end(leg, finish)

    def _post_finished_blocks(self, leg: _Leg) -> None:
        """Post the blocks that are complete and not posted yet, once the peer is connected."""
        assert leg.reservation is not None
        reserved, peer = leg.reservation.message, self._peer_of(leg)
        num_ready = leg.sequence.num_computed_tokens // self._layout.block_size
        if leg.state is LegState.WRITING:
            num_ready = len(leg.sequence.block_ids)
        if peer is None or num_ready <= leg.num_posted_blocks:
            return
        first = reserved.num_cached_blocks
        indices = range(leg.num_posted_blocks, num_ready)
        copies = [
            self._copy(leg.sequence.block_ids[index], reserved.block_ids[index - first])
            for index in indices
        ]
        leg.num_posted_blocks = num_ready
        leg.tickets.append(peer.post_write(reserved.transfer_id, merge_adjacent(copies)))
        if reserved.wants_checksums:  # taken while the blocks travel
            leg.checksums += [self._checksums.of(leg.sequence.block_ids[i]) for i in indices]

    def _copy(self, src_block: int, dst_block: int) -> Copy:
        size = self._layout.block_bytes
        return Copy(src_block * size, dst_block * size, size)

    def _advance(self, leg: _Leg, now_s: float) -> None:
        if leg.state is LegState.AWAITING_RESERVATION:
            if now_s >= leg.deadline_s:
                reason = (
                    f"no decode worker reserved room for bootstrap_room {leg.pair[0]} within "
                    f"{self._config.bootstrap_timeout_s:g} s "
                    "(SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT)"
                )
                self._end(leg, failed(reason, 504))
            return
        self._post_finished_blocks(leg)
        states = {ticket.state for ticket in leg.tickets}
        if TicketState.FAILED in states or TicketState.CANCELLED in states:
            errors = [t.error for t in leg.tickets if t.error] or ["the write was cancelled"]
            reason = f"writing KV to the decode worker failed: {errors[0]}"
            self._end(leg, failed(reason, 503))
        elif TicketState.PENDING in states and self._is_cut_off(leg):
            # What cannot be recalled is waited for: the leg drains.
            self._end(leg, failed("the decode worker's KV pool cannot be written any more", 503))
        elif self._is_written(leg, states):
            self._deliver(leg)

    def _is_written(self, leg: _Leg, states: set[TicketState]) -> bool:
        return (
            leg.state is LegState.WRITING
            and leg.num_posted_blocks == len(leg.sequence.block_ids)
            and states <= {TicketState.DONE}
        )

    def _deliver(self, leg: _Leg) -> None:
        output, reservation = leg.sequence.held_output, leg.reservation
        assert output is not None
        assert reservation is not None
        self._send(
            reservation.peer_key,
            KvDelivered(
                transfer_id=reservation.message.transfer_id,
                token_id=output.token_ids[0],
                logprob=output.logprobs[0] if output.logprobs else None,
                num_blocks=len(reservation.message.block_ids),
                num_cached_tokens=leg.sequence.num_cached_tokens,
                checksums=leg.checksums,
            ),
        )
        del self._legs[leg.pair]
        self._core.finish_delivered(leg.sequence)

    def _end(self, leg: _Leg, finish: Finish, *, is_told: bool = True) -> None:
        """End a leg without delivery. Its client hears at once; its blocks and the decode side when
        no write is pending any more."""
        del self._legs[leg.pair]
        if leg.reservation is None:
            self._give_up(leg.pair, finish)
        elif is_told:
            leg.last_word = (leg.reservation.peer_key, _failure(leg.reservation, finish))
        peer = self._peer_of(leg) if leg.reservation is not None else None
        for ticket in leg.tickets:
            if peer is not None and ticket.state is TicketState.PENDING:
                peer.cancel(ticket)
        self._core.pool.rename(leg.sequence.holder, _drain_holder(leg))
        self._core.end(leg.sequence, finish)
        if leg.has_pending_writes:
            leg.move_to(LegState.DRAINING)
            self._draining.append(leg)
        else:
            self._release(leg)

    def _release(self, leg: _Leg) -> None:
        self._core.pool.release(_drain_holder(leg))
        if leg.last_word is not None:
            self._send(*leg.last_word)

    def _on_peer_lost(self, key: str, reason: str) -> None:
        log.info("decode engine lost", peer=key, reason=reason)
        self._parked = {p: parked for p, parked in self._parked.items() if parked.peer_key != key}
        self._fail_legs_of(key, f"the decode worker is gone ({reason})")
        for leg in self._draining:
            if leg.last_word is not None and leg.last_word[0] == key:
                leg.last_word = None
        self._peers.drop(key)

    def _fail_legs_of(self, key: str, reason: str) -> None:
        for leg in list(self._legs.values()):
            if leg.reservation is not None and leg.reservation.peer_key == key:
                self._end(leg, failed(reason, 503))

    def _give_up(self, pair: Pair, finish: Finish) -> None:
        """There will be no leg for this pair: tell decode's reservation, now or when it comes."""
        parked = self._parked.pop(pair, None)
        if parked is not None:
            self._decline(parked, finish)
        else:
            self._given_up[pair] = _GivenUp(finish, self._clock.now_s() + _REMEMBER_S)

    def _decline(self, reservation: _Reservation, finish: Finish) -> None:
        self._send(reservation.peer_key, _failure(reservation, finish))

    def _peer_of(self, leg: _Leg) -> Peer | None:
        assert leg.reservation is not None
        return self._peers.get(leg.reservation.peer_key)

    def _is_cut_off(self, leg: _Leg) -> bool:
        peer = self._peer_of(leg)
        return peer is not None and not peer.is_alive

    def _leg_of(self, request_id: str) -> _Leg | None:
        legs = self._legs.values()
        return next((leg for leg in legs if leg.sequence.request_id == request_id), None)


def _failure(reservation: _Reservation, finish: Finish) -> KvFailed:
    return KvFailed(
        transfer_id=reservation.message.transfer_id,
        reason=f"prefill: {finish.message}",
        status=finish.status,
    )


def _drain_holder(leg: _Leg) -> str:
    # With its number: the same request id may come again, and fail again, before this one is over.
    return f"draining:{leg.sequence.order}:{leg.sequence.request_id}"
