"""Random bytes at the sockets of KV regions: turned away, counted, and a good peer still writes."""

import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kvcache.storage import SharedSegment
from baton.testing.transport_checks.sides import (
    WINDOW,
    MakeTransport,
    Side,
    block,
    expect,
    pair,
    wait_until,
)
from baton.transfer import ShmTransport, TcpTransport
from baton.transfer.protocol import TicketState
from baton.transfer.shm_owner import HELLO, MAGIC
from baton.transfer.tcp_frames import GREETING, pack_greeting


def shm(segment: SharedSegment) -> ShmTransport:
    return ShmTransport(segment)


def tcp(segment: SharedSegment) -> TcpTransport:
    return TcpTransport(segment)


# At least as long as a greeting: whoever says less is waited for.
NOISE = st.binary(min_size=GREETING.size, max_size=400)
TOKENS = st.binary(min_size=16, max_size=16)
TO_SHM = NOISE | TOKENS.map(lambda token: HELLO.pack(MAGIC, token, b"w" * 16))
TO_TCP = NOISE | TOKENS.map(lambda token: pack_greeting(token, b"w" * 16, 1))


def dial(owner: Side) -> socket.socket:
    descriptor = owner.transport.descriptor
    if descriptor.backend == "shm":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20.0)
        connection.connect(f"\0{descriptor.place}")
        return connection
    host, _, port = descriptor.place.rpartition(":")
    return socket.create_connection((host, int(port)), 20.0)


@pytest.mark.parametrize(("make", "noises"), [(shm, TO_SHM), (tcp, TO_TCP)])
def test_noise_is_turned_away(make: MakeTransport, noises: st.SearchStrategy[bytes]) -> None:
    with pair(make) as (writer, owner):
        num_strangers = 0

        @settings(max_examples=25, deadline=None, derandomize=True)
        @given(noises)
        def send(noise: bytes) -> None:
            nonlocal num_strangers
            num_strangers += 1
            with dial(owner) as stranger, contextlib.suppress(OSError):
                stranger.sendall(noise)
                while stranger.recv(4096):
                    pass

        send()
        wait_until(
            lambda: owner.transport.stats().num_bad_connections == num_strangers, "all counted"
        )
        assert owner.transport.stats().num_strangers > 0
        assert owner.transport.live_writers() == frozenset()
        assert not any(owner.view)
        expect(writer.write(writer.connect(owner), WINDOW, [block(3, 9)]), TicketState.DONE)
