"""What a prefill worker says about writing its KV, in a header of its answer.

Invariant: an odd report counts as none.
Elsewhere: what is made of it (policies/speeds.py).
"""

from typing import Final, NamedTuple

from baton.router.http.upstream import RawHeaders

_HEADER: Final = b"x-baton-transfer"
_MAX_CHARS: Final = 40
_MAX_SECONDS: Final = 3600.0


class Transfer(NamedTuple):
    """KV of so many tokens went over, for so long after the prompt was computed."""

    num_tokens: int
    seconds: float


def transfer_in(headers: RawHeaders) -> Transfer | None:
    for name, value in headers:
        if name == _HEADER:
            return _parsed(value)
    return None


def _parsed(value: bytes) -> Transfer | None:
    tokens, _, seconds = value.partition(b" ")
    try:
        transfer = Transfer(int(tokens), float(seconds))
    except ValueError:
        return None
    is_sane = len(value) <= _MAX_CHARS and transfer.num_tokens > 0
    return transfer if is_sane and 0 <= transfer.seconds <= _MAX_SECONDS else None
