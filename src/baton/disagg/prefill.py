"""The prefill side of the hand-over: compute a prompt, write its KV into the decode engine's pool.

A leg starts to compute only when decode has reserved blocks for it, so no work is done that nobody
can take. Finished blocks are written while the next chunk computes. A peer that takes no byte of
its writes for too long is stuck, whatever its heartbeats say, and its legs fail.

Invariant: the blocks of a leg are released, and the decode side is told that it is over, only when
no write of that leg is pending any more.
Elsewhere: the life of a leg (prefill_leg.py), its end without delivery (draining.py), reservations
without one (reservations.py), the other side (decode.py), copying (transfer/), messages
(messages/handover.py).
"""

from collections.abc import Callable

import msgspec

from baton.core.clock import Clock
from baton.core.request import EngineRequest, Finish
from baton.disagg.config import DisaggConfig
from baton.disagg.draining import Draining
from baton.disagg.prefill_leg import Pair, PrefillLeg, Reservation, why_unfit
from baton.disagg.reservations import WaitingReservations
from baton.disagg.role import UnifiedRole, aborted, failed
from baton.disagg.stage import HandoverStage, HandoverTally, at_stage
from baton.disagg.stall import StallWatch
from baton.disagg.writers import Writers
from baton.engine.core import EngineCore
from baton.engine.sequence import Sequence, SequenceState
from baton.ipc.peer_link import PeerConnected, PeerEvent, PeerLost, PeerMessage
from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.layout import KvLayout
from baton.messages.engine import HandoverStats
from baton.messages.handover import (
    HandoverMessage,
    KvCancel,
    KvDelivered,
    KvReleased,
    KvReserved,
)
from baton.obs.logs import event_log
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState, merge_adjacent

