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
