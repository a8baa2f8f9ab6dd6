"""W3C trace context: what of it goes on to workers, and the id that ties log lines together.

The router passes a client's trace on and begins none of its own; it adds no span, so the parent
stays who it was. What the specification calls malformed is dropped, the state with the parent.
Invariant: what goes on is well-formed and of bounded size.
Elsewhere: other headers (exchange.py). The specification: https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Mapping
from typing import Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_STATE_CHARS: Final = 512
MAX_STATE_MEMBERS: Final = 32
_LONG_MEMBER_CHARS: Final = 128
"""Members above this are the first to go (3.3.1.5)."""

_PARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-[0-9a-f]{2}(?P<more>-[!-~]{0,200})?"
)
_STATE = re.compile(r"[ -~\t]*")


def trace_id_of(headers: Mapping[str, str]) -> str:
    """The trace that a request belongs to, "" for none. Names are lower case."""
    parent = headers.get(TRACEPARENT)
    return "" if parent is None else _trace_id(parent)


def forwarded_trace(parent: str, state: str | None) -> dict[str, str]:
    """The headers that workers get."""
    if not _trace_id(parent):
        return {}
    forwarded = {TRACEPARENT: parent}
    kept = "" if state is None else _bounded(state)
    if kept:
        forwarded[TRACESTATE] = kept
    return forwarded


def _trace_id(parent: str) -> str:
    """Later versions may say more at the end; this one must not."""
    found = _PARENT.fullmatch(parent)
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return ""
    return found["trace_id"]


def _bounded(state: str) -> str:
    """As much as is allowed: the longest members go first, then those at the end, the oldest."""
    if not _STATE.fullmatch(state):
        return ""
    members = [member.strip() for member in state.split(",") if member.strip()]
    if len(state) <= MAX_STATE_CHARS and len(members) <= MAX_STATE_MEMBERS:
        return state.strip()
    if len(",".join(members)) > MAX_STATE_CHARS:
        members = [member for member in members if len(member) <= _LONG_MEMBER_CHARS]
    members = members[:MAX_STATE_MEMBERS]
    while len(",".join(members)) > MAX_STATE_CHARS:
        members.pop()
    return ",".join(members)
