"""A request as the engine sees it, and how it ends.

Invariant: every request that the engine accepts gets exactly one `Finish`, on every path.
Elsewhere: HTTP bodies (api/), scheduling state of a running sequence (engine/sequence.py).
"""

import enum
import re
from typing import Literal

import msgspec

from baton.core.sampling import SamplingParams

Role = Literal["null", "prefill", "decode"]
"""SGLang's `--disaggregation-mode`: "null" is a unified worker."""

FAKE_BOOTSTRAP_HOST = "2.2.2.2"
"""SGLang's mark for a health probe of a PD worker: run it here, hand nothing over."""

DEFAULT_BOOTSTRAP_PORT = 8998
MAX_BOOTSTRAP_ROOM = 2**63 - 1

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def is_sane_request_id(text: str) -> bool:
    """Whether a client's X-Request-ID is used as it is: router and workers must agree, or their
    log lines could not be joined."""
    return _REQUEST_ID.fullmatch(text) is not None


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The one terminal event of a request.

    `matched_token` is the stop token that ended it (STOP only). `message` and `status` (an HTTP
    status) say why for ABORT and ERROR. `stage`: of the hand-over that failed, "" otherwise.
    """

    reason: FinishReason
    matched_token: int | None = None
    message: str = ""
    status: int = 200
    stage: str = ""


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request's KV comes from or goes to, on a prefill or decode worker.

    (room, sample_index) names the pair's two legs: rooms repeat for n > 1. `peer_address` is the
    prefill engine's control endpoint "host:port", set on the decode leg only.
    """

    room: int
    sample_index: int = 0
    peer_address: str = ""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate.

    `num_resumed_tokens`: so many at the end of `prompt_token_ids` are output that another worker
    made; what follows is chosen as if it had been made here.
    `prompt_logprobs_start`: first prompt position whose logprob is wanted, None for none.
    `handover` is None on a unified worker and for health probes. Lower `priority` values run first
    (0 is the default).
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    prompt_logprobs_start: int | None = None
    cache_salt: str = ""
    handover: Handover | None = None
    num_resumed_tokens: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Without those that are output."""
        return len(self.prompt_token_ids) - self.num_resumed_tokens

    @property
    def resumed_token_ids(self) -> list[int]:
        return self.prompt_token_ids[self.num_prompt_tokens :]
