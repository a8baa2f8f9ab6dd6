"""One leg of the prefill side, and the life it may have.

    AWAITING_RESERVATION ─> COMPUTING ─> WRITING ─> (delivered)
              └──────────────────┴──────────┴─────> DRAINING ─> (failed)

Elsewhere: what makes it move (prefill.py), reservations without a leg (reservations.py).
"""

from dataclasses import dataclass, field

from baton.core.request import Finish
from baton.disagg.stage import HandoverStage
from baton.engine.sequence import Sequence
from baton.messages.handover import HandoverMessage, KvFailed, KvReserved
from baton.transfer.protocol import Ticket, TicketState

Pair = tuple[int, int]  # (bootstrap_room, sample_index): what both legs of a request share

_LEGAL = {
    HandoverStage.AWAITING_RESERVATION: {HandoverStage.COMPUTING},
    HandoverStage.COMPUTING: {HandoverStage.WRITING, HandoverStage.DRAINING},
    HandoverStage.WRITING: {HandoverStage.DRAINING},
    HandoverStage.DRAINING: set(),
}


@dataclass
class Reservation:
    """Decode's blocks for one prompt, and who to answer."""

    message: KvReserved
    peer_key: str
    deadline_s: float

    def failure(self, finish: Finish) -> KvFailed:
        return KvFailed(
            transfer_id=self.message.transfer_id,
            reason=f"prefill: {finish.message}",
            status=finish.status,
            stage=finish.stage,
        )


@dataclass
class PrefillLeg:
    pair: Pair
    sequence: Sequence
    since_s: float
    """When it came to its state."""
    state: HandoverStage = HandoverStage.AWAITING_RESERVATION
    reservation: Reservation | None = None
    num_posted_blocks: int = 0
    tickets: list[Ticket] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    """Of the blocks posted so far, if decode wants them."""
    last_word: tuple[str, HandoverMessage] | None = None
    """Whom to tell, and what, when no write is pending any more."""
    is_overdue: bool = False
    """It has been said that draining takes too long."""

    def move_to(self, state: HandoverStage, now_s: float) -> None:
        assert state in _LEGAL[self.state], f"{self.sequence.request_id}: {self.state} -> {state}"
        self.state, self.since_s = state, now_s

    @property
    def transfer_id(self) -> str | None:
        """None before decode has reserved."""
        return self.reservation.message.transfer_id if self.reservation is not None else None

    @property
    def peer_key(self) -> str | None:
        return self.reservation.peer_key if self.reservation is not None else None

    @property
    def pending_writes(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.state is TicketState.PENDING]

    @property
    def drain_holder(self) -> str:
        # With its number: the same request id may come again, and fail again, before this is over.
        return f"draining:{self.sequence.order}:{self.sequence.request_id}"
