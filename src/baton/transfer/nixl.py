"""KV through NIXL's agents over UCX: TCP or shared memory here, RDMA where UCX finds it.

NIXL's progress thread is kept, because a region's owner must take part in UCX's TCP, but with a
delay: at the delay of 0 that NIXL's own Python wrapper sets, the thread spins on a core for the
life of the process; with a delay it sleeps until there is something to do. The wrapper has no word
for it, so the bindings under it are called directly.

Run on a CPU over UCX's tcp and cma only, not on RDMA hardware.
Invariant: the library is imported when a transport is made, and not before.
Elsewhere: everything that is not NIXL's (library_transport.py, library_peer.py).
"""

import contextlib
import ctypes
import functools
import importlib
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import LibraryInvitation
from baton.transfer.companion import STALL_TIMEOUT_S
from baton.transfer.config import TransferConfig
from baton.transfer.library import PROOF_BYTES, LibraryError
from baton.transfer.library_transport import LibraryTransport
from baton.transfer.protocol import Copy
from baton.transfer.shm_peer import PinnedBuffer
from baton.transfer.tcp_sockets import host_for_peers

PROGRESS_DELAY_US = 100_000
"""The progress thread looks by itself so often; events wake it at once."""

_MODULES = ("nixl_cu12._bindings", "nixl_cu13._bindings")
_MEMORY_OF_DEVICE_0 = 0
_Integers = npt.NDArray[np.uint64]


class NixlTransport(LibraryTransport):
    """`KvTransport` over `segment`, which must outlive it. UCX chooses the way to each peer; its
    own variables (UCX_TLS, UCX_NET_DEVICES) restrict it. Raises ConfigError if the library is
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
        library = NixlLibrary(segment)
        num_queues = (config or TransferConfig()).num_queues
        super().__init__(
            "nixl", library, segment.num_bytes, host, told_host, num_queues, stall_timeout_s
        )


class NixlLibrary:
    """One agent with `segment` registered. Its name is never used again: a peer that restarts is
    another agent."""

    def __init__(self, segment: SharedSegment):
        self.bindings = _load()
        self._region = PinnedBuffer(segment.map)
        self._proof = ctypes.create_string_buffer(PROOF_BYTES)
        proof_address = ctypes.addressof(self._proof)
        self._own = (self._region.address, proof_address)
        registered = [
            (self._region.address, segment.num_bytes, _MEMORY_OF_DEVICE_0, ""),
            (proof_address, PROOF_BYTES, _MEMORY_OF_DEVICE_0, ""),
        ]
        try:
            self.agent = self.bindings.nixlAgent(secrets.token_hex(8), self._config())
            backend = self.agent.createBackend("UCX", {})
            dram = self.bindings.DRAM_SEG
            self.agent.registerMem(self.bindings.nixlRegDList(dram, registered), [backend])
            endpoint = self.agent.getLocalMD()
        except Exception as error:  # the bindings raise a type of their own for every status
            raise ConfigError(f"NIXL cannot start its UCX backend: {error}") from error
        self._invitation = LibraryInvitation(
            endpoint=endpoint, address=self._region.address, proof_address=proof_address
        )
        self._lock = threading.Lock()
        self._num_targets: dict[str, int] = {}

    @property
    def invitation(self) -> LibraryInvitation:
        return self._invitation

    def accept(self, invitation: LibraryInvitation) -> "NixlTarget":
        with self._lock:
            try:
                name: str = self.agent.loadRemoteMD(invitation.endpoint).decode()
            except Exception as error:
                raise LibraryError(f"NIXL cannot use the owner's metadata: {error}") from error
            self._num_targets[name] = self._num_targets.get(name, 0) + 1
        return NixlTarget(self, name, invitation, *self._own)

    def leave(self, name: str, *, is_owner_lost: bool) -> None:
        """A lost agent is forgotten with its last target. Others stay connected for the next one:
        each time that UCX's TCP is disconnected and connected again costs two descriptors."""
        with self._lock:
            self._num_targets[name] -= 1
            if self._num_targets[name] == 0 and is_owner_lost:
                del self._num_targets[name]
                with contextlib.suppress(Exception):  # gone already, if its process is
                    self.agent.invalidateRemoteMD(name)

    def close(self) -> None:
        # Its destructor ends what is under way and takes the memory out; there is no other call.
        self.agent = None
        self._region.release()

    def _config(self) -> Any:
        config = self.bindings.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = PROGRESS_DELAY_US
        config.useListenThread = False
        # Without it, calls from several threads crash the library.
        config.syncMode = self.bindings.NIXL_THREAD_SYNC_STRICT
        return config


