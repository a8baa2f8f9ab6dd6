"""The engine of one rank: requests in, one step at a time, tokens out.

Invariant: every sequence that `accept` takes in leaves by `_finish`, with its one terminal output
and its blocks released. A prefill leg is held when its prompt is computed, until its role calls
`finish_delivered` or `end`; roles (disagg/) drive hand-overs, this module knows no peer.
Elsewhere: who runs (scheduler.py), the forward pass (runner.py), the process around it (launch/).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.core.profile import ProfileNotes, StepRecord
from baton.core.request import EngineRequest, Finish, FinishReason
from baton.core.timeline import Timeline
from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner, SpanLogits
from baton.engine.sampler import NO_TOKEN, NextToken, Sampler
from baton.engine.scheduler import ScheduledSpan, Scheduler, StepPlan
from baton.engine.sequence import Sequence, SequenceState
from baton.engine.step_pace import StepPace
from baton.engine.step_record import StepTimes, record_step
from baton.kernels import _native
from baton.kvcache.block_pool import BlockPool
from baton.messages.engine import BlockLedger, TokenLogprob, TokenOutput
from baton.obs.profile import Profile
from baton.obs.recent import Recent

MAX_PROMPT_LOGPROBS = 2**21
"""Entries for one prompt. They cross to the api process in one frame (ipc/framing.py), where each
takes up to 14 bytes."""

_Chosen = tuple[int, TokenLogprob | None]  # a token, and its logprob where it is wanted


@dataclass
class EngineCounters:
    """Totals since start; they only grow."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    verified_blocks: int = 0
    damaged_blocks: int = 0
    finished: Counter[str] = field(default_factory=Counter)


