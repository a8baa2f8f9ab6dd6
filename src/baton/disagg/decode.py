"""The decode side of the hand-over: reserve blocks, let prefill fill them, run on from there.

    QUEUED_FOR_BLOCKS ─> AWAITING_KV ─> (adopted by the scheduler)
            └─────────────────┴───────> (ended); after AWAITING_KV the blocks go into quarantine

Invariant: blocks that a prefill worker may still write to are nobody else's. After a hand-over
fails they stay in quarantine until the prefill engine says that nothing is pending (KvReleased,
KvFailed), or cannot write any more.
Elsewhere: blocks of failed hand-overs (quarantine.py), who may come to the pool (pool_guests.py),
the other side (prefill.py), copying (transfer/), messages (messages/handover.py).
"""

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import assert_never

import msgspec

from baton.core.clock import Clock
from baton.core.request import EngineRequest, Finish
from baton.disagg.config import DisaggConfig
from baton.disagg.pool_guests import PoolGuests
from baton.disagg.quarantine import Lease, Quarantine
from baton.disagg.role import UnifiedRole, aborted, failed
from baton.disagg.stage import HandoverStage, HandoverTally, at_stage
from baton.engine.core import EngineCore
from baton.engine.sequence import Sequence
from baton.ipc.peer_link import LostReason, PeerConnected, PeerEvent, PeerLost, PeerMessage
from baton.kvcache.block_hash import prompt_digest
from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.layout import KvLayout
from baton.messages.engine import HandoverStats
from baton.messages.handover import (
    HandoverMessage,
    KvCancel,
    KvDelivered,
    KvFailed,
    KvReleased,
    KvReserved,
)
from baton.obs.logs import event_log
from baton.transfer.protocol import KvTransport

log = event_log("disagg")


@dataclass
class _Leg:
    sequence: Sequence
    peer_address: str
    room: int
    sample_index: int
    since_s: float
    """When it came to its state."""
    generation: int
    transfer_id: str
    state: HandoverStage = HandoverStage.QUEUED_FOR_BLOCKS
    num_reserved_blocks: int = 0
    guest: str = ""
    """As what its peer was told of the pool; "" before it was."""

    @property
    def pair(self) -> tuple[str, int, int]:
        return self.peer_address, self.room, self.sample_index


