"""The cable between two hosts is cut and mended while a writer writes over it.

Elsewhere: the hosts (network_hosts.py).
"""

import contextlib
import time
from collections.abc import Iterator

from baton.testing.network_hosts import NetworkHost
from baton.testing.region_owner import RemoteOwner
from baton.testing.region_writer import RemoteWriter
from baton.testing.transport_checks.sides import REGION_BYTES, WINDOW, wait_until

STALL_TIMEOUT_S = 2.0
SHORT_CUT_S = 0.5
"""Longer than several resends of TCP."""


def check_a_short_cut(backend: str, here: NetworkHost, there: NetworkHost) -> None:
    """Whether writes survive it or fail, no byte is wrong, and all of a DONE one are there."""
    with _writing(backend, here, there) as (writer, _, view):
        here.cut()
        time.sleep(SHORT_CUT_S)  # the fault itself, not a wait for something
        here.mend()
        wait_until(lambda: "pending" not in writer.ask("states"), "all writes ending")
        if "done" in writer.ask("states"):
            assert view == writer.source
        else:
            assert _is_a_part_of(view, writer.source)


def check_a_long_cut(backend: str, here: NetworkHost, there: NetworkHost) -> None:
    """Beyond the stall timeout: the writes fail while it is cut, and after it was mended nothing
    of the closed window changes, and a new connection works."""
    with _writing(backend, here, there) as (writer, owner, view):
        can_fence = owner.ask("fence") == "yes"
        here.cut()
        try:
            wait_until(lambda: "pending" not in writer.ask("states"), "the writes failing")
            assert "failed" in writer.ask("states")
            writer.ask("disconnect")
            owner.ask(f"close {WINDOW}")
            if can_fence:
                view[:] = bytes(REGION_BYTES)
        finally:
            here.mend()
        wait_until(lambda: owner.ask("writers") == "", "the writer leaving")
        if not can_fence:
            view[:] = bytes(REGION_BYTES)
        half = REGION_BYTES // 2
        owner.ask(f"open again 0 {half}")
        wait_until(lambda: writer.connect(owner.descriptor) == "ok", "connecting")
        writer.ask(f"post again {half} 1")
        wait_until(lambda: "pending" not in writer.ask("states"), "the write ending")
        assert writer.ask("states").endswith("done")
        assert view[:half] == writer.source[:half]
        assert view[half:] == bytes(half), "a closed window changed"


@contextlib.contextmanager
def _writing(
    backend: str, here: NetworkHost, there: NetworkHost
) -> Iterator[tuple[RemoteWriter, RemoteOwner, memoryview]]:
    """A writer on `there`, whose bytes arrive `here` and are followed by many more."""
    with (
        RemoteOwner(
            backend,
            REGION_BYTES,
            prefix=_prefix(here),
            host=here.address,
            stall_timeout_s=STALL_TIMEOUT_S,
        ) as owner,
        RemoteWriter(
            backend,
            REGION_BYTES,
            prefix=_prefix(there),
            host=there.address,
            stall_timeout_s=STALL_TIMEOUT_S,
        ) as writer,
        owner.region() as view,
    ):
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        assert writer.connect(owner.descriptor) == "ok"
        writer.ask(f"post {WINDOW} {REGION_BYTES} 200")
        wait_until(lambda: view[0] == writer.source[0], "the first byte")
        yield writer, owner, view


def _prefix(host: NetworkHost) -> list[str]:
    # Both are on one kernel, where UCX would otherwise copy from process to process.
    return [*host.prefix, "env", "UCX_TLS=tcp"]


def _is_a_part_of(view: memoryview, source: bytes) -> bool:
    """Every byte is zero still, or what was sent for it."""
    return all(got in (0, sent) for got, sent in zip(view, source, strict=True))
