"""Options of the benchmarks; `baton bench`'s command line is derived from these fields."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

_THREADS: Final[dict[str, Any]] = {
    "help": "threads of the kernels (default: the cores it may use)",
    "minimum": 1,
}


@dataclass(frozen=True)
class KernelBenchConfig:
    """How to measure kernels. Those that are measured per core run on one thread all the same."""

    rounds: int = field(
        default=30, metadata={"help": "samples of every case, taken in turn", "minimum": 3}
    )
    num_threads: int | None = field(default=None, metadata=_THREADS)


@dataclass(frozen=True)
class TransferBenchConfig:
    """How to measure KV transfer. The default block is that of the default model: 16 tokens of
    30 layers with 3 kv heads of 64 dimensions, keys and values, in bfloat16."""

    rounds: int = field(
        default=20, metadata={"help": "samples of every case, taken in turn", "minimum": 3}
    )
    block_bytes: int = field(
        default=368_640, metadata={"help": "bytes of one KV block", "minimum": 64}
    )
    max_mib: int = field(
        default=128, metadata={"help": "the largest write, in MiB", "minimum": 1, "metavar": "MIB"}
    )
    idle_s: float = field(
        default=3.0,
        metadata={"help": "how long each backend is watched idling", "metavar": "SECONDS"},
    )


@dataclass(frozen=True)
class RouterBenchConfig:
    """How to measure routers."""

    rounds: int = field(
        default=3, metadata={"help": "samples of every case, taken in turn", "minimum": 1}
    )
    seconds: float = field(
        default=1.0, metadata={"help": "how long each sample takes", "metavar": "SECONDS"}
    )
    clients: tuple[int, ...] = field(
        default=(1, 64, 256), metadata={"help": "numbers of clients to measure with", "minimum": 1}
    )
    route: Literal["generate", "chat"] = field(
        default="generate", metadata={"help": "SGLang's /generate, or OpenAI's chat"}
    )
    num_workers: int = field(
        default=1000,
        metadata={
            "flags": ("--workers",),
            "help": "workers among which choosing a pair is timed",
            "minimum": 2,
        },
    )


@dataclass(frozen=True)
class EngineBenchConfig:
    """How to measure the engine, and with which model."""

    model_path: str | None = field(
        default=None, metadata={"help": "path or name of the model (default: the embedded one)"}
    )
    rounds: int = field(
        default=6, metadata={"help": "samples of every case, taken in turn", "minimum": 2}
    )
    num_threads: int | None = field(default=None, metadata=_THREADS)
