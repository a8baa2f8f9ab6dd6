"""The cable between two hosts is cut and mended while a writer writes over it.

Elsewhere: the hosts (network_hosts.py).
"""

import time

from baton.kvcache.storage import SharedSegment
from baton.testing.network_hosts import NetworkHost
from baton.testing.region_owner import open_region
from baton.testing.region_writer import RemoteWriter
from baton.testing.transport_checks.sides import (
    REGION_BYTES,
    WHOLE_REGION,
    WINDOW,
    Side,
    wait_until,
)
from baton.transfer.protocol import KvTransport

STALL_TIMEOUT_S = 2.0
SHORT_CUT_S = 0.5
"""Longer than several resends of TCP."""


def check_a_short_cut(backend: str, here: NetworkHost, there: NetworkHost) -> None:
    """Whether writes survive it or fail, no byte is wrong, and all of a DONE one are there."""
    with here.entered():
        owner = Side(lambda segment: _open(backend, segment, here))
    if not owner.transport.same_host_only:
        with _writer(backend, there) as writer:
            _write_much(writer, owner)
            here.cut()
            time.sleep(SHORT_CUT_S)  # the fault itself, not a wait for something
            here.mend()
            wait_until(lambda: "pending" not in writer.ask("states"), "all writes ending")
            if "done" in writer.ask("states"):
                assert owner.view == writer.source
            else:
                assert _is_a_part_of(owner.view, writer.source)
    owner.close()


def check_a_long_cut(backend: str, here: NetworkHost, there: NetworkHost) -> None:
    """Beyond the stall timeout: the writes fail while it is cut, and after it was mended nothing
    of the closed window changes, and a new connection works."""
    with here.entered():
        owner = Side(lambda segment: _open(backend, segment, here))
    if not owner.transport.same_host_only:
        with _writer(backend, there) as writer:
            _write_much(writer, owner)
            here.cut()
            try:
                wait_until(lambda: "pending" not in writer.ask("states"), "the writes failing")
                assert "failed" in writer.ask("states")
                writer.ask("disconnect")
                owner.transport.close_window(WINDOW)
                if owner.transport.can_fence:
                    owner.view[:] = bytes(REGION_BYTES)
            finally:
                here.mend()
            wait_until(lambda: not owner.transport.live_writers(), "the writer leaving")
            if not owner.transport.can_fence:
                owner.view[:] = bytes(REGION_BYTES)
            owner.transport.open_window("again", [(0, REGION_BYTES // 2)])
            wait_until(lambda: writer.connect(owner.transport.descriptor) == "ok", "connecting")
            writer.ask(f"post again {REGION_BYTES // 2} 1")
            wait_until(lambda: "pending" not in writer.ask("states"), "the write ending")
            assert writer.ask("states").endswith("done")
            half = REGION_BYTES // 2
            assert owner.view[:half] == writer.source[:half]
            assert owner.view[half:] == bytes(half), "a closed window changed"
    owner.close()


def _open(backend: str, segment: SharedSegment, host: NetworkHost) -> KvTransport:
    return open_region(backend, segment, host=host.address, stall_timeout_s=STALL_TIMEOUT_S)


def _writer(backend: str, host: NetworkHost) -> RemoteWriter:
    return RemoteWriter(
        backend,
        REGION_BYTES,
        prefix=host.prefix,
        host=host.address,
        stall_timeout_s=STALL_TIMEOUT_S,
    )


def _write_much(writer: RemoteWriter, owner: Side) -> None:
    owner.transport.open_window(WINDOW, WHOLE_REGION)
    assert writer.connect(owner.transport.descriptor) == "ok"
    writer.ask(f"post {WINDOW} {REGION_BYTES} 200")
    wait_until(lambda: owner.view[0] == writer.source[0], "the first byte")


def _is_a_part_of(view: memoryview, source: bytes) -> bool:
    """Every byte is zero still, or what was sent for it."""
    return all(got in (0, sent) for got, sent in zip(view, source, strict=True))
