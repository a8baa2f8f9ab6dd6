"""Profiles of a whole tree of workers: each writes a trace of its own, and one file is made of all.

Elsewhere: a worker's own (worker_profile.py), which processes there are (topology.py).
"""

import dataclasses
import shutil
from pathlib import Path

import msgspec

from baton.core.errors import ConfigError
from baton.launch.topology import ChildSpec, Topology
from baton.launch.trace_file import read_trace, write_trace
from baton.obs.chrome_trace import merge
from baton.obs.profile_config import ProfileConfig


def with_profiles(topology: Topology, config: ProfileConfig) -> Topology:
    """Each profiled worker writes a trace of its own, which `join_profiles` makes one."""
    if config.profile_output is None:
        return topology
    folder = _parts_folder(config.profile_output)
    workers = tuple(_with_profile(each, folder, config) for each in topology.workers)
    return dataclasses.replace(topology, workers=workers)


def prepare_profiles(config: ProfileConfig) -> None:
    """Make room for the workers' traces; what an earlier run left is removed. Raises
    ConfigError."""
    if config.profile_output is not None:
        folder = _parts_folder(config.profile_output)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
        except OSError as error:
            raise ConfigError(
                f"--profile-output {config.profile_output}: {folder.parent} cannot be written to "
                f"({error.strerror}); name a file elsewhere"
            ) from error


def join_profiles(config: ProfileConfig) -> bool:
    """The workers have ended: one file of all their traces. False: none of them wrote one. Raises
    ConfigError when the file cannot be written."""
    if config.profile_output is None:
        return False
    folder = _parts_folder(config.profile_output)
    traces = [read_trace(path) for path in sorted(folder.glob("*.json"))]
    if traces:
        write_trace(config.profile_output, msgspec.json.encode(merge(traces)))
    shutil.rmtree(folder)
    return bool(traces)


def _with_profile(spec: ChildSpec, folder: Path, config: ProfileConfig) -> ChildSpec:
    role = spec.name.partition("-")[0]
    if not config.is_for(role):
        return spec
    flag = f"--profile-output={folder / f'{spec.name}.json'}"
    return dataclasses.replace(spec, argv=(*spec.argv, flag))


def _parts_folder(output: Path) -> Path:
    return output.absolute().with_name(f".{output.name}.parts")
