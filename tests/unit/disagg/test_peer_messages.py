"""What a peer says is never trusted: whatever arrives, the engine lives and its ledger balances."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.request import EngineRequest, FinishReason
from baton.core.sampling import SamplingParams
from baton.ipc.peer_link import LostReason, PeerConnected, PeerLost, PeerMessage
from baton.kvcache.block_hash import prompt_digest
from baton.messages.codec import Codec
from baton.messages.engine import TokenLogprob, TokenOutput
from baton.messages.handover import (
    EngineHello,
    HandoverMessage,
    KvCancel,
    KvDelivered,
    KvFailed,
    KvReleased,
    KvReserved,
)
from baton.testing.handover_world import MODEL, PREFILL_ADDRESS, HandoverWorld, Side

CODEC: Codec[HandoverMessage] = Codec(HandoverMessage)
PROMPT = list(range(9))  # three blocks of four
TRANSFER = "decode-engine-1"


def reserved(world: HandoverWorld, **fields: object) -> KvReserved:
    """A reservation for PROMPT in room 0, with some fields changed."""
    sound = KvReserved(
        transfer_id="t",
        room=0,
        sample_index=0,
        layout_hash=world.prefill.layout.layout_hash,
        num_prompt_tokens=len(PROMPT),
        prompt_digest=prompt_digest(PROMPT),
        num_cached_blocks=0,
        block_ids=[0, 1, 2],
        regions=[world.transport.descriptor],
    )
    return msgspec.structs.replace(sound, **fields)


def delivered(**fields: object) -> KvDelivered:
    sound = KvDelivered(transfer_id=TRANSFER, token_id=1, num_blocks=3, num_cached_tokens=0)
    return msgspec.structs.replace(sound, **fields)


def say(side: Side, key: str, message: HandoverMessage) -> None:
    side.role.on_event(PeerMessage(key=key, message=message))


def ends_of(side: Side) -> list[TokenOutput]:
    return [output for output in side.outputs if output.finish is not None]


def waiting_decode(verify_kv: bool = False) -> HandoverWorld:
    """Decode has reserved for its leg; prefill never hears of it."""
    world = HandoverWorld(can_fence=False, verify_kv=verify_kv)
    world.submit(PROMPT, 3, prefill=False, decode=True)
    world.decode.turn()
    return world


def listened(world: HandoverWorld) -> list[tuple[str, HandoverMessage]]:
    """What prefill says from now on, with the key of whom it tells."""
    told: list[tuple[str, HandoverMessage]] = []
    role = world.prefill.role
    role._send = lambda key, message: told.append((key, message))  # type: ignore[attr-defined]
    return told


@pytest.mark.parametrize(
    "fields",
    [
        {"num_cached_blocks": -1_000_000, "block_ids": [0] * 1_000_003},
        {"block_ids": [-1, 0, 1]},
        {"room": -1},
        {"transfer_id": "t" * 2**20},
        {"layout_hash": "h" * 2**20},
    ],
)
def test_a_reservation_out_of_bounds_is_no_message(fields: dict[str, object]) -> None:
    bad = reserved(HandoverWorld(can_fence=True), **fields)
    with pytest.raises(msgspec.ValidationError):
        CODEC.decode(CODEC.encode(bad))


def test_every_checksum_crosses_as_it_is() -> None:
    message = delivered(checksums=[0, 2**63, 2**64 - 1])
    assert CODEC.decode(CODEC.encode(message)) == message


@pytest.mark.parametrize("checksums", [[], [1, 2], [1, 2, 3, 4]])
def test_checksums_that_are_not_one_a_block_fail_the_request(checksums: list[int]) -> None:
    world = waiting_decode(verify_kv=True)
    say(world.decode, PREFILL_ADDRESS, delivered(checksums=checksums))
    world.decode.turn()
    (output,) = ends_of(world.decode)
    assert output.finish is not None
    assert f"{len(checksums)} checksums for 3 blocks" in output.finish.message


@pytest.mark.parametrize("status", [0, 200, 1000])
def test_a_failure_has_the_status_of_one(status: int) -> None:
    bad = KvFailed(transfer_id=TRANSFER, reason="", status=status)
    with pytest.raises(msgspec.ValidationError):
        CODEC.decode(CODEC.encode(bad))


def test_a_token_beyond_the_vocabulary_fails_its_request_only() -> None:
    world = waiting_decode()
    say(world.decode, PREFILL_ADDRESS, delivered(token_id=MODEL.vocab_size))
    world.decode.turn()
    (output,) = ends_of(world.decode)
    assert output.finish is not None
    assert "beyond the vocabulary" in output.finish.message
    assert world.decode.core.pool.num_in_use == 3  # until prefill confirms
    say(world.decode, PREFILL_ADDRESS, KvReleased(transfer_id=TRANSFER))
    assert world.decode.core.pool.num_in_use == 0


def test_a_logprob_that_nobody_asked_for_fails_the_request() -> None:
    world = waiting_decode()
    logprob = TokenLogprob(token_id=1, logprob=-1.0)
    say(world.decode, PREFILL_ADDRESS, delivered(logprob=logprob))
    world.decode.turn()
    assert ends_of(world.decode)[0].finish.reason is FinishReason.ERROR  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "message",
    [delivered(), KvFailed(transfer_id=TRANSFER, reason="", status=500)],
    ids=["delivered", "failed"],
)
def test_only_the_peer_of_a_hand_over_can_end_it(message: HandoverMessage) -> None:
    world = waiting_decode()
    say(world.decode, "10.0.0.9:1#1", message)
    world.decode.turn()
    assert not world.decode.outputs
    assert world.decode.core.pool.num_in_use == 3


def test_only_the_peer_can_release_a_quarantine() -> None:
    world = waiting_decode()
    world.decode.role.abort("d0", "test")
    say(world.decode, "10.0.0.9:1#1", KvReleased(transfer_id=TRANSFER))
    assert world.decode.core.pool.num_in_use == 3
    say(world.decode, PREFILL_ADDRESS, KvReleased(transfer_id=TRANSFER))
    assert world.decode.core.pool.num_in_use == 0


def test_a_decode_engine_that_is_taken_for_a_prefill_engine_says_so() -> None:
    world = HandoverWorld(can_fence=True)
    say(world.decode, PREFILL_ADDRESS, reserved(world))
    say(world.decode, PREFILL_ADDRESS, KvCancel(transfer_id="t", reason="test"))
    world.prefill.inbox.popleft()
    failure, release = (event.message for event in world.prefill.inbox)  # type: ignore[union-attr]
    assert isinstance(failure, KvFailed)
    assert "decode worker" in failure.reason
    assert release == KvReleased(transfer_id="t")


def test_hellos_of_the_gone_are_forgotten() -> None:
    world = HandoverWorld(can_fence=True)
    for number in range(100):
        key = f"10.0.0.9:1#{number}"
        hello = EngineHello(engine_id="stranger", writer_ids=["w" * 1000])
        world.decode.role.on_event(PeerConnected(key=key, hello=hello))
        world.decode.role.on_event(PeerLost(key=key, reason=LostReason.CLOSED))
    assert not world.decode.role._writer_ids  # type: ignore[attr-defined]


def test_a_reservation_said_twice_counts_once() -> None:
    world = HandoverWorld(can_fence=True)
    told = listened(world)
    for _ in range(2):
        say(world.prefill, "link", reserved(world))  # before the request
    world.submit(PROMPT, 1, prefill=True, decode=False)
    say(world.prefill, "link", reserved(world))  # and after it
    assert not told
    say(world.prefill, "link", reserved(world, transfer_id="another"))
    assert [message.transfer_id for _, message in told] == ["another"]


def test_a_refused_request_is_told_to_a_reservation_that_comes_later() -> None:
    world = HandoverWorld(can_fence=True)
    told = listened(world)
    world.submit([1] * 199, 1, prefill=True, decode=False)  # more than prefill's pool holds
    say(world.prefill, "link", reserved(world))
    (_, message), *_ = told
    assert isinstance(message, KvFailed)
    assert message.status == 400


@pytest.mark.parametrize("is_cancelled_before_the_loss", [True, False])
def test_the_release_goes_to_the_connection_that_asked(is_cancelled_before_the_loss: bool) -> None:
    world = HandoverWorld(can_fence=False)
    told = listened(world)
    world.submit(PROMPT, 1, prefill=True, decode=False)
    say(world.prefill, "old link", reserved(world))
    world.prefill.turn()
    cancel = KvCancel(transfer_id="t", reason="test")
    if is_cancelled_before_the_loss:
        say(world.prefill, "old link", cancel)
    say(world.prefill, "new link", cancel)
    assert not told  # its write is pending
    world.prefill.role.on_event(PeerLost(key="old link", reason=LostReason.CLOSED))
    world.prefill.turn()
    assert told == [("new link", KvReleased(transfer_id="t"))]
    assert world.prefill.core.pool.num_in_use == 0


def test_reservations_without_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.disagg.reservations._MAX_PARKED", 3)
    world = HandoverWorld(can_fence=True)
    told = listened(world)
    for room in range(5):
        say(world.prefill, "link", reserved(world, room=room, transfer_id=f"t{room}"))
    assert [message.transfer_id for _, message in told] == ["t3", "t4"]


def test_a_reservation_made_while_its_peer_is_being_lost_hits_nobodys_blocks() -> None:
    world = HandoverWorld(can_fence=False)
    world.submit(PROMPT, 2, prefill=True, decode=True)
    for side in (world.decode, world.prefill):
        side.receive(9)
        side.turn()
    world.cut_link(LostReason.HEARTBEAT)
    world.submit([2] * 9, 2, prefill=True, decode=True)  # decode has not read of the loss
    world.prefill.receive(1)  # prefill has, and let go of decode's pool
    world.decode.receive(1)
    world.decode.turn()
    assert world.decode.core.pool.num_in_use == 0
    world.settle()  # checks every write
    assert len(ends_of(world.decode)) == 2


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 7, 10**6, 2**63, 2**64 - 1])
TRANSFERS = st.sampled_from([TRANSFER, "decode-engine-2", "t", ""])
MESSAGES = st.one_of(
    st.builds(
        dict,
        kind=st.just(KvReserved),
        transfer_id=TRANSFERS,
        room=NUMBERS,
        num_prompt_tokens=st.one_of(st.just(len(PROMPT)), NUMBERS),
        num_cached_blocks=NUMBERS,
        block_ids=st.lists(NUMBERS, max_size=4),
    ),
    st.builds(
        dict,
        kind=st.just(KvDelivered),
        transfer_id=TRANSFERS,
        token_id=NUMBERS,
        num_blocks=st.one_of(st.just(3), NUMBERS),
        num_cached_tokens=NUMBERS,
    ),
    st.builds(dict, kind=st.just(KvFailed), transfer_id=TRANSFERS, status=st.just(503)),
    st.builds(dict, kind=st.just(KvReleased), transfer_id=TRANSFERS),
    st.builds(dict, kind=st.just(KvCancel), transfer_id=TRANSFERS),
)


def build(world: HandoverWorld, fields: dict[str, object]) -> HandoverMessage:
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind is KvReserved:
        return reserved(world, **fields)
    if kind is KvDelivered:
        return delivered(**fields)
    if kind is KvReleased:
        return KvReleased(**fields)  # type: ignore[arg-type]
    if kind is KvCancel:
        return KvCancel(reason="", **fields)  # type: ignore[arg-type]
    return KvFailed(reason="", **fields)  # type: ignore[arg-type]


@given(
    script=st.lists(
        st.tuples(st.sampled_from(["p", "d"]), st.sampled_from(["x#1", PREFILL_ADDRESS]), MESSAGES),
        max_size=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_no_message_brings_an_engine_down(
    script: list[tuple[str, str, dict[str, object]]],
) -> None:
    world = HandoverWorld(can_fence=True)
    for _ in range(2):
        world.submit(PROMPT, 3, prefill=True, decode=True)
    local = EngineRequest(
        request_id="local",
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(max_new_tokens=4, temperature=0.0),
    )
    for side in (world.prefill, world.decode):
        side.role.submit(local)
    for target, key, fields in script:
        side = world.prefill if target == "p" else world.decode
        say(side, key, CODEC.decode(CODEC.encode(build(world, fields))))
        side.turn()
    for side in (world.prefill, world.decode):
        for _ in range(20):
            side.turn()
        (output,) = [end for end in ends_of(side) if end.request_id == "local"]
        assert output.finish is not None
        assert output.finish.reason is FinishReason.LENGTH
