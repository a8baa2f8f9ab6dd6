"""The loads of a suite: what is put on each freshly started server, one load after another.

Pure. Invariant: a load's prompts depend on the seed, the round and the load alone, so all servers
get the same, and rounds and loads differ. What leaves work behind on a server (streams that the
client leaves) comes last.
Elsewhere: running them (baton/launch/bench_suite.py), what is made of the figures (claims.py).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from baton.bench.serve.compare import KNOWN, Candidate
from baton.bench.serve.config import (
    DatasetConfig,
    DatasetName,
    LimitsConfig,
    LoadConfig,
    SuiteConfig,
)
from baton.core.errors import ConfigError

SATURATED: Final = "saturated"
STEADY: Final = "steady"
TRACES: Final[Mapping[str, DatasetName]] = {".csv": "azure", ".jsonl": "mooncake"}
SESSIONS: Final = "sessions"
INTERFERENCE: Final = "interference"

SERVERS: Final = (
    *("baton-adaptive", "baton-pd", "baton-unified"),
    *("openvino", "vllm-128", "vllm-512", "vllm-pd", "llama.cpp"),
)
"""What a suite compares where nobody says: as many of these as are known and installed."""

_PROGRAMS: Final = {
    "llama.cpp.sh": "llama_cpp/build/bin/llama-server",
    "openvino.sh": "openvino/bin/python",
    "vllm.sh": "vllm/bin/python",
    "vllm-pd.sh": "vllm/bin/python",
}
"""Of each script, what it starts, where benchmarks/peers installs it."""

_CONTEXT_TOKENS: Final = 2048
_OUTPUT_TOKENS: Final = 64
_LIMITS: Final = ("ttft:1000", "itl:100")

_TIME_SCALES: Final[Mapping[DatasetName, float]] = {"azure": 1.5, "mooncake": 1.0}
_LENGTH_SCALES: Final[Mapping[DatasetName, float]] = {"azure": 0.2, "mooncake": 0.03}
_TRACE_SKIP: Final = 80  # Azure's begins with half of its usual load
_TRACE_RATE: Final[Mapping[DatasetName, float]] = {"azure": 3.7, "mooncake": 3.0}  # rows a second
"""So that two cores can nearly serve them, with prompts of about 220 and 380 tokens."""

_FIRST_SESSIONS: Final = 4
_REQUESTS_PER_SESSION: Final = 3
_REQUESTS_PER_STEP: Final = 20
_SESSION_PRECISION: Final = 8

_LONG_GAP_S: Final = 2.0
_LONG_RATIO: Final = 0.75
_LONG_OUTPUT_TOKENS: Final = 4
_NEARLY_REGULAR: Final = 1000.0
_STREAM_TOKENS: Final = 1000

_ROUND_SEED: Final = 104_729
_LOAD_SEED: Final = 15_485_863


@dataclass(frozen=True)
class SuiteLoad:
    """`about` says in words what is sent."""

    name: str
    about: str
    dataset: DatasetConfig
    load: LoadConfig
    limits: LimitsConfig

    def of_round(self, number: int) -> "SuiteLoad":
        """With prompts that no other round has."""
        seed = self.dataset.seed + number * _ROUND_SEED
        return replace(self, dataset=replace(self.dataset, seed=seed))


def plan_suite(
    config: SuiteConfig, dataset: DatasetConfig, limits: LimitsConfig
) -> list[SuiteLoad]:
    """The loads, in order. `dataset` gives seed, ShareGPT's file and what else no load sets itself;
    `limits` what is good enough, TTFT 1 s and ITL 100 ms where it says nothing. Raises ConfigError
    for a load that the suite does not have."""
    dataset = replace(dataset, max_context_len=dataset.max_context_len or _CONTEXT_TOKENS)
    limits = replace(limits, goodput=limits.goodput or _LIMITS, find_sessions=False)
    questions = replace(
        dataset,
        dataset_name="sharegpt",
        sharegpt_output_len=dataset.sharegpt_output_len or _OUTPUT_TOKENS,
    )
    loads = [
        _steady(config, questions, limits),
        _saturated(config, questions, limits),
        *(_trace(path, config, dataset, limits) for path in config.suite_traces),
        _sessions(config, questions, limits),
        _interference(config, dataset),
    ]
    return _chosen(config.suite_loads, [_apart(each, at) for at, each in enumerate(loads)])


def default_servers(peers: Path) -> tuple[list[Candidate], dict[str, str]]:
    """Those of SERVERS that can be started, and why the others cannot. `peers`: where other engines
    are installed."""
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name in SERVERS:
        candidate = KNOWN.get(name)
        if candidate is None:
            continue
        program = _PROGRAMS.get(candidate.script or "")
        if program is None or os.access(peers / program, os.X_OK):
            found.append(candidate)
        else:
            left_out[name] = "not installed"
    return found, left_out


def _saturated(config: SuiteConfig, questions: DatasetConfig, limits: LimitsConfig) -> SuiteLoad:
    number = config.suite_burst
    return SuiteLoad(
        SATURATED,
        f"{number} questions of ShareGPT at once, {questions.sharegpt_output_len} tokens each",
        replace(questions, num_prompts=number),
        LoadConfig(request_rate=float("inf")),
        limits,
    )


def _steady(config: SuiteConfig, questions: DatasetConfig, limits: LimitsConfig) -> SuiteLoad:
    number = max(1, round(config.suite_rate * config.suite_seconds))
    return SuiteLoad(
        STEADY,
        f"{number} questions of ShareGPT at random times, {config.suite_rate:g} a second, "
        f"{questions.sharegpt_output_len} tokens each",
        replace(questions, num_prompts=number),
        LoadConfig(request_rate=config.suite_rate),
        limits,
    )


def _trace(
    path: Path, config: SuiteConfig, dataset: DatasetConfig, limits: LimitsConfig
) -> SuiteLoad:
    name = TRACES.get(path.suffix)
    if name is None:
        raise ConfigError(f"--suite-traces {path} is neither a .csv of Azure's nor a .jsonl")
    time_scale = _TIME_SCALES[name] / config.suite_trace_speed
    number = max(1, round(_TRACE_RATE[name] * config.suite_trace_speed * config.suite_seconds))
    return SuiteLoad(
        name,
        f"{number} requests of the trace {path.name}, times x {time_scale:g}, lengths x"
        f" {_LENGTH_SCALES[name]:g}",
        replace(
            dataset,
            dataset_name=name,
            dataset_path=path,
            num_prompts=number,
            trace_time_scale=time_scale,
            trace_length_scale=_LENGTH_SCALES[name],
            trace_skip=_TRACE_SKIP,
        ),
        LoadConfig(),
        limits,
    )


def _sessions(config: SuiteConfig, questions: DatasetConfig, limits: LimitsConfig) -> SuiteLoad:
    return SuiteLoad(
        SESSIONS,
        f"questions of ShareGPT, {questions.sharegpt_output_len} tokens each, each client's next"
        " when its last is answered; as many clients as can be with"
        f" {' and '.join(limits.goodput)} ms, each kept by {config.suite_attainment:.0%} of the"
        " requests",
        questions,
        LoadConfig(),
        replace(
            limits,
            find_sessions=True,
            attainment=config.suite_attainment,
            first_sessions=_FIRST_SESSIONS,
            requests_per_session=_REQUESTS_PER_SESSION,
            requests_per_step=_REQUESTS_PER_STEP,
            session_precision=_SESSION_PRECISION,
        ),
    )


def _interference(config: SuiteConfig, dataset: DatasetConfig) -> SuiteLoad:
    longest = config.suite_long_len
    return SuiteLoad(
        INTERFERENCE,
        f"{config.suite_streams} streams run while {config.suite_long_prompts} prompts of"
        f" {round(longest * _LONG_RATIO)} to {longest} tokens arrive, one at a time, at least"
        f" {_LONG_GAP_S:g} s apart; ITL is the streams', TTFT the prompts'",
        replace(
            dataset,
            dataset_name="random-ids",
            dataset_path=None,
            num_prompts=config.suite_long_prompts,
            num_turns=1,
            random_input_len=longest,
            random_range_ratio=_LONG_RATIO,
            random_output_len=_LONG_OUTPUT_TOKENS,
            max_context_len=None,
        ),
        LoadConfig(
            request_rate=1 / _LONG_GAP_S,
            burstiness=_NEARLY_REGULAR,
            max_concurrency=1,
            background_streams=config.suite_streams,
            background_output_len=_STREAM_TOKENS,
        ),
        LimitsConfig(),
    )


def _apart(load: SuiteLoad, at: int) -> SuiteLoad:
    """With prompts of its own: loads follow each other on one server."""
    seed = load.dataset.seed + at * _LOAD_SEED
    return replace(load, dataset=replace(load.dataset, seed=seed))


def _chosen(names: Sequence[str], loads: Sequence[SuiteLoad]) -> list[SuiteLoad]:
    known = [each.name for each in loads]
    if len(set(known)) < len(known):
        raise ConfigError("--suite-traces: two traces of one kind; give one of each")
    for name in names:
        if name not in known:
            raise ConfigError(f"--suite-loads {name} is none of {', '.join(known)}")
    return [each for each in loads if not names or each.name in names]
