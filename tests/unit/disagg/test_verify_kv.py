"""`--verify-kv`: damaged blocks are found before anything is computed from them.

Both roles over real transports with real copies; the way between them corrupts what the seed says.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest, Finish, FinishReason, Handover
from baton.core.sampling import SamplingParams
from baton.disagg.decode import DecodeRole
from baton.disagg.prefill import PrefillRole
from baton.disagg.writers import DecodePeers
from baton.ipc.peer_link import PeerConnected, PeerMessage
from baton.kvcache.checksum import BlockChecksums
from baton.messages.handover import EngineHello, HandoverMessage, KvDelivered
from baton.testing.faulty import FaultConfig, faulty
from baton.testing.handover_world import CONFIG, MODEL, PREFILL_ADDRESS, Side
from baton.transfer import ShmTransport, TcpTransport

DECODE_KEY = "decode#1"
BACKENDS = {"shm": ShmTransport, "tcp": TcpTransport}
NUM_BLOCKS, BLOCK_SIZE, CHUNK = 24, 4, 10
DEADLINE_S = 20.0


class Pair:
    """A prefill and a decode engine, their messages passed on at once, their bytes by `backend`."""

    def __init__(self, backend: str, faults: FaultConfig, verify_kv: bool):
        clock = FakeClock()
        self.prefill = Side(NUM_BLOCKS, BLOCK_SIZE, CHUNK, clock)
        self.decode = Side(NUM_BLOCKS, BLOCK_SIZE, CHUNK, clock)
        self.delivered: list[KvDelivered] = []
        self._num_requests = 0
        self._woken = threading.Event()
        make = BACKENDS[backend]
        source = self.prefill.segment
        self.writing = faulty(make(source), faults, source.view())
        self.writing.set_on_completion(self._woken.set)
        self.owning = make(self.decode.segment)
        self.peers = DecodePeers([self.writing], self._woken.set)
        self.decode.role = DecodeRole(
            self.decode.core,
            self.decode.layout,
            self.decode.checksums if verify_kv else None,
            [self.owning],
            self._to_prefill,
            lambda address: None,
            "decode-engine",
            CONFIG,
            clock,
        )
        self.prefill.role = PrefillRole(
            self.prefill.core,
            self.prefill.layout,
            self.prefill.checksums,
            self.peers,
            self._to_decode,
            CONFIG,
            clock,
        )
        hello = EngineHello(engine_id="decode-engine")
        self.prefill.inbox.append(PeerConnected(key=DECODE_KEY, hello=hello))

    def serve(self, name: str, prompt: list[int], num_new: int) -> tuple[list[int], Finish]:
        """Tokens and end of one request, with nothing left behind."""
        for side, address in ((self.decode, PREFILL_ADDRESS), (self.prefill, "")):
            request = EngineRequest(
                request_id=name,
                prompt_token_ids=prompt,
                sampling=SamplingParams(max_new_tokens=num_new if address else 1, temperature=0.0),
                handover=Handover(room=self._num_requests, peer_address=address),
            )
            side.role.submit(request)
        self._num_requests += 1
        while not self._is_over(name):
            self._turn()
        outputs = [output for output in self.decode.outputs if output.request_id == name]
        finish = outputs[-1].finish
        assert finish is not None
        for side in (self.prefill, self.decode):
            assert side.core.pool.num_in_use == 0, side.core.pool.holders()
        return [token for output in outputs for token in output.token_ids], finish

    def close(self) -> None:
        self.peers.close()
        self.writing.close()
        self.owning.close()
        for side in (self.prefill, self.decode):
            side.segment.close()

    def _turn(self) -> None:
        self._woken.clear()
        for side in (self.prefill, self.decode):
            side.receive(len(side.inbox))
            side.turn()
        if self._only_writes_are_under_way():
            assert self._woken.wait(DEADLINE_S), "nothing happens"

    def _only_writes_are_under_way(self) -> bool:
        sides = (self.prefill, self.decode)
        is_busy = any(side.inbox or side.core.has_work for side in sides)
        return not is_busy and self.prefill.role.num_handovers > 0

    def _is_over(self, name: str) -> bool:
        ended = [output for output in self.decode.outputs if output.request_id == name]
        is_ended = bool(ended) and ended[-1].finish is not None
        return is_ended and not (self.prefill.inbox or self.decode.inbox)

    def _to_prefill(self, address: str, message: HandoverMessage) -> None:
        self.prefill.inbox.append(PeerMessage(key=DECODE_KEY, message=message))

    def _to_decode(self, key: str, message: HandoverMessage) -> None:
        if isinstance(message, KvDelivered):
            self.delivered.append(message)
        self.decode.inbox.append(PeerMessage(key=PREFILL_ADDRESS, message=message))


@contextmanager
def pair(backend: str, faults: FaultConfig, *, verify_kv: bool) -> Iterator[Pair]:
    made = Pair(backend, faults, verify_kv)
    try:
        yield made
    finally:
        made.close()


def expected(prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(MODEL.next_token(tokens))
    return tokens[len(prompt) :]


both = pytest.mark.parametrize("backend", BACKENDS)
PROMPT = list(range(30))  # eight blocks of four, the last one half full


@both
def test_sound_blocks_pass_and_are_counted(backend: str) -> None:
    with pair(backend, FaultConfig(), verify_kv=True) as made:
        tokens, finish = made.serve("a", PROMPT, 5)
        assert (tokens, finish.reason) == (expected(PROMPT, 5), FinishReason.LENGTH)
        tokens, _ = made.serve("b", [*PROMPT[:28], 90, 91, 92], 5)  # seven blocks are there already
        assert tokens == expected([*PROMPT[:28], 90, 91, 92], 5)
        counters = made.decode.core.counters
        assert (counters.verified_blocks, counters.damaged_blocks) == (8 + 1, 0)


@both
@pytest.mark.parametrize("seed", range(5))
def test_corruption_is_found_and_told_with_stage_block_and_peer(backend: str, seed: int) -> None:
    with pair(backend, FaultConfig(corrupt=1, seed=seed), verify_kv=True) as made:
        tokens, finish = made.serve("a", PROMPT, 5)
        assert tokens == []
        assert (finish.reason, finish.status) == (FinishReason.ERROR, 503)
        num_damaged = made.decode.core.counters.damaged_blocks
        assert 1 <= num_damaged <= 3  # one byte in each of three writes
        assert f"verifying KV (--verify-kv) failed: {num_damaged} of 8 blocks" in finish.message
        assert PREFILL_ADDRESS in finish.message
        assert damaged_block(made) in finish.message


def damaged_block(made: Pair) -> str:
    """The first block of the prompt whose bytes at decode, where nobody has used its blocks since,
    are not what prefill has a checksum of."""
    view, size = made.decode.segment.view(), made.decode.layout.block_bytes
    found = {BlockChecksums(view, size).of(block) for block in range(NUM_BLOCKS)}
    (message,) = made.delivered
    first = next(i for i, checksum in enumerate(message.checksums) if checksum not in found)
    return f"the first is block {first} of the prompt"


@both
def test_the_next_request_is_served_after_damage(backend: str) -> None:
    faults = FaultConfig(corrupt=0.3, seed=2)
    with pair(backend, faults, verify_kv=True) as made:
        ends = []
        for number in range(12):
            prompt = [number, *PROMPT]
            tokens, finish = made.serve(f"r{number}", prompt, 4)
            ends.append(finish.reason)
            assert tokens == (expected(prompt, 4) if finish.reason is FinishReason.LENGTH else [])
        assert set(ends) == {FinishReason.LENGTH, FinishReason.ERROR}


@both
def test_without_the_flag_nobody_computes_checksums_and_damage_goes_unnoticed(backend: str) -> None:
    """The reason for the flag: the text is wrong, and nothing says so."""
    with pair(backend, FaultConfig(corrupt=1, seed=1), verify_kv=False) as made:
        tokens, finish = made.serve("a", PROMPT, 5)
        assert finish.reason is FinishReason.LENGTH
        assert tokens != expected(PROMPT, 5)
        assert made.delivered[0].checksums == []
        assert made.decode.core.counters.verified_blocks == 0


@both
def test_a_write_that_comes_twice_is_sound(backend: str) -> None:
    with pair(backend, FaultConfig(duplicate=1), verify_kv=True) as made:
        tokens, finish = made.serve("a", PROMPT, 5)
        assert (tokens, finish.reason) == (expected(PROMPT, 5), FinishReason.LENGTH)
