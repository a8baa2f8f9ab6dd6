"""Legs that ended without delivery while writes were under way: their blocks wait for the writes.

Invariant: the blocks of a leg are released, and the decode side is told that it is over, only when
no write of that leg is pending any more.
Elsewhere: what ends a leg (prefill.py), the decode side of it (quarantine.py).
"""

from collections.abc import Callable, Iterator

from baton.disagg.prefill_leg import PrefillLeg
from baton.disagg.stage import HandoverStage, HandoverTally
from baton.kvcache.block_pool import BlockPool
from baton.messages.handover import HandoverMessage
from baton.obs.logs import event_log

log = event_log("disagg")


class Draining:
    """Of one prefill engine. `send` queues a message to a connected peer."""

    def __init__(
        self,
        pool: BlockPool,
        send: Callable[[str, HandoverMessage], None],
        tally: HandoverTally,
        release_warning_s: float,
    ):
        self._pool = pool
        self._send = send
        self._tally = tally
        self._release_warning_s = release_warning_s
        self._legs: list[PrefillLeg] = []

    def __len__(self) -> int:
        return len(self._legs)

    def __iter__(self) -> Iterator[PrefillLeg]:
        return iter(self._legs)

    def take(self, leg: PrefillLeg, now_s: float) -> None:
        """A leg that has ended; without pending writes it is over at once."""
        seconds = now_s - leg.since_s
        self._tally.left(leg.state, seconds)
        if leg.pending_writes:
            leg.move_to(HandoverStage.DRAINING, now_s)
            self._legs.append(leg)
        else:
            self._release(leg)

    def lose_peer(self, key: str) -> None:
        """Nobody is left to be told; the blocks wait all the same."""
        for leg in self._legs:
            if leg.last_word is not None and leg.last_word[0] == key:
                leg.last_word = None

    def tick(self, now_s: float) -> None:
        for leg in list(self._legs):
            seconds = now_s - leg.since_s
            if not leg.pending_writes:
                self._legs.remove(leg)
                self._tally.left(HandoverStage.DRAINING, seconds)
                self._release(leg)
            elif seconds >= self._release_warning_s and not leg.is_overdue:
                self._say_overdue(leg, seconds)

    def _release(self, leg: PrefillLeg) -> None:
        self._pool.release(leg.drain_holder)
        if leg.last_word is not None:
            self._send(*leg.last_word)

    def _say_overdue(self, leg: PrefillLeg, seconds: float) -> None:
        leg.is_overdue = True
        self._tally.overdue(HandoverStage.DRAINING)
        log.warning(
            "writes of an ended hand-over are still pending; its blocks stay set aside",
            stage=HandoverStage.DRAINING.value,
            peer=leg.peer_key,
            transfer_id=leg.transfer_id,
            seconds=round(seconds, 1),
            limit="BATON_DISAGGREGATION_RELEASE_WARNING",
        )
