"""From a step plan to logits: builds the model's batch and reads back the rows that were asked for.

Elsewhere: which tokens are in the plan (scheduler.py), what is done with logits (core.py).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.engine.scheduler import ScheduledSpan
from baton.engine.sequence import Sequence
from baton.kernels.interface import ForwardBatch, Logits, SequenceSpan

_WARM_UP_BLOCKS = 4


class Model(Protocol):
    """What the runner needs of a model: one forward pass over the paged pool."""

    def forward(self, batch: ForwardBatch, kv_pool: Any) -> Logits:
        """Returns logits, len(batch.logit_rows) × V, valid until the next call."""
        ...


@dataclass(frozen=True)
class SpanLogits:
    """Logits of one span, valid until the next step. `prompt_NV[i]` predicts prompt position
    `prompt_start + i`; `next_V` predicts the token after the sequence, None when its prompt is
    not finished."""

    next_V: npt.NDArray[np.float32] | None
    prompt_start: int
    prompt_NV: npt.NDArray[np.float32]


class ModelRunner:
    """Runs plans on one model and its KV pool (what the model's `kv_view` made of the bytes)."""

    def __init__(self, model: Model, kv_pool: Any, block_size: int):
        self._model = model
        self._kv_pool = kv_pool
        self._block_size = block_size

    def warm_up(self, num_blocks: int, context_length: int) -> None:
        """Run a prompt and a token, so that the first request does not pay for what libraries build
        on first use. Only while nobody holds a block: it writes to the first few."""
        num_blocks = min(num_blocks, _WARM_UP_BLOCKS)
        num_tokens = min(num_blocks * self._block_size, context_length)
        sampling = SamplingParams(max_new_tokens=1)
        request = EngineRequest(
            request_id="warm-up", prompt_token_ids=[0] * num_tokens, sampling=sampling
        )
        sequence = Sequence(request, order=0)
        sequence.block_ids = list(range(num_blocks))
        for num_scheduled in (num_tokens - 1, 1):
            if num_scheduled > 0:
                self.run([ScheduledSpan(sequence, num_scheduled)])
                sequence.num_computed_tokens += num_scheduled

    def run(self, spans: list[ScheduledSpan]) -> list[SpanLogits]:
        """One forward pass; results in the order of `spans`."""
        batch, wanted = self._build(spans)
        logits = self._model.forward(batch, self._kv_pool)
        results, row = [], 0
        for prompt_start, num_prompt, has_next in wanted:
            next_row = logits[row + num_prompt] if has_next else None
            results.append(SpanLogits(next_row, prompt_start, logits[row : row + num_prompt]))
            row += num_prompt + int(has_next)
        return results

    def _build(
        self, spans: list[ScheduledSpan]
    ) -> tuple[ForwardBatch, list[tuple[int, int, bool]]]:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        batch_spans: list[SequenceSpan] = []
        logit_rows: list[int] = []
        wanted: list[tuple[int, int, bool]] = []
        for span in spans:
            sequence, start = span.sequence, len(token_ids)
            first = sequence.num_computed_tokens
            end = first + span.num_tokens
            token_ids.extend(sequence.token_ids[first:end])
            positions.extend(range(first, end))
            slots.extend(self._slots(sequence.block_ids, first, end))
            blocks = sequence.block_ids[: -(-end // self._block_size)]
            batch_spans.append(SequenceSpan(start, span.num_tokens, end, blocks))
            predicted = _wanted_prompt_positions(span)
            logit_rows.extend(start + position - 1 - first for position in predicted)
            has_next = end == sequence.num_tokens
            if has_next:
                logit_rows.append(start + span.num_tokens - 1)
            wanted.append((predicted.start, len(predicted), has_next))
        batch = ForwardBatch(
            token_ids_T=np.array(token_ids, dtype=np.int64),
            positions_T=np.array(positions, dtype=np.int64),
            slots_T=np.array(slots, dtype=np.int64),
            spans=batch_spans,
            logit_rows=np.array(logit_rows, dtype=np.int64),
        )
        return batch, wanted

    def _slots(self, block_ids: list[int], first: int, end: int) -> list[int]:
        size = self._block_size
        return [
            block_ids[position // size] * size + position % size for position in range(first, end)
        ]


def _wanted_prompt_positions(span: ScheduledSpan) -> range:
    """Prompt positions whose logits this span's rows give: row p predicts position p + 1."""
    sequence = span.sequence
    start = sequence.request.prompt_logprobs_start
    first = sequence.num_computed_tokens
    if start is None or sequence.num_output_tokens > 0:
        return range(first, first)
    low = max(start, first + 1)
    high = min(first + span.num_tokens + 1, sequence.num_prompt_tokens)
    return range(low, max(low, high))
