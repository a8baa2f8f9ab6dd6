from collections.abc import Iterator

import pytest

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer import ShmTransport, TcpTransport, choose_backend, host_id


@pytest.fixture
def both() -> Iterator[tuple[TcpTransport, ShmTransport]]:
    segment = SharedSegment(4096)
    tcp, shm = TcpTransport(segment), ShmTransport(segment)
    yield tcp, shm
    tcp.close()
    shm.close()
    segment.close()


def descriptor(backend: str, host: str) -> RegionDescriptor:
    return RegionDescriptor(backend=backend, host_id=host, address="there", num_bytes=1)


def test_shared_memory_on_one_host(both: tuple[TcpTransport, ShmTransport]) -> None:
    remote = [descriptor("tcp", host_id()), descriptor("shm", host_id())]
    assert choose_backend(both, remote) == (both[1], remote[1])


def test_tcp_between_hosts(both: tuple[TcpTransport, ShmTransport]) -> None:
    remote = [descriptor("shm", "another"), descriptor("tcp", "another")]
    assert choose_backend(both, remote) == (both[0], remote[1])


def test_the_error_names_what_both_sides_have(both: tuple[TcpTransport, ShmTransport]) -> None:
    with pytest.raises(TransferError, match="has shm on host another") as caught:
        choose_backend(both, [descriptor("shm", "another")])
    assert "tcp on host" in str(caught.value)
    assert caught.value.stage == "select"
    with pytest.raises(TransferError, match="none"):
        choose_backend([], [])


def test_host_id_is_stable() -> None:
    assert host_id() == host_id()
