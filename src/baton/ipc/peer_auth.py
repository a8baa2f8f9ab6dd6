"""Proof of the cluster's secret on a control connection, and frames that only its two ends can make
or read. Pure: no sockets.

    connecting side                           listening side
      challenge (protocol, nonce)  ── both at once ──  challenge (protocol, nonce)
      proof                        ───────────────>
                                   <───────────────    proof
      sealed frames                <── from now on ─>  sealed frames

Who connects proves first, so that a stranger who reaches a port learns nothing made with the
secret. A proof names its maker's part and both nonces: it can be neither reflected nor replayed.
Sealing uses keys of this connection and direction, and counts frames: none can be forged, repeated,
dropped or read by who merely carries the bytes (a relay that a client sent decode to).

Invariant: nothing but challenge and proof is taken or sent before the other side's proof holds.
Elsewhere: the connection (peer_connection.py), the secret itself (launch/cluster_secret.py).
"""

import hashlib
import hmac
import secrets
import struct

from baton.core.errors import BatonError
from baton.ipc.framing import FrameError

PROTOCOL = 2
MAX_HANDSHAKE_BYTES = 64
"""Of one frame before the proof."""

_CHALLENGE = struct.Struct("!8sH32s")
_MAGIC = b"BATNCTL1"
_PROOF_BYTES = 32
_TAG_BYTES = 16
_COUNTER = struct.Struct("!Q")

REFUSAL = bytes(_PROOF_BYTES)
"""Sent in place of a proof: no proof at all, so that the other side learns why it is let go."""


class WrongSecret(BatonError):
    """The other side does not know our cluster secret, or has one where we have none."""

    def __init__(self) -> None:
        super().__init__("set the same BATON_CLUSTER_SECRET on both workers, or on neither")


class Handshake:
    """One side of one connection. An empty `secret` meets an empty secret only."""

    def __init__(self, secret: bytes, *, is_connecting: bool):
        self._secret = secret
        self._own_part, self._other_part = (
            (b"connects", b"listens") if is_connecting else (b"listens", b"connects")
        )
        self._is_connecting = is_connecting
        self._nonce = secrets.token_bytes(32)
        self._transcript = b""

    def challenge(self) -> bytes:
        return _CHALLENGE.pack(_MAGIC, PROTOCOL, self._nonce)

    def read_challenge(self, payload: bytes) -> None:
        """Raises FrameError if it is none, or of another protocol."""
        if len(payload) != _CHALLENGE.size:
            raise FrameError("it did not begin as a peer's engine does")
        magic, protocol, nonce = _CHALLENGE.unpack(payload)
        if magic != _MAGIC:
            raise FrameError("it did not begin as a peer's engine does")
        if protocol != PROTOCOL:
            raise FrameError(
                f"the peer speaks protocol {protocol}, this engine {PROTOCOL}; "
                "run the same version of Baton on both"
            )
        nonces = (self._nonce, nonce) if self._is_connecting else (nonce, self._nonce)
        self._transcript = b"".join(nonces)

    def proof(self) -> bytes:
        return self._derive(b"proof", self._own_part)

    def check_proof(self, payload: bytes) -> None:
        """Raises FrameError if it cannot be one, WrongSecret if it does not hold."""
        if len(payload) != _PROOF_BYTES:
            raise FrameError("what came after its challenge is no proof")
        if not hmac.compare_digest(payload, self._derive(b"proof", self._other_part)):
            raise WrongSecret

    def seals(self) -> tuple["FrameSeal", "FrameSeal"]:
        """For what this side sends, and for what it receives."""
        return self._seal(self._own_part), self._seal(self._other_part)

    def _seal(self, part: bytes) -> "FrameSeal":
        return FrameSeal(self._derive(b"tag", part), self._derive(b"mask", part))

    def _derive(self, purpose: bytes, part: bytes) -> bytes:
        assert self._transcript, "the other side's challenge comes first"
        label = b"baton control " + purpose + b" " + part + b"\0"
        return hmac.digest(self._secret, label + self._transcript, "sha256")


class FrameSeal:
    """One direction of a connection: masks a frame with SHAKE-256 of (key, number), then appends
    an HMAC-SHA256 of (number, masked frame), cut to 16 bytes."""

    OVERHEAD_BYTES = _TAG_BYTES

    def __init__(self, tag_key: bytes, mask_key: bytes):
        self._tag_key = tag_key
        self._mask_key = mask_key
        self._num_frames = 0

    def seal(self, payload: bytes) -> bytes:
        number = self._next_number()
        masked = self._mask(number, payload)
        return masked + self._tag(number, masked)

    def open(self, sealed: bytes) -> bytes:
        """Raises FrameError for a frame that is not the next one of the other side."""
        number = self._next_number()
        masked, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(number, masked)):
            raise FrameError("a frame was changed, repeated or lost on its way")
        return self._mask(number, masked)

    def _next_number(self) -> bytes:
        self._num_frames += 1
        return _COUNTER.pack(self._num_frames)

    def _tag(self, number: bytes, masked: bytes) -> bytes:
        return hmac.digest(self._tag_key, number + masked, "sha256")[:_TAG_BYTES]

    def _mask(self, number: bytes, text: bytes) -> bytes:
        stream = hashlib.shake_256(self._mask_key + number).digest(len(text))
        return (int.from_bytes(text, "big") ^ int.from_bytes(stream, "big")).to_bytes(
            len(text), "big"
        )
