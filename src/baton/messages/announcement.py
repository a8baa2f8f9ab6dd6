"""What a worker tells routers of itself, and the proof that it knows the cluster's secret.

    worker                                            router
      POST /workers/announce, body Announcement ──>
                           <── 401, X-Baton-Challenge     (the first time, or an old challenge)
      the same, X-Baton-Challenge, X-Baton-Signature ──>
                           <── 200, X-Baton-Challenge     (for the next one)

The signature is an HMAC of the challenge and of the body, byte by byte. A challenge is one
router's, drawn at random and short-lived, and a process numbers its announcements: what was
overheard is worth nothing later, at another router, or after a restart of this one. Clocks need not
agree.
Elsewhere: saying it (cluster/announcer.py), believing it (router/announcements.py).
"""

import hmac
from typing import Annotated, Final, Literal

import msgspec

from baton.core.request import Role

ANNOUNCE_PATH: Final = "/workers/announce"
CHALLENGE_HEADER: Final = "X-Baton-Challenge"
SIGNATURE_HEADER: Final = "X-Baton-Signature"

_LABEL: Final = b"baton worker announcement\0"

Intent = Literal["serving", "draining", "gone"]
"""serving: send requests. draining: send no new ones. gone: nobody listens any more."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """`instance` is drawn at random by each process; `number` grows with each of its announcements.
    `lease_s`: after so long without another one, the worker counts as gone."""

    url: Annotated[str, msgspec.Meta(max_length=1024)]
    role: Role
    instance: Annotated[str, msgspec.Meta(min_length=16, max_length=64)]
    number: Annotated[int, msgspec.Meta(ge=1)]
    intent: Intent
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    bootstrap_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


def sign(secret: str, challenge: str, body: bytes) -> str:
    """What only who knows the secret can say of this body, in answer to this challenge."""
    text = _LABEL + challenge.encode() + b"\0" + body
    return hmac.digest(secret.encode(), text, "sha256").hex()


def is_signed(secret: str, challenge: str, body: bytes, signature: str) -> bool:
    given = signature.encode("utf-8", "replace")
    return hmac.compare_digest(given, sign(secret, challenge, body).encode())