class EngineCore:
    """Scheduler, runner and sampler around one block pool."""

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        pool: BlockPool,
        *,
        context_length: int,
        vocab_size: int,
        clock: Clock,
        kernels: _native.Kernels | None = None,
        op_seconds: Callable[[], dict[str, float]] = dict,
    ):
        """`kernels`: whose threads choose the tokens; None: the calling thread alone does.
        `op_seconds`: time spent in each op since the start, asked for while a profile runs."""
        self.pool = pool
        self.block_size = config.page_size
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.counters = EngineCounters()
        self.on_progress: Callable[[Sequence], None] = lambda sequence: None
        """Called when a prefill leg has (more) computed tokens."""
        self.on_failure: Callable[[Sequence, Finish], None] = self.end
        """Called when a sequence cannot go on; whoever is called ends it."""
        self.scheduler = Scheduler(
            pool,
            block_size=config.page_size,
            max_running_requests=config.max_running_requests,
            max_tokens_per_step=config.chunked_prefill_size,
        )
        self._slack_s = config.prompt_slack_ms / 1000
        self._runner = runner
        self._sampler = Sampler(kernels)
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        self._prompt_logprobs: dict[str, list[TokenLogprob]] = {}
        self._outputs: list[TokenOutput] = []
        self._num_seen = 0
        self._ended: Recent[Timeline] = Recent()
        self._op_seconds = op_seconds
        self._profile: Profile | None = None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def accept(self, request: EngineRequest) -> Sequence | None:
        """Take a request in, in state NEW. None: it was refused and its terminal output is
        already among the outputs."""
        try:
            self._check(request)
        except RequestError as error:
            finish = Finish(reason=FinishReason.ERROR, message=error.message, status=error.status)
            self.refuse(request.request_id, finish)
            return None
        sequence = Sequence(request, self._num_seen, self._clock.now_s())
        if request.handover is not None:
            sequence.timeline.pair = f"{request.handover.room}:{request.handover.sample_index}"
        self._num_seen += 1
        self._sequences[request.request_id] = sequence
        return sequence

    def refuse(self, request_id: str, finish: Finish) -> None:
        """Give a request that was never accepted its terminal output."""
        self.counters.finished[finish.reason.value] += 1
        self._outputs.append(TokenOutput(request_id=request_id, finish=finish))

    def submit(self, request: EngineRequest) -> None:
        """Accept a request that runs here from beginning to end."""
        sequence = self.accept(request)
        if sequence is not None:
            self.queue(sequence, sequence.timeline.start_s)

    def queue(self, sequence: Sequence, now_s: float) -> None:
        """Let an accepted sequence wait for its first step."""
        scheduler = self.scheduler
        if self._slack_s:
            # Cached blocks may be gone when its turn comes; then it has only been early.
            hits = self.pool.lookup(sequence.hashes(self.block_size))
            num_uncached = sequence.num_tokens - len(hits) * self.block_size
            sequence.due_s = now_s + self._slack_s * num_uncached
        why = f"{scheduler.num_waiting} ahead, {scheduler.num_running} running"
        sequence.timeline.enter("queue", now_s, why)
        scheduler.add(sequence)

    def find(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def end(self, sequence: Sequence, finish: Finish) -> None:
        """End a sequence from outside: abort, deadline, lost peer. Its blocks are released: rename
        their holder first where somebody may still read or write them."""
        if sequence.state in (SequenceState.WAITING, SequenceState.RUNNING):
            self.scheduler.remove(sequence)
        self._finish(sequence, finish)

    def step(self, pace: StepPace | None = None, max_rows: int | None = None) -> bool:
        """Compute one plan. Outputs are collected for `take_outputs`. False: nothing can run until
        somebody gives blocks back. `pace` is told what the step took; it has at most `max_rows` if
        there are streams among them (step_pace.py)."""
        started_s = self._clock.now_s()
        plan = self.scheduler.schedule(max_rows)
        scheduled_s = self._clock.now_s()
        self.counters.preemptions += len(plan.preempted)
        for sequence in plan.preempted:
            # Those of a prompt that is read again from its start are collected again, too.
            self._prompt_logprobs.pop(sequence.request_id, None)
            sequence.timeline.enter("queue", scheduled_s, "preempted: no free KV block")
        for sequence in plan.admitted:
            again = sequence.num_output_tokens > 0
            sequence.timeline.enter("recompute" if again else "prefill", scheduled_s)
            self.counters.cached_tokens += sequence.num_computed_tokens
            if sequence.is_prefill_leg and sequence.num_computed_tokens > 0:
                self.on_progress(sequence)
        if not plan.spans:
            return bool(plan.preempted)
        is_profiled = self._profile is not None and not self._profile.is_full
        ops_before = self._op_seconds() if is_profiled else None
        results = self._runner.run(plan.spans)
        computed_s = self._clock.now_s()
        chosen = self._choose(plan.spans, results)
        chosen_s = self._clock.now_s()
        times = StepTimes(started_s, scheduled_s, computed_s, chosen_s)
        # Before sequences move on: what they were when the step ran is what it was for.
        record = self._record(plan, times, ops_before) if ops_before is not None else None
        for span, logits in zip(plan.spans, results, strict=True):
            sequence = span.sequence
            sequence.num_computed_tokens += span.num_tokens
            if sequence.num_output_tokens == 0:
                self.counters.prompt_tokens += span.num_tokens
                sequence.timeline.computed(scheduled_s, chosen_s, span.num_tokens, len(plan.spans))
            self._seal(sequence)
            self._collect_prompt_logprobs(sequence, logits)
            if sequence.request_id in chosen:
                self._extend(sequence, *chosen[sequence.request_id])
            elif sequence.is_prefill_leg:
                self.on_progress(sequence)
        ended_s = self._clock.now_s()
        self.counters.steps += 1
        self.counters.step_seconds += ended_s - started_s
        if pace is not None:
            _note_pace(pace, plan, ended_s - started_s)
        if record is not None and self._profile is not None:
            record.end_s = ended_s
            self._profile.add_step(record)
        return True

    def _record(self, plan: StepPlan, times: StepTimes, ops_before: dict[str, float]) -> StepRecord:
        return record_step(
            plan.spans, times, ops_before, self._op_seconds(), self.scheduler.num_waiting
        )

    def start_profile(self, num_steps: int | None) -> None:
        """Note down every step and request from now on; what was noted before is forgotten."""
        self._profile = Profile(self._clock.now_s(), num_steps)

    def stop_profile(self) -> ProfileNotes | None:
        """What was noted; None when no profile runs."""
        profile, self._profile = self._profile, None
        if profile is None:
            return None
        running = [sequence.timeline for sequence in self._sequences.values()]
        return profile.notes(running, self._clock.now_s())

    def timeline(self, request_id: str) -> Timeline | None:
        """Of a request that runs, or is among the last that ended."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            return sequence.timeline
        return self._ended.find(lambda each: each.request_id == request_id)

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def adopt(
        self,
        sequence: Sequence,
        token_id: int,
        logprob: TokenLogprob | None,
    ) -> None:
        """Go on with a sequence whose whole prompt's KV, and next token, came from elsewhere."""
        sequence.num_computed_tokens = sequence.num_prompt_tokens
        sequence.timeline.enter("decode", self._clock.now_s())
        self._seal(sequence)
        self.scheduler.adopt(sequence)
        self._append(sequence, token_id, logprob)

    def finish_delivered(
        self, sequence: Sequence, transferred_tokens: int = 0, transfer_s: float = 0.0
    ) -> None:
        """End a prefill leg whose KV has gone over: its one token is its whole answer."""
        assert sequence.held_output is not None
        finish = Finish(reason=FinishReason.LENGTH)
        output = msgspec.structs.replace(
            sequence.held_output,
            finish=finish,
            transferred_tokens=transferred_tokens,
            transfer_s=transfer_s,
        )
        self._outputs.append(output)
        self._finish(sequence, finish, emit=False)

    def ledger(self) -> BlockLedger:
        pool = self.pool
        return BlockLedger(
            num_blocks=pool.num_blocks,
            num_free=pool.num_free,
            num_cached=pool.num_cached,
            num_in_use=pool.num_in_use,
        )

    def _check(self, request: EngineRequest) -> None:
        request_id, num_prompt = request.request_id, len(request.prompt_token_ids)
        if request_id in self._sequences:
            raise RequestError(f"rid {request_id!r} is already running", param="rid")
        if num_prompt == 0:
            raise RequestError("the prompt has no tokens", param="prompt")
        if not all(0 <= token_id < self.vocab_size for token_id in request.prompt_token_ids):
            raise RequestError(
                f"input_ids has a token outside 0 to {self.vocab_size - 1}", param="input_ids"
            )
        request.sampling.validate(self.vocab_size)
        num_total = request.num_prompt_tokens + request.sampling.max_new_tokens
        if num_total > self.context_length:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and max_new_tokens is "
                f"{request.sampling.max_new_tokens}, together above the context length of "
                f"{self.context_length}",
                param="max_new_tokens",
                code="context_length_exceeded",
            )
        self._check_prompt_logprobs(request)
        pool_tokens = self.pool.num_blocks * self.block_size
        if num_total > pool_tokens:
            raise RequestError(
                f"the request needs room for {num_total} tokens and the KV pool holds "
                f"{pool_tokens}; shorten it or raise --max-total-tokens",
                param="max_new_tokens",
                code="kv_pool_exceeded",
            )

    def _check_prompt_logprobs(self, request: EngineRequest) -> None:
        if request.prompt_logprobs_start is None:
            return
        num_positions = len(request.prompt_token_ids) - request.prompt_logprobs_start
        num_entries = num_positions * (1 + (request.sampling.num_top_logprobs or 0))
        if num_entries > MAX_PROMPT_LOGPROBS:
            raise RequestError(
                f"the prompt asks for {num_entries} logprobs of its tokens; at most "
                f"{MAX_PROMPT_LOGPROBS} fit one answer: ask for fewer top logprobs or from a "
                "later position",
                param="logprob_start_len",
            )

    def _seal(self, sequence: Sequence) -> None:
        for block, block_hash in sequence.newly_full_blocks(self.block_size):
            self.pool.seal(block, block_hash)

    def _collect_prompt_logprobs(self, sequence: Sequence, logits: SpanLogits) -> None:
        if sequence.request.prompt_logprobs_start is None or sequence.num_output_tokens > 0:
            return
        num_top = sequence.request.sampling.num_top_logprobs or 0
        collected = self._prompt_logprobs.setdefault(sequence.request_id, [])
        if not collected and sequence.request.prompt_logprobs_start == 0:
            collected.append(TokenLogprob(token_id=sequence.token_ids[0], logprob=None))
        first = logits.prompt_start
        token_ids = sequence.token_ids[first : first + len(logits.prompt_NV)]
        num_tops = [num_top] * len(token_ids)
        collected += self._sampler.logprobs(list(logits.prompt_NV), token_ids, num_tops)

    def _choose(self, spans: list[ScheduledSpan], results: list[SpanLogits]) -> dict[str, _Chosen]:
        """By request id: the next token of each sequence that is computed to its end."""
        wanted = {
            span.sequence.request_id: NextToken(
                logits.next_V,
                span.sequence.request.sampling,
                span.sequence.token_ids,
                span.sequence.request.num_prompt_tokens,
            )
            for span, logits in zip(spans, results, strict=True)
            if logits.next_V is not None
        }
        token_ids = dict(zip(wanted, self._sampler.choose(list(wanted.values())), strict=True))
        logprobs = self._logprobs(wanted, token_ids)
        return {name: (token_id, logprobs.get(name)) for name, token_id in token_ids.items()}

    def _logprobs(
        self, wanted: dict[str, NextToken], token_ids: dict[str, int]
    ) -> dict[str, TokenLogprob]:
        """Of those that want them and have a token."""
        num_tops = {
            name: each.params.num_top_logprobs
            for name, each in wanted.items()
            if each.params.num_top_logprobs is not None and token_ids[name] != NO_TOKEN
        }
        logprobs = self._sampler.logprobs(
            [wanted[name].logits for name in num_tops],
            [token_ids[name] for name in num_tops],
            list(num_tops.values()),
        )
        return dict(zip(num_tops, logprobs, strict=True))

    def _extend(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> None:
        if token_id == NO_TOKEN:
            message = (
                "the model computed no usable logits for this request (NaN or infinite); "
                "check its weights"
            )
            finish = Finish(reason=FinishReason.ERROR, message=message, status=500)
            self.on_failure(sequence, finish)
        elif sequence.is_prefill_leg:
            self._hold(sequence, token_id, logprob)
        else:
            self._append(sequence, token_id, logprob)

    def _hold(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> None:
        """A prefill leg is computed; what is left is to write it to its decode worker."""
        self.scheduler.remove(sequence)
        sequence.move_to(SequenceState.HELD)
        sequence.timeline.enter("writing", self._clock.now_s())
        sequence.held_output = self._output(sequence, token_id, logprob)
        self.on_progress(sequence)

    def _append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> None:
        output = self._output(sequence, token_id, logprob)
        if sequence.timeline.phases[-1].name != "decode":
            sequence.timeline.enter("decode", self._clock.now_s())
        sequence.token_ids.append(token_id)
        self.counters.generated_tokens += 1
        finish = self._reason_to_finish(sequence, token_id)
        if finish is None:
            self._outputs.append(output)
            return
        self.scheduler.remove(sequence)
        self._outputs.append(msgspec.structs.replace(output, finish=finish))
        self._finish(sequence, finish, emit=False)

    def _output(
        self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None
    ) -> TokenOutput:
        return TokenOutput(
            request_id=sequence.request_id,
            token_ids=[token_id],
            logprobs=None if logprob is None else [logprob],
            prompt_logprobs=self._prompt_logprobs.pop(sequence.request_id, None),
            num_cached_tokens=sequence.num_cached_tokens,
        )

    def _reason_to_finish(self, sequence: Sequence, token_id: int) -> Finish | None:
        params = sequence.request.sampling
        if token_id in params.stop_token_ids and sequence.num_made_tokens > params.min_new_tokens:
            return Finish(reason=FinishReason.STOP, matched_token=token_id)
        if sequence.num_made_tokens >= params.max_new_tokens:
            return Finish(reason=FinishReason.LENGTH)
        return None

    def _finish(self, sequence: Sequence, finish: Finish, emit: bool = True) -> None:
        sequence.move_to(SequenceState.FINISHED)
        del self._sequences[sequence.request_id]
        self._prompt_logprobs.pop(sequence.request_id, None)
        self.pool.release(sequence.holder)
        self.counters.finished[finish.reason.value] += 1
        self._end_timeline(sequence, finish)
        if emit:
            self._outputs.append(TokenOutput(request_id=sequence.request_id, finish=finish))

    def _end_timeline(self, sequence: Sequence, finish: Finish) -> None:
        timeline = sequence.timeline
        timeline.num_prompt_tokens = sequence.num_prompt_tokens
        timeline.num_cached_tokens = sequence.num_cached_tokens
        timeline.num_output_tokens = sequence.num_output_tokens
        outcome = f"{finish.reason.value}: {finish.message}" if finish.message else finish.reason
        timeline.end(self._clock.now_s(), str(outcome))
        self._ended.add(timeline)
        if self._profile is not None:
            self._profile.add_request(timeline)


def _note_pace(pace: StepPace, plan: StepPlan, seconds: float) -> None:
    num_rows = sum(span.num_tokens for span in plan.spans)
    if num_rows > len(plan.spans):
        pace.note(num_rows, seconds)
