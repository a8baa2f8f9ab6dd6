"""Which backend two workers use with each other: a pure decision.

Elsewhere: the host's identity (host.py), connecting (the backends).
"""

from collections.abc import Sequence

from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.transfer.protocol import KvTransport


def choose_backend(
    local: Sequence[KvTransport], remote: Sequence[RegionDescriptor]
) -> tuple[KvTransport, RegionDescriptor]:
    """The local transport and the peer's descriptor to connect it to.

    Shared memory first when both are on one host; otherwise the first local backend that the
    peer has too. Raises TransferError (stage "select") when there is none.
    """
    for transport in sorted(local, key=lambda candidate: not candidate.same_host_only):
        for descriptor in remote:
            if transport.name != descriptor.backend:
                continue
            if transport.same_host_only and transport.descriptor.host_id != descriptor.host_id:
                continue
            return transport, descriptor
    raise TransferError(
        f"no common transport: this worker has {_names_of_local(local)}, the peer has "
        f"{_names_of_remote(remote)}; "
        f"start both with the same --disaggregation-transfer-backend, and on one host for shm",
        stage="select",
        peer=remote[0].place if remote else "unknown",
    )


def _names_of_local(local: Sequence[KvTransport]) -> str:
    names = [f"{transport.name} on host {transport.descriptor.host_id}" for transport in local]
    return ", ".join(names) or "none"


def _names_of_remote(remote: Sequence[RegionDescriptor]) -> str:
    names = [f"{descriptor.backend} on host {descriptor.host_id}" for descriptor in remote]
    return ", ".join(names) or "none"
