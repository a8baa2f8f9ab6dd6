"""What the api process tells its engine process at start; crosses as JSON on its command line."""

from dataclasses import dataclass
from typing import Literal

from baton.core.request import Role
from baton.disagg.config import DisaggConfig
from baton.disagg.core_sharing import SharingRules
from baton.engine.config import EngineConfig
from baton.transfer.config import TransferConfig
from baton.transfer.link import LinkConfig

TransferBackend = Literal["auto", "shm", "tcp", "mooncake", "nixl"]


@dataclass(frozen=True)
class EngineSpec:
    """`cores`: the processors to stay on, empty for all. `nice`: added to the scheduling niceness.
    `host`: address that control connections and KV writes come in on. `link`: what KV writes are
    slowed down to. `verify_kv`: decode compares what arrived with prefill's checksums."""

    model_path: str
    role: Role
    engine: EngineConfig
    disagg: DisaggConfig
    transfer: TransferConfig
    transfer_backend: TransferBackend
    link: LinkConfig | None
    verify_kv: bool
    host: str
    cores: list[int]
    nice: int
    sharing: SharingRules
    log_level: str
    parent_pid: int
