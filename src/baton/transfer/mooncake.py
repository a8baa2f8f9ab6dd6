"""KV through the Mooncake Transfer Engine: TCP anywhere, RDMA or NVLink where there is any.

Run on its TCP protocol only; the others differ here by a word of configuration and have not been
run. Blocks are posted one by one and asked about, instead of in the library's batches: its waiting
for a batch burns a core, cannot be ended, and is no faster.

Invariant: `mooncake` is imported when a transport is made, and not before.
Elsewhere: everything that is not Mooncake's (library_transport.py, library_peer.py).
"""

import ctypes
import importlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import LibraryInvitation
from baton.transfer.companion import STALL_TIMEOUT_S
from baton.transfer.config import MooncakeConfig, TransferConfig
from baton.transfer.library import PROOF_BYTES, LibraryError
from baton.transfer.library_transport import LibraryTransport
from baton.transfer.protocol import Copy
from baton.transfer.shm_peer import PinnedBuffer
from baton.transfer.tcp_sockets import host_for_peers

_SETTINGS = {
    # The library takes these from the environment only, when it is loaded. Whoever starts the
    # worker may have set them already.
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "16384",
    "MC_LOG_LEVEL": "ERROR",
}
_IN_PROGRESS, _COMPLETED, _TIMED_OUT = 0, 1, -2
_NO_BATCH = (0, 2**64 - 1)


class MooncakeTransport(LibraryTransport):
    """`KvTransport` over `segment`, which must outlive it. Raises ConfigError if the library is
    missing or cannot start."""

    def __init__(
        self,
        segment: SharedSegment,
        *,
        host: str = "127.0.0.1",
        advertised_host: str = "",
        config: TransferConfig | None = None,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ):
        told_host = host_for_peers(host, advertised_host)
        config = config or TransferConfig()
        library = MooncakeLibrary(segment, told_host, config.mooncake)
        super().__init__(
            "mooncake",
            library,
            segment.num_bytes,
            host,
            told_host,
            config.num_queues,
            stall_timeout_s,
        )


class MooncakeLibrary:
    """One engine with `segment` registered."""

    def __init__(self, segment: SharedSegment, told_host: str, config: MooncakeConfig):
        self._engine: Any = _load(config).TransferEngine()
        protocol, device = config.protocol, config.device
        if self._engine.initialize(told_host, "P2PHANDSHAKE", protocol, device) != 0:
            raise ConfigError(
                f"Mooncake cannot start with protocol {protocol!r} and device {device!r} on "
                f"{told_host}; its own message is above"
            )
        self._region = PinnedBuffer(segment.map)
        self._proof = ctypes.create_string_buffer(PROOF_BYTES)
        self.proof_address = ctypes.addressof(self._proof)
        self._register(self._region.address, segment.num_bytes)
        self._register(self.proof_address, PROOF_BYTES)
        endpoint = f"{told_host}:{self._engine.get_rpc_port()}"
        self._invitation = LibraryInvitation(
            endpoint=endpoint.encode(),
            address=self._region.address,
            proof_address=self.proof_address,
        )

    @property
    def invitation(self) -> LibraryInvitation:
        return self._invitation

    def accept(self, invitation: LibraryInvitation) -> "MooncakeTarget":
        return MooncakeTarget(self._engine, self._region.address, self.proof_address, invitation)

    def close(self) -> None:
        # Its destructor ends what is under way; there is no other call for that.
        self._engine = None
        self._region.release()

    def _register(self, address: int, num_bytes: int) -> None:
        if self._engine.register_memory(address, num_bytes) != 0:
            raise ConfigError(
                f"Mooncake cannot register {num_bytes} bytes of memory; its own message is above "
                "(for RDMA the limit on locked memory, ulimit -l, must allow the whole KV pool)"
            )


class MooncakeTarget:
    """One peer's region."""

    def __init__(self, engine: Any, source: int, proof_source: int, invitation: LibraryInvitation):
        self._engine = engine
        self._source = source
        self._proof_source = proof_source
        self._session = invitation.endpoint.decode()
        self._target = invitation.address
        self._proof_target = invitation.proof_address

    def post(self, batch: Sequence[Copy]) -> "MooncakeWrite":
        return self._post(
            [
                (self._source + copy.src_offset, self._target + copy.dst_offset, copy.num_bytes)
                for copy in batch
            ]
        )

    def prove(self) -> "MooncakeWrite":
        return self._post([(self._proof_source, self._proof_target, PROOF_BYTES)])

    def close(self, *, is_owner_lost: bool) -> None:
        """The engine keeps its connections, for the next peer there."""
        self._engine = None

    def _post(self, moves: list[tuple[int, int, int]]) -> "MooncakeWrite":
        tickets: deque[int] = deque()
        for source, target, num_bytes in moves:
            ticket = self._engine.transfer_submit_write(self._session, source, target, num_bytes)
            if ticket in _NO_BATCH:
                raise LibraryError(f"Mooncake refused a write to {self._session}")
            tickets.append(ticket)
        return MooncakeWrite(self._engine, self._session, tickets)


class MooncakeWrite:
    """Ranges under way, in posting order."""

    def __init__(self, engine: Any, session: str, tickets: deque[int]):
        self._engine = engine
        self._session = session
        self._tickets = tickets

    def poll(self) -> bool:
        while self._tickets:
            status = self._engine.transfer_check_status(self._tickets[0])
            # One that timed out may still arrive: the deadline is ours.
            if status in (_IN_PROGRESS, _TIMED_OUT):
                return False
            if status != _COMPLETED:
                raise LibraryError(f"Mooncake failed a write to {self._session}")
            self._tickets.popleft()
        return True

    def abandon(self) -> None:
        self._tickets.clear()


def _load(config: MooncakeConfig) -> Any:
    """Raises ConfigError with the mend if the library cannot be imported."""
    for name, setting in _SETTINGS.items():
        os.environ.setdefault(name, setting)
    try:
        engine = importlib.import_module("mooncake.engine")
    except ImportError as error:
        raise ConfigError(
            f"the Mooncake transfer engine cannot be loaded ({error}); install it with "
            "pip install 'baton[mooncake]', and on Debian and Ubuntu apt install libibverbs1"
        ) from error
    if (config.memory_pool or config.force_mnnvl) and not engine.SUPPORT_CUDA:
        raise ConfigError(
            f"{_nvlink_asked_by(config)}, but the Mooncake that is installed was built without "
            "CUDA; pip uninstall mooncake-transfer-engine-non-cuda and pip install "
            "mooncake-transfer-engine, or unset it"
        )
    return engine


def _nvlink_asked_by(config: MooncakeConfig) -> str:
    if config.memory_pool:
        return f"SGLANG_MOONCAKE_CUSTOM_MEM_POOL={config.memory_pool} asks for NVLink"
    return "MC_FORCE_MNNVL asks for NVLink"
