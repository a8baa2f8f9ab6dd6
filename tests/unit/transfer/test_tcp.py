"""What a well-behaved writer never does: driven over a plain socket."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from baton.core.errors import ConfigError, TransferError
from baton.kvcache.storage import SharedSegment
from baton.transfer import TcpTransport
from baton.transfer.config import TransferConfig
from baton.transfer.protocol import Copy, TicketState
from baton.transfer.tcp_frames import (
    FROM_OWNER,
    HEADER,
    MAX_RANGES,
    WELCOME,
    Header,
    Kind,
    Status,
    pack_frame,
    pack_greeting,
    pack_write,
    parse_header,
    parse_text,
    parse_welcome,
)

SIZE = 4 << 20
WAIT_S = 20.0


class Owner:
    def __init__(self, port: int = 0) -> None:
        self.segment = SharedSegment(SIZE)
        self.view = self.segment.view()
        self.transport = TcpTransport(self.segment, port=port)
        place, _, token = self.transport.descriptor.address.rpartition("/")
        self.token = bytes.fromhex(token)
        self.port = int(place.rpartition(":")[2])

    def connect(self, greet: bool = True) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), WAIT_S)
        connection.settimeout(WAIT_S)
        if greet:
            connection.sendall(pack_greeting(self.token, b"w" * 16, SIZE))
            assert parse_welcome(connection.recv(WELCOME.size)) is Status.WELCOME
        return connection

    def close(self) -> None:
        self.transport.close()
        self.view.release()
        self.segment.close()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        chunk = connection.recv(num_bytes - len(received))
        assert chunk, "the connection was closed"
        received += chunk
    return received


def read_answer(connection: socket.socket) -> tuple[Header, str]:
    header = parse_header(receive_exactly(connection, HEADER.size), FROM_OWNER)
    return header, parse_text(receive_exactly(connection, header.num_table_bytes))


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def assert_cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass


def test_a_stalled_sender_does_not_hold_up_closing_its_window(owner: Owner) -> None:
    owner.transport.open_window("w", [(0, SIZE)])
    payload = b"\x11" * 1000
    with owner.connect() as writer:
        writer.sendall(pack_frame(Kind.BEGIN, 1, "w") + pack_write(1, [Copy(0, 0, 1000)]))
        writer.sendall(payload[:500])
        wait_until(lambda: owner.view[499] == 0x11)
        started_s = time.monotonic()
        owner.transport.close_window("w")
        assert time.monotonic() - started_s < 0.5
        writer.sendall(payload[500:] + pack_frame(Kind.END, 1))
        header, reason = read_answer(writer)
        assert (header.kind, header.ticket_id) == (Kind.REFUSED, 1)
        assert "closed" in reason
        assert bytes(owner.view[500:1000]) == bytes(500)

        # The connection is still in step: the next write on it works.
        owner.transport.open_window("next", [(0, 10)])
        writer.sendall(pack_frame(Kind.BEGIN, 2, "next") + pack_write(2, [Copy(0, 0, 3)]) + b"abc")
        writer.sendall(pack_frame(Kind.END, 2))
        assert read_answer(writer)[0].kind is Kind.DONE
        assert bytes(owner.view[:3]) == b"abc"


def test_a_window_closed_before_the_end_refuses_the_write(owner: Owner) -> None:
    owner.transport.open_window("w", [(0, SIZE)])
    with owner.connect() as writer:
        writer.sendall(pack_frame(Kind.BEGIN, 1, "w") + pack_write(1, [Copy(0, 0, 4)]) + b"full")
        wait_until(lambda: bytes(owner.view[:4]) == b"full")
        owner.transport.close_window("w")
        writer.sendall(pack_frame(Kind.END, 1))
        assert read_answer(writer)[0].kind is Kind.REFUSED


def test_a_late_write_does_not_enter_a_new_window_of_the_same_name(owner: Owner) -> None:
    owner.transport.open_window("w", [(0, SIZE)])
    with owner.connect() as writer:
        writer.sendall(pack_frame(Kind.BEGIN, 1, "w") + pack_write(1, [Copy(0, 0, 4)]) + b"a")
        wait_until(lambda: owner.view[0] == ord("a"))
        owner.transport.close_window("w")
        owner.transport.open_window("w", [(0, SIZE)])
        writer.sendall(b"bcd")
        assert read_answer(writer)[0].kind is Kind.REFUSED
        assert bytes(owner.view[:4]) == b"a\0\0\0"


def test_one_byte_at_a_time(owner: Owner) -> None:
    owner.transport.open_window("w", [(0, SIZE)])
    copies = [Copy(0, 10, 3), Copy(0, 100, 5), Copy(0, 0, 1)]
    stream = pack_frame(Kind.BEGIN, 1, "w") + pack_write(1, copies) + b"abcdefghi"
    stream += pack_write(1, [Copy(0, 50, 2)]) + b"xy" + pack_frame(Kind.END, 1)
    with owner.connect() as writer:
        writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in stream:
            writer.sendall(bytes([byte]))
        assert read_answer(writer)[0].kind is Kind.DONE
    assert bytes(owner.view[10:13]) == b"abc"
    assert bytes(owner.view[100:105]) == b"defgh"
    assert bytes(owner.view[:1]) == b"i"
    assert bytes(owner.view[50:52]) == b"xy"


BEGIN = pack_frame(Kind.BEGIN, 1, "w")


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n",
        pack_write(1, [Copy(0, 0, 1)]) + b"x",
        pack_frame(Kind.END, 1),
        BEGIN + BEGIN,
        BEGIN + pack_write(2, [Copy(0, 0, 1)]) + b"x",
        BEGIN + pack_write(1, []),
        BEGIN + HEADER.pack(b"BTKV", 1, Kind.WRITE, 1, 1, 1 << 60),
        BEGIN + HEADER.pack(b"BTKV", 1, Kind.WRITE, MAX_RANGES + 1, 1, 1),
        BEGIN + pack_write(1, [Copy(0, 0, 9)])[:-1] + b"\x08",
        pack_frame(Kind.DONE, 1),
        os.urandom(200),
    ],
    ids=[
        "http",
        "write-without-begin",
        "end-without-begin",
        "begin-twice",
        "another-ticket",
        "no-ranges",
        "huge-payload",
        "many-ranges",
        "sum-differs",
        "answer",
        "random",
    ],
)
def test_a_writer_that_breaks_the_protocol_is_cut_off(owner: Owner, stream: bytes) -> None:
    owner.transport.open_window("w", [(0, SIZE)])
    with owner.connect() as writer:
        writer.sendall(stream)
        assert_cut_off(writer)
    wait_until(lambda: owner.transport.stats().num_bad_connections == 1)
    assert bytes(owner.view) == bytes(SIZE)
    assert owner.transport.live_writers() == frozenset()


def test_who_does_not_know_the_token_cannot_write(owner: Owner) -> None:
    for greeting, status in (
        (pack_greeting(b"?" * 16, b"w" * 16, SIZE), Status.WRONG_TOKEN),
        (pack_greeting(owner.token, b"w" * 16, SIZE + 1), Status.WRONG_SIZE),
    ):
        with owner.connect(greet=False) as stranger:
            stranger.sendall(greeting)
            assert parse_welcome(stranger.recv(WELCOME.size)) is status
            assert stranger.recv(1) == b""
    with owner.connect(greet=False) as stranger:
        stranger.sendall(b"\x16\x03\x01" + os.urandom(100))
        assert_cut_off(stranger)
    wait_until(lambda: owner.transport.stats().num_bad_connections == 3)
    assert owner.transport.stats().num_strangers == 1


def test_a_writer_that_reads_no_answers_is_cut_off(owner: Owner) -> None:
    """Refusals must not pile up without bound."""
    with owner.connect() as writer:
        burst = b"".join(
            pack_frame(Kind.BEGIN, number, "w" * 400) + pack_frame(Kind.END, number)
            for number in range(1000)
        )
        with pytest.raises(OSError, match=r"reset|pipe"):
            writer.sendall(burst * 100)
    wait_until(lambda: owner.transport.stats().num_bad_connections == 1)


def test_a_restarted_owner_wants_its_new_descriptor() -> None:
    first, writer = Owner(), Owner()
    peer = writer.transport.connect(first.transport.descriptor, WAIT_S)
    port, old = first.port, first.transport.descriptor
    first.close()
    wait_until(lambda: not peer.is_alive)
    second = Owner(port)
    with pytest.raises(TransferError, match="restarted"):
        writer.transport.connect(old, WAIT_S)
    again = writer.transport.connect(second.transport.descriptor, WAIT_S)
    second.transport.open_window("w", [(0, SIZE)])
    writer.view[:4] = b"back"
    ticket = again.post_write("w", [Copy(0, 0, 4)])
    wait_until(lambda: ticket.state is not TicketState.PENDING)
    assert ticket.state is TicketState.DONE
    assert bytes(second.view[:4]) == b"back"
    second.close()
    writer.close()


def test_a_stalled_owner_fails_the_write_by_itself() -> None:
    """It accepts and greets, then reads nothing more."""
    segment = SharedSegment(64 << 20)
    transport = TcpTransport(segment, stall_timeout_s=0.5, config=TransferConfig(num_queues=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}/{'00' * 16}"
        descriptor = msgspec.structs.replace(transport.descriptor, address=address)
        welcome = WELCOME.pack(b"BATNTCP1", 1, Status.WELCOME)
        accepted: list[socket.socket] = []

        def greet() -> None:
            connection, _ = listener.accept()
            connection.sendall(welcome)
            accepted.append(connection)

        greeter = threading.Thread(target=greet)
        greeter.start()
        peer = transport.connect(descriptor, WAIT_S)
        greeter.join()
        ticket = peer.post_write("w", [Copy(0, 0, 64 << 20)])
        wait_until(lambda: ticket.state is not TicketState.PENDING)
        assert ticket.state is TicketState.FAILED
        assert not peer.is_alive
        accepted[0].close()
    transport.close()
    segment.close()


def test_connect_errors_name_the_peer(owner: Owner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        silent = msgspec.structs.replace(
            owner.transport.descriptor, address=f"127.0.0.1:{port}/{'00' * 16}"
        )
        with pytest.raises(TransferError, match=f"127.0.0.1:{port}"):
            owner.transport.connect(silent, 0.05)
    for address in (f"127.0.0.1:{port}/{'00' * 16}", "nonsense", "host:port/zz"):
        bad = msgspec.structs.replace(owner.transport.descriptor, address=address)
        with pytest.raises(TransferError) as caught:
            owner.transport.connect(bad, WAIT_S)
        assert caught.value.stage == "connect"


def test_bad_addresses_are_config_errors(owner: Owner) -> None:
    with pytest.raises(ConfigError, match=str(owner.port)):
        TcpTransport(owner.segment, port=owner.port)
    with pytest.raises(ConfigError, match="every interface"):
        TcpTransport(owner.segment, host="0.0.0.0")


def test_a_wildcard_tells_peers_the_advertised_host(owner: Owner) -> None:
    transport = TcpTransport(owner.segment, host="0.0.0.0", advertised_host="127.0.0.1")
    assert transport.descriptor.address.startswith("127.0.0.1:")
    owner.transport.connect(transport.descriptor, WAIT_S).close()
    transport.close()
