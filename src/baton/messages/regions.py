"""How one engine tells another where its KV pool can be reached."""

from typing import Annotated

import msgspec


class RegionDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """How a peer reaches a registered region.

    `host_id` tells apart hosts (and network namespaces): a same-host backend is usable only if it
    equals the peer's own. `address` is backend-specific: "place/token" where a token guards it,
    and then for the peer's eyes only; logs and errors name the `place`.
    """

    backend: str
    host_id: str
    address: str
    num_bytes: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def place(self) -> str:
        return self.address.partition("/")[0]


class LibraryInvitation(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer needs to reach a region through a transfer library.

    `endpoint` is the library's own: Mooncake's session id, NIXL's agent metadata. `address` is
    where the region begins in the owner's memory, `proof_address` where a few bytes are that a new
    writer fills to see that it gets through.
    """

    endpoint: bytes
    address: Annotated[int, msgspec.Meta(ge=0)]
    proof_address: Annotated[int, msgspec.Meta(ge=0)]
