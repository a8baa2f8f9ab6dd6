"""Real sockets on ports chosen by the system; waiting is always for an event, never for a time."""

import contextlib
import gc
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.errors import ConfigError
from baton.ipc.framing import FrameError, frame
from baton.ipc.peer_auth import REFUSAL, FrameSeal, Handshake
from baton.ipc.peer_link import (
    LostReason,
    PeerConnected,
    PeerEvent,
    PeerLink,
    PeerLost,
    PeerMessage,
)
from baton.messages.codec import Codec
from baton.messages.handover import (
    EngineHello,
    HandoverMessage,
    KvCancel,
    KvFailed,
    KvReleased,
    LayoutTerms,
)

WAIT_S = 20.0
CODEC: Codec[HandoverMessage] = Codec(HandoverMessage)
HELLO_CODEC: Codec[EngineHello] = Codec(EngineHello)


class Engine:
    """A peer link and what it reported."""

    def __init__(
        self, name: str, interval_s: float = 5.0, page_size: int = 16, **options: float | bytes
    ):
        self.events: queue.Queue[PeerEvent] = queue.Queue()
        self.hello = EngineHello(
            engine_id=name,
            role=name,
            layout=LayoutTerms(block_size=page_size),
        )
        self.link = PeerLink(
            CODEC,
            self.hello,
            self.events.put,
            "127.0.0.1",
            heartbeat_interval_s=interval_s,
            **options,  # type: ignore[arg-type]
        )
        self.address = f"127.0.0.1:{self.link.port}"

    def next(self) -> PeerEvent:
        return self.events.get(timeout=WAIT_S)


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(name: str, **options: float | bytes) -> Engine:
        engines.append(Engine(name, **options))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.link.close()


def released(name: str) -> KvReleased:
    return KvReleased(transfer_id=name)


def connect_raw(engine: Engine) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", engine.link.port), WAIT_S)
    connection.settimeout(WAIT_S)
    return connection


class Raw:
    """One side of a connection, spoken by hand."""

    def __init__(self, connection: socket.socket, secret: bytes = b"", *, connects: bool = True):
        self.connection = connection
        self.handshake = Handshake(secret, is_connecting=connects)
        connection.sendall(frame(self.handshake.challenge()))
        self.handshake.read_challenge(self.receive())

    def prove(self) -> "Raw":
        self.connection.sendall(frame(self.handshake.proof()))
        self.handshake.check_proof(self.receive())
        self.outgoing, self.incoming = self.handshake.seals()
        return self

    def say(self, payload: bytes) -> None:
        self.connection.sendall(frame(self.outgoing.seal(payload)))

    def receive(self) -> bytes:
        (num_bytes,) = struct.unpack(">I", receive_exactly(self.connection, 4))
        return receive_exactly(self.connection, num_bytes)

    def hear(self) -> bytes:
        return self.incoming.open(self.receive())


def receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        chunk = connection.recv(num_bytes - len(received))
        assert chunk, "the connection was closed"
        received += chunk
    return received


