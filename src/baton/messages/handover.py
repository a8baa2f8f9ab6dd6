"""What the engines of a prefill and a decode worker say to each other about one hand-over.

    decode                                prefill
      │ ── KvReserved (blocks, windows) ──> │   may arrive before or after the request itself
      │ <═══════ one-sided writes ═════════ │
      │ <────────── KvDelivered ─────────── │   first token; all bytes are in place
    or
      │ <─────────── KvFailed ───────────── │   nothing more will be written
    or
      │ ──────────── KvCancel ────────────> │
      │ <────────── KvReleased ──────────── │   nothing more will be written

Every message names its hand-over by `transfer_id`, which the decode engine makes from its own id
(new with each life) and the lease's `generation`, and never uses twice. All are idempotent: one
that comes twice, or about an unknown or ended transfer, is answered harmlessly or dropped.
Elsewhere: who does what on each (disagg/), the bytes (transfer/).
"""

from typing import Annotated

import msgspec

from baton.messages.engine import TokenLogprob
from baton.messages.regions import RegionDescriptor

# Bounds are checked when a frame is decoded: one that breaks them ends its connection, and what
# reaches the roles can be used as an index or echoed in an answer.
Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(max_length=128)]
Checksums = Annotated[list[Count], msgspec.Meta(max_length=1 << 20)]
BlockIds = Annotated[list[Count], msgspec.Meta(max_length=1 << 20)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    transfer_id: Name


class KvReserved(_Message, frozen=True, kw_only=True):
    """Decode has blocks for this prompt. Prompt block i, for i >= num_cached_blocks, goes to decode
    block `block_ids[i - num_cached_blocks]`. `wants_checksums`: KvDelivered is to have them.
    `generation`: of this lease, from 1 on, larger in each reservation of a decode engine's life
    than in those before; 0 is not checked."""

    generation: Count = 0
    room: Count
    sample_index: Count
    layout_hash: Name
    num_prompt_tokens: Count
    prompt_digest: bytes
    num_cached_blocks: Count
    block_ids: BlockIds
    regions: list[RegionDescriptor]
    wants_checksums: bool = False


class KvCancel(_Message, frozen=True, kw_only=True):
    """Decode gives the lease up; its `generation` is over even if the reservation comes later."""

    reason: str
    generation: Count = 0


class KvDelivered(_Message, frozen=True, kw_only=True):
    """All blocks are in place. `checksums`: if decode wants them one for each of
    KvReserved.block_ids, in their order (kvcache/checksum.py), else none."""

    token_id: Count
    logprob: TokenLogprob | None = None
    num_blocks: Count
    num_cached_tokens: Count
    checksums: Checksums = []


class KvFailed(_Message, frozen=True, kw_only=True):
    """The prefill leg ended without delivering. `status` is an HTTP status for the client, `stage`
    where it ended (disagg/stage.py)."""

    reason: str
    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    stage: Name = ""


class KvReleased(_Message, frozen=True, kw_only=True):
    pass


HandoverMessage = KvReserved | KvCancel | KvDelivered | KvFailed | KvReleased


class EngineHello(msgspec.Struct, frozen=True, kw_only=True):
    """First message on a new control connection, once both have proven the cluster's secret.
    `writer_ids` are the names under which its transports write into a peer's pool."""

    engine_id: str
    writer_ids: list[str]