class NixlTarget:
    """One peer's region."""

    def __init__(
        self,
        library: NixlLibrary,
        name: str,
        invitation: LibraryInvitation,
        source: int,
        proof_source: int,
    ):
        self._library = library
        self._name = name
        self._source = source
        self._proof_source = proof_source
        self._target = invitation.address
        self._proof_target = invitation.proof_address

    def post(self, batch: Sequence[Copy]) -> "NixlWrite":
        ranges = np.array(
            [(copy.src_offset, copy.dst_offset, copy.num_bytes) for copy in batch], dtype=np.uint64
        )
        return self._post(ranges, self._source, self._target)

    def prove(self) -> "NixlWrite":
        ranges = np.array([(0, 0, PROOF_BYTES)], dtype=np.uint64)
        return self._post(ranges, self._proof_source, self._proof_target)

    def close(self, *, is_owner_lost: bool) -> None:
        self._library.leave(self._name, is_owner_lost=is_owner_lost)

    def _post(self, ranges_N3: _Integers, source: int, target: int) -> "NixlWrite":
        bindings, agent = self._library.bindings, self._library.agent
        local, remote = (
            bindings.nixlXferDList(
                bindings.DRAM_SEG, _descriptors(offsets_N, base, ranges_N3[:, 2])
            )
            for offsets_N, base in ((ranges_N3[:, 0], source), (ranges_N3[:, 1], target))
        )
        try:
            write = agent.createXferReq(bindings.NIXL_WRITE, local, remote, self._name, b"", [])
        except Exception as error:
            raise LibraryError(f"NIXL refused a write: {error}") from error
        posted = NixlWrite(bindings, agent, write)
        posted.start()
        return posted


class NixlWrite:
    """A request of NIXL's."""

    def __init__(self, bindings: Any, agent: Any, request: int):
        self._bindings = bindings
        self._agent = agent
        self._request = request
        self._is_done = False

    def start(self) -> None:
        try:
            status = self._agent.postXferReq(self._request, b"")
        except Exception as error:
            self.abandon()
            raise LibraryError(f"NIXL failed a write: {error}") from error
        self._is_done = self._note(status)

    def poll(self) -> bool:
        if not self._is_done:
            try:
                status = self._agent.getXferStatus(self._request)
            except Exception as error:
                self.abandon()
                raise LibraryError(f"NIXL failed a write: {error}") from error
            self._is_done = self._note(status)
        return self._is_done

    def abandon(self) -> None:
        with contextlib.suppress(Exception):  # what cannot be cancelled goes with the agent
            self._agent.releaseXferReq(self._request)

    def _note(self, status: Any) -> bool:
        if status == self._bindings.NIXL_IN_PROG:
            return False
        self.abandon()
        if status != self._bindings.NIXL_SUCCESS:
            raise LibraryError(f"NIXL failed a write: {status}")
        return True


def _descriptors(offsets_N: _Integers, base: int, lengths_N: _Integers) -> _Integers:
    """N × (address, length, device)."""
    return np.stack([offsets_N + np.uint64(base), lengths_N, np.zeros_like(lengths_N)], axis=1)


@functools.cache
def _leave_before_library_destructors() -> None:
    """Have the process end right after Python's own cleanup, with the exit code that it has.

    The libnl-route that NIXL's wheel brings for UCX's RDMA dies of SIGSEGV in its destructor, on
    machines without RDMA too. glibc passes the exit code on to `_exit`, which runs no destructor.
    """
    libc = ctypes.CDLL(None)
    if libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None) != 0:
        raise ConfigError("NIXL cannot be loaded: the C library takes no more exit handlers")


def _load() -> Any:
    """Raises ConfigError with the mend if the library cannot be imported."""
    reasons = []
    for name in _MODULES:
        try:
            bindings = importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
        else:
            _leave_before_library_destructors()
            return bindings
    raise ConfigError(
        f"NIXL cannot be loaded ({'; '.join(reasons)}); install it with pip install 'baton[nixl]'"
    )
