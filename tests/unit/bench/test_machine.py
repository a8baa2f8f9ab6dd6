"""Reading facts from what the system writes."""

from pathlib import Path

import pytest

from baton.bench.machine import (
    OtherLoad,
    cache_bytes,
    cpu_name,
    describe_machine,
    last_level_cache_bytes,
)
from baton.core.clock import FakeClock


@pytest.mark.parametrize(
    ("text", "size"), [("32768K\n", 32 << 20), ("1M", 1 << 20), ("512", 512), ("", 0), ("x", 0)]
)
def test_cache_sizes(text: str, size: int) -> None:
    assert cache_bytes(text) == size


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "1024K", "32768K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 32 << 20


def test_a_system_that_does_not_tell_gets_a_common_size(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path) == 32 << 20


def test_the_processors_name() -> None:
    assert cpu_name("processor\t: 0\nmodel name\t: A: CPU\n") == "A: CPU"
    assert cpu_name("") is None


def test_a_description_has_no_empty_field() -> None:
    clock = FakeClock()
    others = OtherLoad(clock)
    clock.advance(1.0)
    machine = describe_machine("portable", others)
    assert machine.isa == "portable"
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.other_cores >= 0.0
    assert all(machine.versions.values())
    assert "portable" in machine.available_isas
