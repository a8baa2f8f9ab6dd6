"""What transports over a transfer library have of their own: limits, greeting, deadlines, mends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.core.errors import ConfigError, TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.testing.region_owner import RemoteOwner
from baton.testing.transport_checks.sides import REGION_BYTES, Side, block, pair, wait_until
from baton.transfer import companion
from baton.transfer.library import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, split_batches
from baton.transfer.library_transport import LibraryTransport
from baton.transfer.mooncake import MooncakeTransport
from baton.transfer.nixl import NixlTransport
from baton.transfer.protocol import Copy, TicketState
from baton.transfer.registry import why_missing

LIBRARIES = {"mooncake": MooncakeTransport, "nixl": NixlTransport}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := why_missing(name):
        pytest.skip(reason)
    return name


@given(st.lists(st.integers(1, 3 * MAX_BATCH_BYTES), max_size=8), st.integers(0, 3000))
def test_batches_hold_the_same_bytes_within_the_limits(sizes: list[int], num_small: int) -> None:
    copies, start = [], 0
    for size in [*sizes, *[16] * num_small]:
        copies.append(Copy(start, start + 7, size))
        start += size
    batches = list(split_batches(copies))
    position = 0
    for batch in batches:
        assert 0 < len(batch) <= MAX_BATCH_ENTRIES
        assert sum(copy.num_bytes for copy in batch) <= MAX_BATCH_BYTES
        for copy in batch:
            assert (copy.src_offset, copy.dst_offset) == (position, position + 7)
            position += copy.num_bytes
    assert position == start


@contextlib.contextmanager
def dialled(transport: LibraryTransport) -> Iterator[tuple[socket.socket, bytes]]:
    """A stranger's connection to the companion port, and the region's token."""
    place, _, token = transport.descriptor.address.partition("/")
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port)), 5.0) as connection:
        yield connection, bytes.fromhex(token)


def test_strangers_are_turned_away(library: str) -> None:
    with pair(LIBRARIES[library]) as (writer, owner):
        transport = owner.transport
        assert isinstance(transport, LibraryTransport)
        me, size = b"w" * 16, REGION_BYTES
        with dialled(transport) as (_, token):
            pass
        hellos = [
            companion.pack_hello(library, b"x" * 16, me, size),
            companion.pack_hello(library, token, me, size + 1),
            companion.pack_hello("other", token, me, size),
            b"GET / HTTP/1.1\r\n".ljust(companion.HELLO.size),
        ]
        for number, hello in enumerate(hellos, start=1):
            with dialled(transport) as (connection, _):
                connection.sendall(hello)
                answer = b""
                while chunk := connection.recv(4096):
                    answer += chunk
                assert len(answer) in (0, companion.WELCOME.size), "an invitation was given"
            wait_until(
                lambda number=number: transport.stats().num_bad_connections == number,
                "the stranger is counted",
            )
        assert not transport.live_writers()
        wrong = with_wrong_token(transport)
        with pytest.raises(TransferError, match="turned us away") as caught:
            writer.transport.connect(wrong, 2.0)
        assert caught.value.stage == "connect"


def with_wrong_token(transport: LibraryTransport) -> RegionDescriptor:
    place = transport.descriptor.address.partition("/")[0]
    return msgspec.structs.replace(transport.descriptor, address=f"{place}/{'00' * 16}")


def test_a_writer_without_bye_is_counted_until_its_bytes_are_in(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companion, "DRAIN_S", 0.5)
    owner = Side(LIBRARIES[library])
    transport = owner.transport
    assert isinstance(transport, LibraryTransport)
    ids = {"leaves": (b"a" * 16).hex(), "dies": (b"b" * 16).hex()}
    for name, said in (("leaves", companion.BYE), ("dies", b"")):
        with dialled(transport) as (connection, token):
            writer_id = bytes.fromhex(ids[name])
            companion.greet(connection, library, token, writer_id, REGION_BYTES)
            connection.sendall(said)
    wait_until(lambda: transport.live_writers() == {ids["dies"]}, "the clean one left", 0.4)
    wait_until(lambda: not transport.live_writers(), "the other one is drained", 2.0)
    owner.close()


def test_a_hung_owner_fails_the_write_by_our_deadline(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")  # by any other way the owner's process is not needed
    writer = Side(lambda segment: LIBRARIES[library](segment, stall_timeout_s=0.3), fill=3)
    with RemoteOwner(library, REGION_BYTES) as owner:
        owner.ask(f"open w 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, 5.0)
        os.kill(owner.process.pid, signal.SIGSTOP)
        tickets = [peer.post_write("w", [block(0, 0, 4096)]) for _ in range(2)]
        hung, queued = tickets
        writer.wait(queued)
        assert queued.state is TicketState.FAILED
        assert "took nothing for 0.3 s" in queued.error
        assert not peer.is_alive
        peer.close()
        assert hung.state is TicketState.PENDING, "its bytes may still arrive"
        os.kill(owner.process.pid, signal.SIGCONT)
        writer.wait(hung)
        assert hung.state is TicketState.FAILED
        before = owner.ask(f"digest 0 {REGION_BYTES}")
        writer.view[:] = bytes(REGION_BYTES)
        assert owner.ask(f"digest 0 {REGION_BYTES}") == before, "a late write"
        me = writer.transport.writer_id
        wait_until(lambda: owner.ask("writers") in ("", me), "the owner goes on")
        again = writer.transport.connect(owner.descriptor, 5.0)
        ticket = writer.write(again, "w", [block(1, 1)])
        assert ticket.state is TicketState.DONE, ticket.error
    writer.close()


@pytest.mark.parametrize(
    ("backend", "modules"),
    [("mooncake", ["mooncake"]), ("nixl", ["nixl_cu12", "nixl_cu13"])],
)
def test_a_missing_library_is_a_config_error_with_the_mend(
    backend: str, modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
    segment = SharedSegment(4096)
    with pytest.raises(ConfigError, match=rf"pip install 'baton\[{backend}\]'"):
        LIBRARIES[backend](segment)
    segment.close()


def test_nobody_loads_a_library_who_does_not_name_it() -> None:
    code = """
import sys
import baton.launch.engine_process
print([name for name in sys.modules if name.startswith(("mooncake", "nixl"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


WRITER = """
import sys
from baton.testing.region_owner import RemoteOwner
from baton.testing.transport_checks.sides import REGION_BYTES, Side, block
from baton.transfer.registry import open_transport
side = Side(lambda segment: open_transport("{backend}", segment))
for _ in range(2):
    with RemoteOwner("{backend}", REGION_BYTES) as owner:
        for _ in range(3):
            peer = side.transport.connect(owner.descriptor, 5.0)
            assert side.write(peer, "w", [block(0, 0, 64)]).state.value == "done"
            peer.close()
side.close()
print("closed")
sys.exit(7)
"""


def test_a_process_with_a_library_ends_as_it_meant_to(library: str) -> None:
    """After peers that came, went and died: the exit code and what was printed are its own."""
    code = WRITER.format(backend=library)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "closed\n"), done.stderr
