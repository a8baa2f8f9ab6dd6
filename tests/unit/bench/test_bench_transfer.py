"""The transfer benchmark, small: every way is measured, what is written is right, nothing stays."""

import itertools
import os

import msgspec
import psutil
import pytest

from baton.bench.bench_transfer import bench_transfer, percentile
from baton.bench.config import TransferBenchConfig
from baton.bench.report import Report
from baton.bench.transfer_far import FarSide
from baton.bench.transfer_ways import make_payloads, region_bytes
from baton.core.errors import ConfigError
from baton.transfer.registry import BACKENDS

BLOCK_BYTES = 368_640
SMALL = TransferBenchConfig(rounds=3, block_bytes=16_384, max_mib=16, idle_s=0.05)


def children() -> set[int]:
    """Other tests' servers may be among them."""
    return {each.pid for each in psutil.Process(os.getpid()).children()}


def test_a_small_run_has_every_figure_and_claim() -> None:
    before = children()
    report = bench_transfer(SMALL, backends=("shm", "tcp", "carrier pigeon"))
    ways = ("memcpy", "socket", "shm", "tcp")
    for way in ways:
        for size in ("64KiB", "block", "1MiB", "16MiB"):
            name = f"{way}_{size}"
            assert len(report.figures[name].samples) == SMALL.rounds
            assert report.figures[name].unit == "GB/s"
            assert 0 < report.figures[f"{name}_p50"].median <= report.figures[f"{name}_p99"].median
        assert f"{way}_cpu_per_gb" in report.figures
    for backend in ("shm", "tcp"):
        handover = report.figures[f"{backend}_handover"]
        assert handover.unit == "ms"
        assert handover.median > 0
        assert report.figures[f"{backend}_idle"].median >= 0
    assert {name: ratio.floor for name, ratio in report.ratios.items()} == {
        "shm_vs_memcpy_16MiB": 0.9,
        "tcp_vs_socket_16MiB": 0.9,
        "shm_handover_under_1_ms": 1.0,
        "shm_idle_under_2_percent": 1.0,
        "tcp_idle_under_2_percent": 1.0,
    }
    under_1_ms = report.ratios["shm_handover_under_1_ms"].measured
    assert under_1_ms == pytest.approx(1 / report.figures["shm_handover"].median, rel=1e-3)
    assert list(report.skipped) == ["carrier pigeon"]
    assert "is not known; try one of shm, tcp" in report.skipped["carrier pigeon"]
    assert msgspec.json.decode(report.to_json(), type=Report) == report
    assert children() == before


def test_payloads_are_scattered_blocks_of_about_their_size() -> None:
    payloads = {payload.name: payload for payload in make_payloads(BLOCK_BYTES, 128)}
    assert list(payloads) == ["64KiB", "block", "1MiB", "16MiB", "128MiB"]
    assert payloads["64KiB"].num_bytes == 64 << 10
    assert [len(payload.copies) for payload in payloads.values()] == [1, 1, 3, 46, 364]
    for payload in payloads.values():
        targets = [copy.dst_offset for copy in payload.copies]
        assert len({copy.src_offset for copy in payload.copies}) == len(payload.copies)
        assert all(b - a >= 2 * BLOCK_BYTES for a, b in itertools.pairwise(targets))
    ends = [c.src_offset + c.num_bytes for p in payloads.values() for c in p.copies]
    assert max(ends) <= region_bytes(list(payloads.values()))


def test_the_largest_write_can_be_limited() -> None:
    assert [payload.name for payload in make_payloads(BLOCK_BYTES, 1)] == ["64KiB", "block", "1MiB"]


@pytest.mark.parametrize(("share", "value"), [(0.99, 99), (0.5, 50), (1.0, 100), (0.001, 1)])
def test_percentiles_are_values_that_occurred(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_the_far_side_says_why_it_cannot_start_and_is_gone() -> None:
    before = children()
    with pytest.raises(ConfigError, match="carrier pigeon"):
        FarSide("carrier pigeon", 4096)
    assert children() == before


def test_the_far_side_counts_its_own_processor_time() -> None:
    far = FarSide("shm", 4096)
    try:
        assert 0 < far.cpu_s() <= far.cpu_s()
        assert far.descriptor.backend == "shm"
    finally:
        far.close()
    assert not psutil.pid_exists(far.pid)


def test_every_backend_of_the_registry_is_measured_by_default() -> None:
    assert bench_transfer.__defaults__ == (tuple(BACKENDS),)
