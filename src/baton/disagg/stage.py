"""The stages of a hand-over: their names, what limits each, and what became of the legs in them.

These names are the ones in errors, log lines and metrics. One with a limit of its own:

    prefill   awaiting_reservation   SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT
              connecting             BATON_DISAGGREGATION_CONNECT_TIMEOUT
              computing              the decode leg's awaiting_kv, which cancels it
              writing                BATON_DISAGGREGATION_STALL_TIMEOUT, without progress
              draining               none frees blocks; said after ..._RELEASE_WARNING
    decode    queued_for_blocks      SGLANG_DISAGGREGATION_WAITING_TIMEOUT
              awaiting_kv            SGLANG_DISAGGREGATION_WAITING_TIMEOUT, again from zero
              quarantined            none frees blocks; said after ..._RELEASE_WARNING

Elsewhere: the limits' values (config.py), the moves between stages (prefill_leg.py, decode.py).
"""

import enum
from collections import Counter

import msgspec

from baton.core.request import Finish, FinishReason
from baton.messages.engine import HandoverStats, StageSeconds


class HandoverStage(enum.StrEnum):
    AWAITING_RESERVATION = "awaiting_reservation"
    CONNECTING = "connecting"
    COMPUTING = "computing"
    WRITING = "writing"
    DRAINING = "draining"
    QUEUED_FOR_BLOCKS = "queued_for_blocks"
    AWAITING_KV = "awaiting_kv"
    QUARANTINED = "quarantined"


class HandoverTally:
    """Counts what leaves each stage, and how. All of it only grows."""

    def __init__(self) -> None:
        self._failures: Counter[tuple[str, int]] = Counter()
        self._num_left: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._overdue: Counter[str] = Counter()

    def left(self, stage: HandoverStage, seconds: float) -> None:
        self._num_left[stage.value] += 1
        self._seconds[stage.value] += seconds  # type: ignore[assignment]

    def failed(self, stage: HandoverStage, finish: Finish) -> None:
        if finish.reason is FinishReason.ERROR:
            self._failures[stage.value, finish.status] += 1

    def overdue(self, stage: HandoverStage) -> None:
        """Blocks wait longer for their release than they should."""
        self._overdue[stage.value] += 1

    def stats(self) -> HandoverStats:
        return HandoverStats(
            total_failures=[(stage, str(s), n) for (stage, s), n in self._failures.items()],
            total_stages={
                stage: StageSeconds(count, self._seconds[stage])
                for stage, count in self._num_left.items()
            },
            total_overdue=dict(self._overdue),
        )


def at_stage(finish: Finish, stage: HandoverStage, peer: str, seconds: float) -> Finish:
    """An error with the stage that it ended, in words and as a field; others as they are."""
    if finish.reason is not FinishReason.ERROR:
        return finish
    where = f"stage {stage} for {seconds:.1f} s, {peer}"
    message = f"{finish.message} ({where})"
    return msgspec.structs.replace(finish, message=message, stage=finish.stage or stage.value)