log = event_log("disagg")


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
        self._legs: dict[Pair, PrefillLeg] = {}
        self._waiting = WaitingReservations()
        self._engine_ids: dict[str, str] = {}  # of each connected decode engine, by its key
        self._stalls = StallWatch(config.stall_timeout_s)
        self._tally = HandoverTally()
        self._draining = Draining(core.pool, send, self._tally, config.release_warning_s)
        core.on_progress = self._on_progress
        core.on_failure = self._on_failure

    @property
    def prompts_are_computed(self) -> bool:
        return False  # they are computed here

    @property
    def is_delivering(self) -> bool:
        return any(leg.state is HandoverStage.WRITING for leg in self._legs.values())

    @property
    def num_handovers(self) -> int:
        return len(self._legs) + len(self._draining)

    def handover_stats(self) -> HandoverStats:
        return msgspec.structs.replace(self._tally.stats(), num_draining=len(self._draining))

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
        leg = self._legs[pair] = PrefillLeg(pair, sequence, self._clock.now_s())
        sequence.timeline.enter(leg.state.value, sequence.timeline.start_s)
        reservation = self._waiting.take(pair)
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
                self._engine_ids[key] = hello.engine_id
            case PeerMessage(key=key, message=message):
                self._on_message(key, message)
            case PeerLost(key=key, reason=reason, detail=detail):
                self._on_peer_lost(key, detail or reason.value)

    def tick(self, now_s: float) -> None:
        for key, error in self._peers.take_failures():
            self._fail_legs_of(key, f"cannot reach the decode worker's KV pool: {error}")
        for leg in list(self._legs.values()):
            self._advance(leg, now_s)
        self._fail_stuck(now_s)
        self._draining.tick(now_s)
        for pair, parked in self._waiting.take_late(now_s):
            reason = (
                f"no request for bootstrap_room {pair[0]} reached the prefill worker within "
                f"{self._config.bootstrap_timeout_s:g} s (SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT)"
            )
            self._decline(parked, failed(reason, 504))

    def _fail_stuck(self, now_s: float) -> None:
        pending: dict[str, list[Ticket]] = {}
        for leg in [*self._legs.values(), *self._draining]:
            if leg.peer_key is not None and leg.pending_writes:
                pending.setdefault(leg.peer_key, []).extend(leg.pending_writes)
        self._stalls.look(pending, now_s)
        for key, quiet_s in self._stalls.stuck():
            reason = (
                f"stuck: the decode worker took no byte for {quiet_s:.1f} s, above "
                f"{self._config.stall_timeout_s:g} s (BATON_DISAGGREGATION_STALL_TIMEOUT)"
            )
            for leg in list(self._legs.values()):
                if leg.peer_key == key and leg.pending_writes:
                    self._end(leg, failed(reason, 504))

    def _on_message(self, key: str, message: HandoverMessage) -> None:
        match message:
            case KvReserved():
                self._on_reserved(key, message)
            case KvCancel():
                self._waiting.see(self._life_of(key), message.generation)
                self._on_cancel(key, message.transfer_id, message.reason)
            case _:
                log.warning("unexpected message", peer=key, type=type(message).__name__)

    def _on_reserved(self, key: str, message: KvReserved) -> None:
        pair = (message.room, message.sample_index)
        deadline_s = self._clock.now_s() + self._config.bootstrap_timeout_s
        reservation = Reservation(message, key, deadline_s)
        if self._waiting.is_stale(self._life_of(key), message.generation):
            log.info("reservation is old", peer=key, transfer_id=message.transfer_id)
            return  # said twice, or read after its cancel
        leg, ended = self._legs.get(pair), self._waiting.take_end(pair)
        known = leg.reservation if leg is not None else self._waiting.get(pair)
        if ended is not None:
            self._decline(reservation, ended)
        elif known is not None:
            if known.message.transfer_id != message.transfer_id:  # else it is said twice
                reason = f"bootstrap_room {pair[0]} is already reserved by another decode request"
                self._decline(reservation, failed(reason, 400))
        elif leg is not None:
            self._start(leg, reservation)
        elif self._waiting.is_full:
            num_parked = self._waiting.max_parked
            reason = f"{num_parked} reservations wait for their requests at the prefill worker"
            self._decline(reservation, failed(reason, 503))
        else:
            self._waiting.park(pair, reservation)

    def _life_of(self, key: str) -> str:
        """Whose leases are said here: a decode engine's own life, over all its connections."""
        return self._engine_ids.get(key, key)

    def _on_cancel(self, key: str, transfer_id: str, reason: str) -> None:
        released = KvReleased(transfer_id=transfer_id)
        for leg in [*self._legs.values(), *self._draining]:
            if leg.transfer_id == transfer_id:
                if leg.state is not HandoverStage.DRAINING:
                    finish = aborted(f"the decode worker cancelled: {reason}")
                    self._end(leg, finish, is_told=False)
                # To the connection that asked: the first one may have been lost meanwhile.
                leg.last_word = (key, released) if leg.pending_writes else None
                if leg.last_word is None:
                    self._send(key, released)
                return
        self._waiting.drop_transfer(transfer_id)
        self._send(key, released)

    def _start(self, leg: PrefillLeg, reservation: Reservation) -> None:
        """Both the request and its blocks are there: check that they fit, then compute."""
        leg.reservation = reservation
        error = why_unfit(leg.sequence, reservation.message, self._layout.block_size)
        self._move(leg, HandoverStage.COMPUTING)
        if error is not None:
            self._end(leg, failed(error, 500))
            return
        self._peers.connect(reservation.peer_key, reservation.message.regions)
        leg.num_posted_blocks = reservation.message.num_cached_blocks
        self._core.queue(leg.sequence, leg.since_s)

    def _on_progress(self, sequence: Sequence) -> None:
        handover = sequence.request.handover
        assert handover is not None
        leg = self._legs[handover.room, handover.sample_index]
        if sequence.state is SequenceState.HELD:
            self._move(leg, HandoverStage.WRITING)
        self._post_finished_blocks(leg)

    def _on_failure(self, sequence: Sequence, finish: Finish) -> None:
        leg = self._leg_of(sequence.request_id)
        if leg is None:
            self._core.end(sequence, finish)
        else:
            self._end(leg, finish)

    def _post_finished_blocks(self, leg: PrefillLeg) -> None:
        """Post the blocks that are complete and not posted yet, once the peer is connected."""
        assert leg.reservation is not None
        reserved, peer = leg.reservation.message, self._peer_of(leg)
        num_ready = leg.sequence.num_computed_tokens // self._layout.block_size
        if leg.state is HandoverStage.WRITING:
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

    def _advance(self, leg: PrefillLeg, now_s: float) -> None:
        if leg.state is HandoverStage.AWAITING_RESERVATION:
            if now_s >= leg.since_s + self._config.bootstrap_timeout_s:
                reason = (
                    f"no decode worker reserved room for bootstrap_room {leg.pair[0]} within "
                    f"{self._config.bootstrap_timeout_s:g} s "
                    "(SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT)"
                )
                self._end(leg, failed(reason, 504))
            return
        self._post_finished_blocks(leg)
        limit_s = self._config.connect_timeout_s
        if self._stage_of(leg) is HandoverStage.CONNECTING and now_s >= leg.since_s + limit_s:
            variable = "BATON_DISAGGREGATION_CONNECT_TIMEOUT"
            reason = f"no connection to the decode worker's KV pool in {limit_s:g} s ({variable})"
            self._end(leg, failed(reason, 504))
            return
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

    def _is_written(self, leg: PrefillLeg, states: set[TicketState]) -> bool:
        return (
            leg.state is HandoverStage.WRITING
            and leg.num_posted_blocks == len(leg.sequence.block_ids)
            and states <= {TicketState.DONE}
        )

    def _deliver(self, leg: PrefillLeg) -> None:
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
        writing_s = self._clock.now_s() - leg.since_s
        self._tally.left(leg.state, writing_s)
        num_blocks, num_writes = len(reservation.message.block_ids), len(leg.tickets)
        leg.sequence.timeline.phases[-1].why = f"{num_blocks} blocks in {num_writes} writes"
        num_tokens = num_blocks * self._layout.block_size
        self._core.finish_delivered(leg.sequence, num_tokens, writing_s)

    def _end(self, leg: PrefillLeg, finish: Finish, *, is_told: bool = True) -> None:
        """End a leg without delivery. Its client hears at once; its blocks and the decode side when
        no write is pending any more."""
        del self._legs[leg.pair]
        stage = self._stage_of(leg)
        of_peer = f"decode worker {leg.peer_key}" if leg.peer_key else "no decode worker yet"
        finish = at_stage(finish, stage, of_peer, self._clock.now_s() - leg.since_s)
        self._tally.failed(stage, finish)
        if leg.reservation is None:
            self._give_up(leg.pair, finish)
        elif is_told:
            leg.last_word = (leg.reservation.peer_key, leg.reservation.failure(finish))
        peer = self._peer_of(leg) if leg.reservation is not None else None
        if peer is not None:
            for ticket in leg.pending_writes:
                peer.cancel(ticket)
        self._core.pool.rename(leg.sequence.holder, leg.drain_holder)
        self._core.end(leg.sequence, finish)
        self._draining.take(leg, self._clock.now_s())

    def _move(self, leg: PrefillLeg, state: HandoverStage) -> None:
        now_s = self._clock.now_s()
        self._tally.left(leg.state, now_s - leg.since_s)
        leg.move_to(state, now_s)

    def _stage_of(self, leg: PrefillLeg) -> HandoverStage:
        """Computing does not wait for the connection; what comes after it does."""
        is_connecting = leg.state is HandoverStage.WRITING and self._peer_of(leg) is None
        return HandoverStage.CONNECTING if is_connecting else leg.state

    def _on_peer_lost(self, key: str, reason: str) -> None:
        log.info("decode engine lost", peer=key, reason=reason)
        self._waiting.drop_peer(key)
        self._engine_ids.pop(key, None)
        self._fail_legs_of(key, f"the decode worker is gone ({reason})")
        self._draining.lose_peer(key)
        self._peers.drop(key)

    def _fail_legs_of(self, key: str, reason: str) -> None:
        for leg in list(self._legs.values()):
            if leg.reservation is not None and leg.reservation.peer_key == key:
                self._end(leg, failed(reason, 503))

    def _give_up(self, pair: Pair, finish: Finish) -> None:
        """There will be no leg for this pair: tell decode's reservation, now or when it comes."""
        parked = self._waiting.give_up(pair, finish, self._clock.now_s())
        if parked is not None:
            self._decline(parked, finish)

    def _decline(self, reservation: Reservation, finish: Finish) -> None:
        self._send(reservation.peer_key, reservation.failure(finish))

    def _peer_of(self, leg: PrefillLeg) -> Peer | None:
        assert leg.reservation is not None
        return self._peers.get(leg.reservation.peer_key)

    def _is_cut_off(self, leg: PrefillLeg) -> bool:
        peer = self._peer_of(leg)
        return peer is not None and not peer.is_alive

    def _leg_of(self, request_id: str) -> PrefillLeg | None:
        legs = self._legs.values()
        return next((leg for leg in legs if leg.sequence.request_id == request_id), None)
