"""What a profile keeps of one step: pure, and called only while a profile runs.

Elsewhere: the step itself (core.py), the record (core/profile.py).
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

from baton.core.profile import StepRecord
from baton.engine.scheduler import ScheduledSpan
from baton.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepTimes:
    """When each part of a step was over."""

    start_s: float
    scheduled_s: float
    computed_s: float
    chosen_s: float


def record_step(
    spans: Many[ScheduledSpan],
    times: StepTimes,
    ops_before: dict[str, float],
    ops_after: dict[str, float],
    num_waiting: int,
) -> StepRecord:
    """`spans` as they were scheduled: none of their sequences has moved on yet."""
    prompts = [
        (span.sequence.request_id, span.num_tokens) for span in spans if not _decodes(span.sequence)
    ]
    return StepRecord(
        start_s=times.start_s,
        scheduled_s=times.scheduled_s,
        computed_s=times.computed_s,
        chosen_s=times.chosen_s,
        end_s=times.chosen_s,
        prompts=prompts,
        decodes=[span.sequence.request_id for span in spans if _decodes(span.sequence)],
        ops=[(op, seconds - ops_before[op]) for op, seconds in ops_after.items()],
        given=[_named(span.sequence) for span in spans if _gives(span)],
        taken=[_named(span.sequence) for span in spans if _takes(span.sequence)],
        num_waiting=num_waiting,
    )


def _decodes(sequence: Sequence) -> bool:
    return sequence.num_output_tokens > 0 and sequence.num_uncomputed_tokens == 1


def _gives(span: ScheduledSpan) -> bool:
    """Its prompt is computed with this step, for another worker."""
    sequence = span.sequence
    return sequence.is_prefill_leg and sequence.num_uncomputed_tokens == span.num_tokens


def _takes(sequence: Sequence) -> bool:
    """Its prompt was computed by another worker, and this is the first step after it."""
    is_handed_over = sequence.request.handover is not None and not sequence.is_prefill_leg
    return is_handed_over and sequence.num_output_tokens == 1 and _decodes(sequence)


def _named(sequence: Sequence) -> tuple[str, str]:
    return sequence.timeline.pair, sequence.request_id
