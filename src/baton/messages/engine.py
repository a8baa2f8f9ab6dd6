"""What crosses between a worker's api process and its engine process.

Invariant: for every `Submit` the engine sends exactly one `TokenOutput` whose `finish` is set,
and nothing for that request id afterwards.
Elsewhere: framing and sockets (ipc/), messages between engines (messages/handover.py).
"""

import msgspec

from baton.core.profile import ProfileNotes
from baton.core.request import EngineRequest, Finish, Role
from baton.core.timeline import Timeline


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Submit(_Message, frozen=True, kw_only=True):
    request: EngineRequest


class Abort(_Message, frozen=True, kw_only=True):
    """End a request now; unknown ids are ignored (it may just have finished)."""

    request_id: str
    reason: str = "aborted by the client"


class FlushCache(_Message, frozen=True, kw_only=True):
    """Forget all cached prefixes; answered by FlushCacheDone."""

    call_id: int


class Shutdown(_Message, frozen=True, kw_only=True):
    """End the engine process. What still runs fails when the api process sees it end."""


class StartProfile(_Message, frozen=True, kw_only=True):
    """Note down what is done from now on; a profile that runs already begins anew. Answered by
    ProfileStarted. `num_steps`: so many and no more, None until StopProfile."""

    call_id: int
    num_steps: int | None = None


class StopProfile(_Message, frozen=True, kw_only=True):
    """Answered by ProfilePart, one or several."""

    call_id: int


class Explain(_Message, frozen=True, kw_only=True):
    """Where did these requests spend their time? Answered by Explained."""

    call_id: int
    request_ids: list[str]


ToEngine = Submit | Abort | FlushCache | StartProfile | StopProfile | Explain | Shutdown


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Logprob of one token, natural log of the model's own distribution (temperature 1, before
    penalties). `logprob` is None for the first prompt token, which nothing predicts.
    `top`: (token id, logprob) of the best alternatives, best first."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = []


class TokenOutput(_Message, frozen=True, kw_only=True, tag=False):
    """New tokens of one request. `logprobs` has one entry per token when asked for.
    `prompt_logprobs` comes with the first output only. `transferred_tokens`: of a prefill leg, how
    many tokens' KV it wrote to its decode worker, and `transfer_s` how long that went on after the
    prompt was computed."""

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    num_cached_tokens: int = 0
    finish: Finish | None = None
    transferred_tokens: int = 0
    transfer_s: float = 0.0


class StepOutputs(_Message, frozen=True, kw_only=True):
    outputs: list[TokenOutput]


class EngineReady(_Message, frozen=True, kw_only=True):
    """The model is loaded. `control_port` is where peers' engines connect (0 on unified)."""

    engine_id: str
    pid: int
    role: Role
    architecture: str
    vocab_size: int
    context_length: int
    block_size: int
    num_blocks: int
    max_running_requests: int
    kv_cache_dtype: str
    layout_hash: str
    control_port: int
    transfer_backends: list[str]


class BlockLedger(msgspec.Struct, frozen=True, kw_only=True):
    """num_free + num_cached + num_in_use == num_blocks. Quarantined blocks count as in use."""

    num_blocks: int
    num_free: int
    num_cached: int
    num_in_use: int


class StageSeconds(msgspec.Struct, frozen=True, array_like=True):
    """How many legs left a stage, and the seconds that they spent in it together."""

    count: int
    seconds: float


class HandoverStats(msgspec.Struct, frozen=True, kw_only=True):
    """Of the hand-over, by stage (disagg/stage.py). `total_failures`: (stage, status, count)."""

    total_failures: list[tuple[str, str, int]] = []
    total_stages: dict[str, StageSeconds] = {}
    total_overdue: dict[str, int] = {}
    num_draining: int = 0
    num_quarantined_blocks: int = 0
    oldest_quarantine_s: float = 0.0


class EngineStats(_Message, frozen=True, kw_only=True):
    """State after a step, sent at most a few times a second and once when the engine falls idle.

    Counters (`total_*`) only grow. `total_refused`: connections that were refused, by channel
    (control, kv) and reason (malformed, secret, layout). `progress_s` is the engine's monotonic
    time of its last finished loop turn: liveness means that this moves.
    """

    progress_s: float
    num_running: int
    num_waiting: int
    num_handover: int
    ledger: BlockLedger
    num_tokens_in_use: int
    total_prompt_tokens: int
    total_cached_tokens: int
    total_generated_tokens: int
    total_preemptions: int
    total_steps: int
    total_step_seconds: float
    total_transferred_bytes: int
    total_transfers: int
    total_transfer_failures: int
    total_transfer_seconds: float
    total_verified_blocks: int
    total_damaged_blocks: int
    total_finished: dict[str, int]
    total_refused: dict[str, dict[str, int]] = {}
    handover: HandoverStats = HandoverStats()


class FlushCacheDone(_Message, frozen=True, kw_only=True):
    call_id: int
    num_blocks_freed: int


class ProfileStarted(_Message, frozen=True, kw_only=True):
    call_id: int


class ProfilePart(_Message, frozen=True, kw_only=True):
    """Notes of a profile, cut so that each part fits a frame. `notes` is None when no profile
    ran."""

    call_id: int
    notes: ProfileNotes | None
    is_last: bool


class Explained(_Message, frozen=True, kw_only=True):
    """Timelines of those that the engine still remembers."""

    call_id: int
    timelines: list[Timeline]


class EngineFailed(_Message, frozen=True, kw_only=True):
    """The engine could not start or met a bug; the process exits after this."""

    message: str


FromEngine = (
    StepOutputs
    | EngineReady
    | EngineStats
    | FlushCacheDone
    | ProfileStarted
    | ProfilePart
    | Explained
    | EngineFailed
)
