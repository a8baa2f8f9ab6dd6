import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer import ShmTransport
from baton.transfer.config import TransferConfig
from baton.transfer.protocol import Copy, TicketState
from baton.transfer.shm_owner import HELLO, MAGIC, WELCOME
from baton.transfer.shm_peer import split_pieces

SIZE = 1 << 20
WAIT_S = 20.0


@pytest.fixture
def transport() -> Iterator[ShmTransport]:
    segment = SharedSegment(SIZE)
    transport = ShmTransport(segment)
    yield transport
    transport.close()
    segment.close()


def dial(transport: ShmTransport) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(WAIT_S)
    connection.connect(f"\0{transport.descriptor.place}")
    return connection


def token_of(transport: ShmTransport) -> bytes:
    return bytes.fromhex(transport.descriptor.address.partition("/")[2])


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def test_nothing_is_on_disk_and_the_name_is_not_guessable(transport: ShmTransport) -> None:
    segment = SharedSegment(SIZE)
    other = ShmTransport(segment)
    assert other.descriptor.address != transport.descriptor.address
    assert not os.path.exists(transport.descriptor.place)
    other.close()
    segment.close()


def test_strangers_get_no_descriptor(transport: ShmTransport) -> None:
    with dial(transport) as stranger:
        stranger.sendall(os.urandom(HELLO.size))
        try:
            received, fds, _, _ = socket.recv_fds(stranger, WELCOME.size, 1)
            for fd in fds:
                os.close(fd)
            assert received == b"" or stranger.recv(1) == b""
        except ConnectionResetError:
            pass
    wait_until(lambda: transport.stats().num_bad_connections == 1)
    assert transport.live_writers() == frozenset()


def test_a_hello_in_pieces_is_served(transport: ShmTransport) -> None:
    with dial(transport) as writer:
        for byte in HELLO.pack(MAGIC, token_of(transport), b"w" * 16):
            writer.sendall(bytes([byte]))
        writer.sendall(b"more than anybody asked for")
        received, fds, _, _ = socket.recv_fds(writer, WELCOME.size, 1)
        assert len(fds) == 1
        os.close(fds[0])
        assert WELCOME.unpack(received) == (MAGIC, SIZE)
        assert transport.live_writers() == {(b"w" * 16).hex()}
    wait_until(lambda: not transport.live_writers())


def test_a_descriptor_of_another_size_is_refused(transport: ShmTransport) -> None:
    wrong = msgspec.structs.replace(transport.descriptor, num_bytes=SIZE * 2)
    with pytest.raises(TransferError, match=f"{SIZE} bytes"):
        transport.connect(wrong, WAIT_S)
    gone = msgspec.structs.replace(transport.descriptor, address="baton-kv-nobody")
    with pytest.raises(TransferError) as caught:
        transport.connect(gone, WAIT_S)
    assert caught.value.stage == "connect"


def test_an_owner_that_could_shrink_its_region_is_refused(transport: ShmTransport) -> None:
    """Else it could turn our next write into SIGBUS."""
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SIZE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        name = f"baton-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.listen()
        descriptor = RegionDescriptor(backend="shm", host_id="", address=name, num_bytes=SIZE)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(HELLO.size)
                socket.send_fds(connection, [WELCOME.pack(MAGIC, SIZE)], [unsealed])

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(TransferError, match="sealed"):
            transport.connect(descriptor, WAIT_S)
        server.join()
    os.close(unsealed)


def test_a_peer_may_be_closed_from_the_completion_callback(transport: ShmTransport) -> None:
    segment = SharedSegment(SIZE)
    writer = ShmTransport(segment)
    peer = writer.connect(transport.descriptor, WAIT_S)
    writer.set_on_completion(peer.close)
    tickets = [peer.post_write("w", [Copy(0, 0, SIZE)]) for _ in range(3)]
    wait_until(lambda: all(ticket.state is not TicketState.PENDING for ticket in tickets))
    wait_until(lambda: not transport.live_writers())
    writer.close()
    segment.close()


@pytest.mark.parametrize("prefault_bytes", [0, 12345, 1 << 40])
def test_several_copy_threads(transport: ShmTransport, prefault_bytes: int) -> None:
    segment = SharedSegment(SIZE)
    writer = ShmTransport(
        segment, config=TransferConfig(num_threads=3), prefault_bytes=prefault_bytes
    )
    peers = [writer.connect(transport.descriptor, WAIT_S) for _ in range(5)]
    tickets = [
        peer.post_write(f"w{index}", [Copy(0, 0, SIZE)]) for peer in peers for index in range(20)
    ]
    wait_until(lambda: all(ticket.state is TicketState.DONE for ticket in tickets))
    writer.close()
    segment.close()


def test_split_pieces() -> None:
    copies = [Copy(0, 100, 25), Copy(50, 0, 10)]
    assert list(split_pieces(copies, 10)) == [
        Copy(0, 100, 10),
        Copy(10, 110, 10),
        Copy(20, 120, 5),
        Copy(50, 0, 10),
    ]
