"""What the HTTP layer is given, and what it keeps while it runs.

Elsewhere: who builds it (launch/), the engine (engine_client.py).
"""

import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import web

from baton.api.admission import Limits
from baton.api.engine_client import EngineClient
from baton.api.engine_view import snapshot
from baton.api.running import RunningRequests
from baton.api.text import Vocabulary
from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import EngineDead
from baton.core.model_card import ModelCard
from baton.core.request import Role
from baton.core.sampling import MAX_SEED
from baton.core.timeline import Timeline
from baton.obs.metrics import WorkerMetrics
from baton.obs.recent import Recent
from baton.tokenizer.tokenizer import Tokenizer

ENGINE_TYPES: Final[dict[Role, str]] = {
    "null": "unified",
    "prefill": "prefill",
    "decode": "decode",
}
WEIGHT_VERSION: Final = "default"


@dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """Limits and defaults of the HTTP layer. `api_key` None: everybody may ask."""

    max_body_bytes: int = 32 * 1024 * 1024
    api_key: str | None = None
    max_choices: int = 128
    max_samples: int = 1024
    default_generate_tokens: int = 128
    default_completion_tokens: int = 16
    health_generate_timeout_s: float = 20.0


class PrefillResolver(Protocol):
    """Asks a bootstrap server for the prefill engine's control address, "ip:port".

    Raises TransferError (stage "bootstrap") naming the server and what happened.
    """

    def __call__(self, host: str, port: int, room: int) -> Awaitable[str]: ...


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The parts of one worker's api process. `bootstrap_port` is set on prefill workers,
    `takes_whole_requests` on decode workers that serve without one, too."""

    engine: EngineClient
    tokenizer: Tokenizer
    card: ModelCard
    served_model_name: str
    role: Role
    resolve_prefill: PrefillResolver
    config: ApiConfig = field(default_factory=ApiConfig)
    bootstrap_port: int | None = None
    takes_whole_requests: bool = False
    clock: Clock = field(default_factory=MonotonicClock)


class Service:
    """A `ServerState` at work: its metrics, its running requests, and what follows from both.
    `is_draining`: it finishes what runs, and what still comes, and wants nothing new."""

    def __init__(self, state: ServerState):
        self.state = state
        self.started_at = int(time.time())
        self.running = RunningRequests()
        self.is_draining = False
        self.requests: Recent[Timeline] = Recent()
        """The last ones, those that run among them."""
        self.profiled_since_s: float | None = None
        self.metrics = WorkerMetrics(
            model_name=state.served_model_name,
            engine_type=ENGINE_TYPES[state.role],
            read_engine=lambda: snapshot(state.engine),
            clock=state.clock,
        )

    def live_engine(self) -> EngineClient:
        """The engine, to be used now. Raises EngineDead."""
        engine = self.state.engine
        if not engine.is_alive:
            raise EngineDead(
                "the engine process of this worker has ended or is stuck; restart the worker"
            )
        return engine

    @property
    def limits(self) -> Limits:
        ready = self.state.engine.ready
        return Limits(
            role=self.state.role,
            context_length=ready.context_length,
            capacity_tokens=ready.num_blocks * ready.block_size,
            vocab_size=ready.vocab_size,
            max_choices=self.state.config.max_choices,
            max_samples=self.state.config.max_samples,
            takes_whole_requests=self.state.takes_whole_requests,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, with the end tokens that its files or its tokenizer name."""
        tokenizer = self.state.tokenizer
        eos = dict.fromkeys((*self.state.card.eos_token_ids, *tokenizer.eos_token_ids))
        return Vocabulary(tokenizer, self.state.engine.ready.vocab_size, tuple(eos))

    def draw_seed(self) -> int:
        return secrets.randbelow(MAX_SEED)


SERVICE: Final = web.AppKey("service", Service)