def assert_closed(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    connection.close()


def test_messages_go_both_ways_in_order(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode"), make_engine("prefill")
    for number in range(100):
        decode.link.send(prefill.address, KvCancel(transfer_id=str(number), reason="test"))
    greeting = prefill.next()
    assert isinstance(greeting, PeerConnected)
    assert greeting.hello == decode.hello
    for number in range(100):
        expected = PeerMessage(greeting.key, KvCancel(transfer_id=str(number), reason="test"))
        assert prefill.next() == expected
    prefill.link.send(greeting.key, released("a"))
    assert decode.next() == PeerConnected(prefill.address, prefill.hello)
    assert decode.next() == PeerMessage(prefill.address, released("a"))


def test_one_connection_per_address_and_one_key_per_inbound(make_engine: MakeEngine) -> None:
    first, second, prefill = make_engine("a"), make_engine("b"), make_engine("prefill")
    for sender in (first, first, second):
        sender.link.send(prefill.address, released("x"))
    events = [prefill.next() for _ in range(5)]
    greetings = [event for event in events if isinstance(event, PeerConnected)]
    assert {event.hello.engine_id for event in greetings} == {"a", "b"}
    assert len({event.key for event in greetings}) == 2


def test_a_large_message_arrives_and_a_too_large_one_is_refused(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode"), make_engine("prefill")
    large = KvCancel(transfer_id="large", reason="x" * (10 << 20))
    decode.link.send(prefill.address, large)
    assert isinstance(prefill.next(), PeerConnected)
    event = prefill.next()
    assert isinstance(event, PeerMessage)
    assert event.message == large
    with pytest.raises(FrameError, match="above"):
        decode.link.send(prefill.address, KvCancel(transfer_id="", reason="x" * (17 << 20)))


def test_an_unreachable_address_is_reported(make_engine: MakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    engine = make_engine("decode")
    for address in (f"127.0.0.1:{port}", "nonsense", "127.0.0.1:99999"):
        engine.link.send(address, released("x"))
        event = engine.next()
        assert isinstance(event, PeerLost)
        assert (event.key, event.reason) == (address, LostReason.UNREACHABLE)


def test_a_peer_that_never_says_hello_is_unreachable(make_engine: MakeEngine) -> None:
    engine = make_engine("decode", interval_s=0.02, connect_timeout_s=0.1, max_missed=1000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        engine.link.send(address, released("x"))
        event = engine.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.UNREACHABLE
    assert "hello" in event.detail


def test_after_a_loss_nothing_is_sent_until_it_is_acknowledged(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode"), make_engine("prefill")
    decode.link.send(prefill.address, released("x"))
    assert isinstance(decode.next(), PeerConnected)
    port = prefill.link.port
    prefill.link.close()
    event = decode.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.CLOSED
    with socket.create_server(("127.0.0.1", port)) as restarted:
        decode.link.send(prefill.address, released("too soon"))
        decode.link.acknowledge_loss(prefill.address)
        decode.link.send(prefill.address, released("again"))
        connection, _ = restarted.accept()
        with connection:
            connection.settimeout(WAIT_S)
            peer = Raw(connection, connects=False).prove()
            assert HELLO_CODEC.decode(peer.hear()) == decode.hello
            assert CODEC.decode(peer.hear()) == released("again")


def test_queued_messages_are_flushed_by_close(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode"), make_engine("prefill")
    decode.link.send(prefill.address, released("first"))
    greeting = prefill.next()
    prefill.next()
    for _ in range(50):
        decode.link.send(prefill.address, KvFailed(transfer_id="t", reason="x" * 9999, status=503))
    decode.link.close()
    for _ in range(50):
        assert isinstance(prefill.next(), PeerMessage)
    event = prefill.next()
    assert isinstance(event, PeerLost)
    assert event.key == greeting.key
    decode.link.close()
    decode.link.send(prefill.address, released("after close"))


def test_a_silent_peer_is_lost_and_a_beating_one_is_not(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill", interval_s=0.02, max_missed=25)
    beating = make_engine("decode", interval_s=0.02, max_missed=1000)
    beating.link.send(engine.address, released("x"))
    beating_greeting = engine.next()
    assert isinstance(engine.next(), PeerMessage)
    with connect_raw(engine) as silent:
        Raw(silent).prove().say(HELLO_CODEC.encode(beating.hello))
        silent_greeting = engine.next()
        event = engine.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.HEARTBEAT
    assert event.key == silent_greeting.key != beating_greeting.key
    assert engine.events.empty()


def test_heartbeats_go_out_while_the_main_thread_computes(make_engine: MakeEngine) -> None:
    engine = make_engine("decode", interval_s=0.01, max_missed=1000)
    with connect_raw(engine) as connection:
        peer = Raw(connection).prove()
        assert HELLO_CODEC.decode(peer.hear()) == engine.hello
        peer.say(HELLO_CODEC.encode(engine.hello))
        beats = 0
        while beats < 10:
            sum(range(10000))
            assert peer.hear() == b""
            beats += 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        frame(b""),
        struct.pack(">I", 15 << 20) + bytes(1 << 20),
        frame(HELLO_CODEC.encode(EngineHello(engine_id="x"))),
        frame(struct.pack("!8sH32s", b"BATNCTL1", 99, bytes(32))),
    ],
    ids=["http", "http2", "huge", "not-msgpack", "empty", "endless", "hello", "other-version"],
)
def test_a_stranger_is_turned_away(make_engine: MakeEngine, garbage: bytes) -> None:
    engine, decode = make_engine("prefill"), make_engine("decode")
    stranger = connect_raw(engine)
    with_reset = threading.Thread(target=lambda: _send_all(stranger, garbage))
    with_reset.start()
    assert_closed(stranger)
    with_reset.join()
    assert engine.link.num_bad_connections == 1
    decode.link.send(engine.address, released("still alive"))
    assert isinstance(engine.next(), PeerConnected)  # and no event of the stranger before


def _send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it may be turned away before it has finished
        connection.sendall(data)


def test_random_garbage_never_breaks_it(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill")
    for size in range(1, 200, 7):
        with connect_raw(engine) as stranger:
            stranger.sendall(os.urandom(size))
    engine.link.send(engine.address, released("to itself"))
    assert isinstance(engine.next(), PeerConnected)


def test_a_peer_that_sends_a_broken_message_is_dropped(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill")
    with connect_raw(engine) as peer:
        raw = Raw(peer).prove()
        raw.say(HELLO_CODEC.encode(engine.hello))
        raw.say(b"\x81\xa4type\xa3Odd")
        assert isinstance(engine.next(), PeerConnected)
        event = engine.next()
        assert isinstance(event, PeerLost)
        assert event.reason is LostReason.PROTOCOL


def test_a_peer_that_does_not_read_is_dropped(make_engine: MakeEngine) -> None:
    engine = make_engine("decode", max_unsent_bytes=1 << 20)
    with connect_raw(engine) as peer:
        Raw(peer).prove().say(HELLO_CODEC.encode(engine.hello))
        greeting = engine.next()
        assert isinstance(greeting, PeerConnected)
        for _ in range(20):
            message = KvCancel(transfer_id="t", reason="x" * (1 << 20))
            engine.link.send(greeting.key, message)
        event = engine.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.OVERFLOW
    engine.link.send(greeting.key, released("to one who is gone"))


def test_a_listener_that_raises_does_not_end_the_link(caplog: pytest.LogCaptureFixture) -> None:
    events: queue.Queue[PeerEvent] = queue.Queue()

    def on_event(event: PeerEvent) -> None:
        events.put(event)
        raise RuntimeError("a bug of the listener")

    hello = EngineHello(engine_id="x")
    link = PeerLink(CODEC, hello, on_event, "127.0.0.1")
    link.send(f"127.0.0.1:{link.port}", released("a"))
    seen = [events.get(timeout=WAIT_S) for _ in range(3)]
    assert any(isinstance(event, PeerMessage) for event in seen)
    link.close()
    assert "listener" in caplog.text


def test_a_taken_port_is_a_config_error(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill")
    with pytest.raises(ConfigError, match=str(engine.link.port)):
        PeerLink(CODEC, engine.hello, print, "127.0.0.1", engine.link.port)


def test_nothing_is_left_behind() -> None:
    gc.collect()  # what earlier tests left to the collector must not go while this one counts
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        first, second = Engine("a"), Engine("b")
        first.link.send(second.address, released("x"))
        assert isinstance(second.next(), PeerConnected)
        second.link.close()
        first.link.close()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


SECRET = b"correct horse battery staple"


@pytest.mark.parametrize(
    ("first", "second"), [(SECRET, b"wrong" * 4), (SECRET, b""), (b"", SECRET)]
)
def test_a_wrong_secret_ends_it_on_both_sides(
    make_engine: MakeEngine, first: bytes, second: bytes
) -> None:
    decode, prefill = make_engine("decode", secret=first), make_engine("prefill", secret=second)
    decode.link.send(prefill.address, released("for peers only"))
    event = decode.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.SECRET
    assert "BATON_CLUSTER_SECRET" in event.detail
    assert prefill.events.empty()
    assert (decode.link.num_wrong_secrets, decode.link.num_bad_connections) == (1, 0)
    friend = make_engine("friend", secret=second)
    friend.link.send(prefill.address, released("still alive"))
    assert isinstance(prefill.next(), PeerConnected)
    assert (prefill.link.num_wrong_secrets, prefill.link.num_bad_connections) == (1, 0)


def test_the_same_secret_joins(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode", secret=SECRET), make_engine("prefill", secret=SECRET)
    decode.link.send(prefill.address, released("a"))
    assert isinstance(prefill.next(), PeerConnected)
    message = prefill.next()
    assert isinstance(message, PeerMessage)
    assert message.message == released("a")


def test_a_stranger_learns_nothing_from_one_who_connects_to_it(make_engine: MakeEngine) -> None:
    """Decode connects to whatever address a client named."""
    decode = make_engine("decode", secret=SECRET)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        decode.link.send(address, released("for peers only"))
        connection, _ = stranger.accept()
        connection.settimeout(WAIT_S)
        raw = Raw(connection, b"a guess", connects=False)
        proof = raw.receive()
        assert len(proof) == 32
        connection.sendall(frame(proof))  # reflected
        assert_closed(connection)
    event = decode.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.SECRET


def test_a_proof_of_another_connection_is_worth_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill", secret=SECRET)
    with connect_raw(engine) as connection:
        raw = Raw(connection, SECRET)
        proof = raw.handshake.proof()
        raw.prove()
    with connect_raw(engine) as connection:
        raw = Raw(connection, SECRET)
        connection.sendall(frame(proof))
        assert raw.receive() == REFUSAL
        assert_closed(connection)
    assert engine.link.num_wrong_secrets == 1


def test_a_message_before_the_proof_ends_it(make_engine: MakeEngine) -> None:
    engine = make_engine("prefill", secret=SECRET)
    with connect_raw(engine) as connection:
        Raw(connection, SECRET)
        connection.sendall(frame(CODEC.encode(released("x"))))
        assert_closed(connection)
    assert engine.link.num_bad_connections == 1
    assert engine.events.empty()


@pytest.mark.parametrize("attack", ["changed", "repeated", "cleartext"])
def test_a_forged_frame_ends_the_connection(make_engine: MakeEngine, attack: str) -> None:
    engine = make_engine("prefill", secret=SECRET)
    with connect_raw(engine) as connection:
        raw = Raw(connection, SECRET).prove()
        raw.say(HELLO_CODEC.encode(engine.hello))
        assert isinstance(engine.next(), PeerConnected)
        plain = CODEC.encode(released("x"))
        sealed = raw.outgoing.seal(plain)
        assert plain not in sealed
        forged = {
            "changed": frame(bytes([sealed[0] ^ 1]) + sealed[1:]),
            "repeated": frame(sealed) + frame(sealed),
            "cleartext": frame(plain),
        }[attack]
        connection.sendall(forged)
        if attack == "repeated":
            assert isinstance(engine.next(), PeerMessage)
        event = engine.next()
    assert isinstance(event, PeerLost)
    assert event.reason is LostReason.PROTOCOL


def test_seals_of_the_two_directions_differ() -> None:
    one, other = Handshake(SECRET, is_connecting=True), Handshake(SECRET, is_connecting=False)
    one.read_challenge(other.challenge())
    other.read_challenge(one.challenge())
    outgoing, _ = one.seals()
    answering, incoming = other.seals()
    sealed = outgoing.seal(b"words")
    assert incoming.open(sealed) == b"words"
    with pytest.raises(FrameError, match="changed"):
        one.seals()[1].open(sealed)  # sent back to who made it
    assert answering.seal(b"words") != sealed
    assert len(sealed) == len(b"words") + FrameSeal.OVERHEAD_BYTES


@pytest.mark.parametrize("is_after_challenge", [False, True])
def test_noise_is_turned_away_and_counted(
    make_engine: MakeEngine, is_after_challenge: bool
) -> None:
    engine = make_engine("prefill", secret=SECRET)
    num_strangers = 0

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.binary(min_size=64, max_size=400))
    def send(noise: bytes) -> None:
        nonlocal num_strangers
        num_strangers += 1
        with connect_raw(engine) as connection:
            if is_after_challenge:
                Raw(connection, SECRET)
                noise = frame(noise[:64])
            _send_all(connection, noise)
            assert_closed(connection)

    send()
    assert engine.link.num_bad_connections + engine.link.num_wrong_secrets == num_strangers
    friend = make_engine("friend", secret=SECRET)
    friend.link.send(engine.address, released("still alive"))
    assert isinstance(engine.next(), PeerConnected)


def test_another_layout_ends_it_on_both_sides_by_name(make_engine: MakeEngine) -> None:
    decode, prefill = make_engine("decode", page_size=32), make_engine("prefill")
    for _ in range(2):  # each attempt anew, once the loss before is known
        decode.link.send(prefill.address, released("for those who fit"))
        event = decode.next()
        assert isinstance(event, PeerLost)
        assert event.reason is LostReason.LAYOUT
        assert "--page-size is 16 on the prefill worker and 32 on the decode worker" in event.detail
        decode.link.acknowledge_loss(prefill.address)
    decode.link.close()  # whatever it still had to close is closed
    friend = make_engine("friend")
    friend.link.send(prefill.address, released("fits"))
    greeting = prefill.next()
    assert isinstance(greeting, PeerConnected)
    assert greeting.hello == friend.hello
    assert prefill.next() == PeerMessage(greeting.key, released("fits"))
    friend.link.close()
    assert isinstance(prefill.next(), PeerLost)
    assert prefill.events.empty()
    assert (decode.link.num_other_layouts, prefill.link.num_other_layouts) == (2, 2)
    assert prefill.link.num_bad_connections == 0


def test_a_peer_with_another_layout_that_stays_is_not_heard_and_let_go(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("prefill", interval_s=0.02, connect_timeout_s=0.2, max_missed=1000)
    other = EngineHello(engine_id="x", layout=LayoutTerms(block_size=32))
    with connect_raw(engine) as connection:
        raw = Raw(connection).prove()
        raw.say(HELLO_CODEC.encode(other))
        for _ in range(3):
            raw.say(CODEC.encode(KvCancel(transfer_id="t", reason="x" * 65536)))
        assert_closed(connection)
    assert engine.events.empty()
    assert (engine.link.num_other_layouts, engine.link.num_bad_connections) == (1, 0)
