"""Whose trace goes where: the options, the workers of a tree, and the one file at the end."""

import itertools
from pathlib import Path

import msgspec
import pytest

from baton.core.errors import ConfigError
from baton.core.timeline import ClockFacts
from baton.launch.topology import ServeConfig, Topology, plan_topology
from baton.launch.trace_file import read_trace
from baton.launch.tree_profile import join_profiles, prepare_profiles, with_profiles
from baton.obs.chrome_trace import Trace, TracedProcess, TraceFacts
from baton.obs.profile_config import ProfileConfig


def tree(config: ServeConfig) -> Topology:
    ports = itertools.count(40001)
    return plan_topology(
        config, model_path="m", worker_argv=(), num_cores=4, free_port=lambda: next(ports)
    )


def profiled(topology: Topology) -> dict[str, Path]:
    """The trace of each worker that has one."""
    return {
        worker.name: Path(word.removeprefix("--profile-output="))
        for worker in topology.workers
        for word in worker.argv
        if word.startswith("--profile-output=")
    }


def a_trace(pid: int) -> bytes:
    process = TracedProcess(pid=pid, kind="engine", role="decode", start_s=0, end_s=1)
    clock = ClockFacts(boot_id="b", wall_offset_s=0.0)
    return msgspec.json.encode(Trace(events=[], facts=TraceFacts(clock=clock, processes=[process])))


@pytest.mark.parametrize(
    ("prefill", "decode", "names"),
    [
        (False, False, ["prefill-0", "prefill-1", "decode-0"]),
        (True, False, ["prefill-0", "prefill-1"]),
        (False, True, ["decode-0"]),
        (True, True, ["prefill-0", "prefill-1", "decode-0"]),
    ],
)
def test_the_named_roles_are_profiled_and_all_where_none_is(
    tmp_path: Path, prefill: bool, decode: bool, names: list[str]
) -> None:
    config = ProfileConfig(tmp_path / "t.json", prefill, decode)
    found = profiled(with_profiles(tree(ServeConfig(workers="2p1d")), config))
    assert list(found) == names
    assert len(set(found.values())) == len(names)


def test_unified_workers_are_profiled_and_nobody_unasked(tmp_path: Path) -> None:
    unified = tree(ServeConfig(unified=2))
    assert list(profiled(with_profiles(unified, ProfileConfig(tmp_path / "t.json")))) == [
        "unified-0",
        "unified-1",
    ]
    assert with_profiles(unified, ProfileConfig()) is unified


def test_one_file_is_made_of_the_workers_traces(tmp_path: Path) -> None:
    config = ProfileConfig(tmp_path / "t.json")
    parts = profiled(with_profiles(tree(ServeConfig(workers="1p1d")), config))
    for _ in range(2):  # what a run before left is not in the next one's file
        prepare_profiles(config)
        for pid, path in enumerate(parts.values()):
            path.write_bytes(a_trace(pid))
    assert join_profiles(config)
    assert sorted(process.pid for process in read_trace(tmp_path / "t.json").facts.processes) == [
        0,
        1,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_no_trace_is_no_file(tmp_path: Path) -> None:
    config = ProfileConfig(tmp_path / "t.json")
    prepare_profiles(config)
    assert not join_profiles(config)
    assert list(tmp_path.iterdir()) == []


def test_options_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile-decode-worker needs a file"):
        ProfileConfig(profile_decode_worker=True)
    with pytest.raises(ConfigError, match="there is no folder"):
        ProfileConfig(tmp_path / "none" / "t.json")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"traceEvents": []}', b"\xff"])
def test_a_file_that_is_no_trace_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no trace of Baton"):
        read_trace(path)