class DecodeRole:
    """Hand-overs of one decode engine. `send` queues a message to a peer by its control address,
    connecting first where needed; after a loss only once that has been acknowledged. With
    `checksums`, of this engine's pool, blocks are verified before they are used."""

    def __init__(
        self,
        core: EngineCore,
        layout: KvLayout,
        checksums: BlockChecksums | None,
        transports: Many[KvTransport],
        send: Callable[[str, HandoverMessage], None],
        acknowledge_loss: Callable[[str], None],
        engine_id: str,
        config: DisaggConfig,
        clock: Clock,
    ):
        self._core = core
        self._layout = layout
        self._checksums = checksums
        self._transports = transports
        self._send = send
        self._acknowledge_loss = acknowledge_loss
        self._engine_id = engine_id
        self._config = config
        self._clock = clock
        self._local = UnifiedRole(core)
        self._legs: dict[str, _Leg] = {}  # by transfer id, in order of arrival
        self._guests = PoolGuests(transports)
        self._engine_ids: dict[str, str] = {}  # of each connected engine, by its key
        self._generations = itertools.count(1)
        self._tally = HandoverTally()
        self._quarantine = Quarantine(core.pool, transports, self._tally, config.release_warning_s)

    @property
    def num_handovers(self) -> int:
        return len(self._legs)

    @property
    def prompts_are_computed(self) -> bool:
        return any(leg.state is HandoverStage.AWAITING_KV for leg in self._legs.values())

    @property
    def is_delivering(self) -> bool:
        return False  # that is the prefill worker's

    def handover_stats(self) -> HandoverStats:
        return msgspec.structs.replace(
            self._tally.stats(),
            num_quarantined_blocks=self._quarantine.num_blocks,
            oldest_quarantine_s=self._quarantine.oldest_s(self._clock.now_s()),
        )

    def transfers(self) -> dict[str, str]:
        """Who holds the blocks in the ledger, by transfer id, of hand-overs under way."""
        return {transfer_id: leg.sequence.holder for transfer_id, leg in self._legs.items()}

    def submit(self, request: EngineRequest) -> None:
        handover = request.handover
        if handover is None:
            self._local.submit(request)
            return
        pair = (handover.peer_address, handover.room, handover.sample_index)
        if any(leg.pair == pair for leg in self._legs.values()):
            message = f"bootstrap_room {handover.room} is already in use on this decode worker"
            self._core.refuse(request.request_id, failed(message, 400))
            return
        sequence = self._core.accept(request)
        if sequence is None:
            return
        generation = next(self._generations)
        transfer_id = f"{self._engine_id}-{generation}"
        leg = _Leg(sequence, *pair, self._clock.now_s(), generation, transfer_id)
        self._legs[transfer_id] = leg
        since_s, why = sequence.timeline.start_s, self._why_queued(sequence)
        sequence.timeline.enter(leg.state.value, since_s, why)
        self._reserve_in_order()

    def abort(self, request_id: str, reason: str) -> None:
        for leg in self._legs.values():
            if leg.sequence.request_id == request_id:
                self._cancel(leg, aborted(reason))
                return
        self._local.abort(request_id, reason)

    def on_event(self, event: PeerEvent) -> None:
        match event:
            case PeerConnected(key=key, hello=hello):
                log.info("prefill engine connected", peer=key, engine_id=hello.engine_id)
                self._engine_ids[key] = hello.engine_id
                self._ask_again(key, hello.engine_id)
            case PeerMessage(key=key, message=message):
                self._on_message(key, message)
            case PeerLost(key=key, reason=reason, detail=detail):
                self._on_peer_lost(key, reason, detail or reason.value)

    def tick(self, now_s: float) -> None:
        for leg in list(self._legs.values()):
            if now_s >= leg.since_s + self._config.waiting_timeout_s:
                self._cancel(leg, failed(self._late(leg), 504))
        self._quarantine.tick(now_s)
        self._reserve_in_order()

    def _reserve_in_order(self) -> None:
        """Give blocks to queued legs, oldest first; one that finds no room holds up the rest, so
        that a long prompt is not passed by for ever."""
        num_reserved = sum(leg.state is HandoverStage.AWAITING_KV for leg in self._legs.values())
        for leg in list(self._legs.values()):
            if leg.state is HandoverStage.QUEUED_FOR_BLOCKS:
                if not self._reserve(leg, num_reserved):
                    return
                num_reserved += 1

    def _why_queued(self, sequence: Sequence) -> str:
        """What a leg finds when it comes; it is told only where it waits."""
        num_ahead = sum(leg.state is HandoverStage.QUEUED_FOR_BLOCKS for leg in self._legs.values())
        num_needed = -(-sequence.num_prompt_tokens // self._layout.block_size)
        num_running, num_free = self._core.scheduler.num_running, self._core.pool.num_available
        return (
            f"needs up to {num_needed} blocks, {num_free} available, {num_running} running, "
            f"{num_ahead - 1} ahead"
        )

    def _reserve(self, leg: _Leg, num_reserved: int) -> bool:
        sequence, pool, size = leg.sequence, self._core.pool, self._layout.block_size
        reusable = (sequence.num_prompt_tokens - 1) // size
        hits = pool.lookup(sequence.hashes(size)[:reusable])
        num_new = -(-sequence.num_prompt_tokens // size) - len(hits)
        pool.share(sequence.holder, hits)
        blocks = None
        if self._core.scheduler.has_room_for(num_new, num_reserved):
            blocks = pool.allocate(sequence.holder, num_new)
        if blocks is None:
            pool.release(sequence.holder)
            return False
        sequence.block_ids = [*hits, *blocks]
        now_s = self._clock.now_s()
        self._tally.left(leg.state, now_s - leg.since_s)
        leg.state, leg.since_s = HandoverStage.AWAITING_KV, now_s
        leg.num_reserved_blocks = num_new
        sequence.timeline.enter(
            leg.state.value, now_s, f"{num_new} blocks reserved, {len(hits)} were cached here"
        )
        guest = self._guests.at(leg.peer_address)
        leg.guest = guest.name
        self._open_windows(leg.transfer_id, blocks)
        self._send(
            leg.peer_address,
            KvReserved(
                transfer_id=leg.transfer_id,
                generation=leg.generation,
                room=leg.room,
                sample_index=leg.sample_index,
                num_prompt_tokens=sequence.num_prompt_tokens,
                prompt_digest=prompt_digest(sequence.request.prompt_token_ids),
                num_cached_blocks=len(hits),
                block_ids=blocks,
                regions=guest.regions,
                wants_checksums=self._checksums is not None,
            ),
        )
        return True

    def _open_windows(self, transfer_id: str, blocks: list[int]) -> None:
        size = self._layout.block_bytes
        ranges = [(block * size, (block + 1) * size) for block in blocks]
        for transport in self._transports:
            transport.open_window(transfer_id, ranges)

    def _on_message(self, key: str, message: HandoverMessage) -> None:
        transfer_id = message.transfer_id
        match message:
            case KvReserved():
                reason = "this is a decode worker; bootstrap_host must name a prefill worker"
                self._send(key, KvFailed(transfer_id=transfer_id, reason=reason, status=400))
            case KvCancel():
                self._send(key, KvReleased(transfer_id=transfer_id))
            case KvDelivered() | KvFailed() | KvReleased():
                # Only who may write to the blocks can say that it does not any more.
                if self._is_of_writer(transfer_id, key):
                    self._on_answer(message)
            case _:
                assert_never(message)

    def _is_of_writer(self, transfer_id: str, key: str) -> bool:
        """Does this connection lead to the engine that holds the lease, in the same life?"""
        leg, lease = self._legs.get(transfer_id), self._quarantine.get(transfer_id)
        if lease is not None:
            return lease.is_held_by(key, self._engine_ids.get(key))
        return leg is not None and leg.peer_address == key

    def _on_answer(self, message: KvDelivered | KvFailed | KvReleased) -> None:
        match message:
            case KvDelivered():
                self._on_delivered(message)
            case KvFailed(transfer_id=transfer_id, reason=reason, status=status):
                leg = self._legs.pop(transfer_id, None)
                if leg is not None:
                    self._close_windows(transfer_id)
                    finish = msgspec.structs.replace(failed(reason, status), stage=message.stage)
                    self._core.end(leg.sequence, self._ended(leg, finish))
                self._release(transfer_id)
            case KvReleased(transfer_id=transfer_id):
                self._release(transfer_id)
            case _:
                assert_never(message)

    def _on_delivered(self, message: KvDelivered) -> None:
        leg = self._legs.get(message.transfer_id)
        if leg is None or leg.state is not HandoverStage.AWAITING_KV:
            # It crossed with our cancel: all is written, so nothing more can arrive.
            self._release(message.transfer_id)
            return
        problem = self._problem_of(message, leg)
        if problem is not None:
            self._cancel(leg, failed(f"the prefill worker delivered {problem}", 500))
            return
        # Closed first: what is verified must not change any more.
        self._close_windows(leg.transfer_id)
        damage = self._damage_of(message, leg)
        if damage is not None:
            log.error("kv damaged", peer=leg.peer_address, transfer_id=leg.transfer_id, what=damage)
            self._cancel(leg, failed(damage, 503))
            return
        del self._legs[leg.transfer_id]
        self._tally.left(leg.state, self._clock.now_s() - leg.since_s)
        leg.sequence.num_cached_tokens = message.num_cached_tokens
        self._core.adopt(leg.sequence, message.token_id, message.logprob)

    def _problem_of(self, message: KvDelivered, leg: _Leg) -> str | None:
        """Why the sequence cannot go on from this, None if it can."""
        if message.num_blocks != leg.num_reserved_blocks:
            return f"{message.num_blocks} blocks of {leg.num_reserved_blocks}"
        if message.token_id >= self._core.vocab_size:
            return f"token {message.token_id}, beyond the vocabulary of {self._core.vocab_size}"
        if (message.logprob is None) != (leg.sequence.request.sampling.num_top_logprobs is None):
            return "no logprob, or one that nobody asked for: the legs differ in what they ask"
        if self._checksums is not None and len(message.checksums) != message.num_blocks:
            return f"{len(message.checksums)} checksums for {message.num_blocks} blocks"
        return None

    def _damage_of(self, message: KvDelivered, leg: _Leg) -> str | None:
        """Which block is not the one that was sent, None if all are or nobody asked."""
        if self._checksums is None:
            return None
        num_blocks = leg.num_reserved_blocks
        blocks = leg.sequence.block_ids[-num_blocks:]
        found = [self._checksums.of(block) for block in blocks]
        damaged = [i for i, sent in enumerate(message.checksums) if found[i] != sent]
        self._core.counters.verified_blocks += num_blocks
        self._core.counters.damaged_blocks += len(damaged)
        if not damaged:
            return None
        first = damaged[0]
        return (
            f"verifying KV (--verify-kv) failed: {len(damaged)} of {num_blocks} blocks from the "
            f"prefill worker at {leg.peer_address} arrived damaged, the first is block "
            f"{len(leg.sequence.block_ids) - num_blocks + first} of the prompt (block "
            f"{blocks[first]} of the pool): checksum {found[first]:016x} instead of "
            f"{message.checksums[first]:016x}"
        )

    def _cancel(self, leg: _Leg, finish: Finish) -> None:
        """End a leg from this side."""
        if leg.state is HandoverStage.AWAITING_KV:
            self._send_cancel(leg.peer_address, leg.transfer_id, leg.generation, finish.message)
        self._end(leg, finish)

    def _end(self, leg: _Leg, finish: Finish) -> None:
        """End a leg; blocks that may still be written to go into quarantine."""
        del self._legs[leg.transfer_id]
        if leg.state is HandoverStage.AWAITING_KV:
            self._close_windows(leg.transfer_id)
            lease = Lease(
                leg.transfer_id,
                leg.peer_address,
                leg.generation,
                leg.guest,
                self._clock.now_s(),
                self._engine_ids.get(leg.peer_address),
            )
            self._quarantine.take(lease, leg.sequence.holder)
        self._core.end(leg.sequence, self._ended(leg, finish))

    def _ended(self, leg: _Leg, finish: Finish) -> Finish:
        """Count the end of a leg that is not adopted; says where it was."""
        seconds = self._clock.now_s() - leg.since_s
        finish = at_stage(finish, leg.state, f"prefill worker {leg.peer_address}", seconds)
        self._tally.left(leg.state, seconds)
        self._tally.failed(leg.state, finish)
        return finish

    def _send_cancel(self, key: str, transfer_id: str, generation: int, reason: str) -> None:
        reason = reason or "cancelled"
        cancel = KvCancel(transfer_id=transfer_id, reason=reason, generation=generation)
        self._send(key, cancel)

    def _on_peer_lost(self, key: str, reason: LostReason, detail: str) -> None:
        log.info("prefill engine lost", peer=key, reason=detail)
        self._acknowledge_loss(key)
        finish = failed(f"the prefill worker at {key} is gone ({detail})", 503)
        if reason is LostReason.LAYOUT:  # it is there, and trying again changes nothing
            message = f"prefill and decode do not have the same KV layout: {detail}"
            finish = failed(message, 500)
        for leg in list(self._legs.values()):
            if leg.peer_address == key:
                self._end(leg, finish)
        self._guests.expel(key)
        self._quarantine.lose_peer(key, self._engine_ids.pop(key, None))

    def _ask_again(self, key: str, engine_id: str) -> None:
        """A lost prefill engine is back (it was hung or cut off): have it confirm what it could not
        confirm before. It answers KvReleased for transfers that it does not know, too."""
        for lease in self._quarantine.unconfirmed(key, engine_id):
            self._send_cancel(key, lease.transfer_id, lease.generation, "connection lost")

    def _release(self, transfer_id: str) -> None:
        self._quarantine.release(transfer_id, self._clock.now_s())

    def _close_windows(self, transfer_id: str) -> None:
        for transport in self._transports:
            transport.close_window(transfer_id)

    def _late(self, leg: _Leg) -> str:
        return (
            f"timed out after {self._config.waiting_timeout_s:g} s in {leg.state} "
            f"(SGLANG_DISAGGREGATION_WAITING_TIMEOUT)"
        )
