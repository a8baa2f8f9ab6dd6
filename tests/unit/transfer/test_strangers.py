"""Random bytes at the sockets of KV regions: turned away, counted, and a good peer still writes."""

import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kvcache.storage import SharedSegment
from baton.testing.transport_conformance import (
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


NOISE = st.one_of(
    st.binary(min_size=GREETING.size, max_size=400),
    st.binary(min_size=16, max_size=16).map(lambda token: HELLO.pack(MAGIC, token, b"w" * 16)),
    st.binary(min_size=16, max_size=16).map(lambda token: pack_greeting(token, b"w" * 16, 1)),
)


def dial(owner: Side) -> socket.socket:
    descriptor = owner.transport.descriptor
    if descriptor.backend == "shm":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20.0)
        connection.connect(f"\0{descriptor.place}")
        return connection
    host, _, port = descriptor.place.rpartition(":")
    return socket.create_connection((host, int(port)), 20.0)


@pytest.mark.parametrize("make", [shm, tcp])
def test_noise_is_turned_away(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        num_strangers = 0

        @settings(max_examples=25, deadline=None, derandomize=True)
        @given(NOISE)
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
