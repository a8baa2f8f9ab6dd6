"""Which processes `baton serve` runs, and the command line of each: a pure function of the options.

Invariant: a child's address never changes, so a restarted worker is found where it was.
Elsewhere: starting and restarting them (supervisor.py), finding free ports (ports.py).
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.core.errors import ConfigError
from baton.core.request import Role
from baton.router.policies import PolicyName
from baton.router.split import SplitRules

PREFILL_NICE = 19
DECODE_SHARE = 0.5
STEP_TARGET_MS, SMOOTH_STEP_TARGET_MS = 70.0, 20.0
PROMPT_SLACK_MS = 2.0
"""On one host decode goes first: prefill takes every core that decode leaves idle, and no more.

While prompts are computed, decode leaves it cores: with a thread for every core, and both busy,
prefill would get next to nothing; with one that never rests, prompts take twice as long
(docs/experiments.md). So its steps are on a part of the cores then, with a rest after each. With no
prompt to compute it has its share of all cores.

Since prefill has no cores of its own, decode takes whole requests as well; the router says which
ones (router/split.py). Their prompts are read in pieces that keep a step near STEP_TARGET_MS, or
near SMOOTH_STEP_TARGET_MS while nobody else waits for a long one. Who reads prompts reads short
ones first, each token of a longer one being worth PROMPT_SLACK_MS of waiting: about four times what
it takes to read it (docs/experiments.md)."""

_READING_ARGV = [f"--prompt-slack-ms={PROMPT_SLACK_MS:g}"]
_ALONE_ARGV = [
    "--takes-whole-requests",
    f"--step-target-ms={STEP_TARGET_MS:g}",
    f"--smooth-step-target-ms={SMOOTH_STEP_TARGET_MS:g}",
    *_READING_ARGV,
]
_LOOPBACK = "127.0.0.1"
DEFAULT_WORKERS = "1p1d"
_WORKERS_FORM = re.compile(r"(\d+)p(\d+)d")


@dataclass(frozen=True)
class ServeConfig:
    """How many workers of which role, and where the router listens."""

    workers: str = field(
        default=DEFAULT_WORKERS,
        metadata={"help": "prefill and decode workers, such as 2p1d", "metavar": "NpMd"},
    )
    unified: int | None = field(
        default=None,
        metadata={"help": "this many workers that do both, in place of --workers", "minimum": 1},
    )
    host: str = field(
        default=_LOOPBACK,
        metadata={"help": "address to listen on; 0.0.0.0 for every network", "metavar": "ADDRESS"},
    )
    port: int = field(
        default=8000,
        metadata={"help": "port to listen on; 0 for any free one", "minimum": 0, "maximum": 65535},
    )
    always_split: bool = field(
        default=False,
        metadata={"help": "every request goes to a prefill and a decode worker, also a short one"},
    )
    max_whole_tokens: int | None = field(
        default=None,
        metadata={
            "help": "longest uncached prompt that decode reads itself while it has streams; longer "
            f"ones are split (default: {SplitRules.max_whole_tokens})",
            "minimum": 0,
        },
    )
    policy: str | None = field(
        default=None,
        metadata={"help": "how the router picks workers", "choices": tuple(PolicyName)},
    )
    drain_timeout: float = field(
        default=2.0,
        metadata={
            "help": "seconds that running requests get to finish after Ctrl-C",
            "metavar": "SECONDS",
            "minimum": 0,
        },
    )

    def __post_init__(self) -> None:
        num_prefill, num_decode = self.num_pairs
        if self.unified is not None and self.workers != DEFAULT_WORKERS:
            raise ConfigError(
                f"--unified {self.unified} and --workers {self.workers} are two different trees; "
                "leave one of them out"
            )
        if self.unified is not None and self.always_split:
            raise ConfigError(
                f"--unified {self.unified} has nothing to split; leave out --always-split"
            )
        if self.unified is None and (num_prefill == 0 or num_decode == 0):
            raise ConfigError(
                f"--workers {self.workers} lacks a role, so no request could finish; "
                "try --workers 1p1d, or --unified 1 for a worker that does both"
            )

    @property
    def num_pairs(self) -> tuple[int, int]:
        """(prefill workers, decode workers)."""
        match = _WORKERS_FORM.fullmatch(self.workers.strip().lower())
        if match is None:
            raise ConfigError(f"--workers {self.workers} is not of the form NpMd; try 2p1d")
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep alive. `probe_path` answers 200 once it serves."""

    name: str
    host: str
    port: int
    probe_path: str
    argv: tuple[str, ...]

    @property
    def url(self) -> str:
        return url_of(self.host, self.port)


@dataclass(frozen=True)
class Topology:
    router: ChildSpec
    workers: tuple[ChildSpec, ...]

    @property
    def children(self) -> tuple[ChildSpec, ...]:
        return (self.router, *self.workers)


def plan_topology(
    config: ServeConfig,
    *,
    model_path: str,
    worker_argv: Sequence[str],
    router_argv: Sequence[str] = (),
    num_cores: int,
    free_port: Callable[[], int],
) -> Topology:
    """`worker_argv` and `router_argv` are the options that go to every worker and to the router;
    `config.port` must be the final one, never 0."""
    assert config.port != 0, "the router's port must be chosen before planning"
    if config.unified is not None:
        own_argv = [_threads(num_cores // config.unified), *worker_argv]
        workers = [
            _worker(f"unified-{i}", "null", free_port(), model_path, own_argv)
            for i in range(config.unified)
        ]
        places = ["--worker-urls", *(worker.url for worker in workers)]
    else:
        workers, places = _plan_pairs(config, model_path, worker_argv, num_cores, free_port)
    return Topology(_router(config, [*places, *router_argv]), tuple(workers))


def url_of(host: str, port: int) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    reachable = {"0.0.0.0": _LOOPBACK, "": _LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _plan_pairs(
    config: ServeConfig,
    model_path: str,
    worker_argv: Sequence[str],
    num_cores: int,
    free_port: Callable[[], int],
) -> tuple[list[ChildSpec], list[str]]:
    """The workers of both roles, and the router's options that name them."""
    num_prefill, num_decode = config.num_pairs
    alone_argv = [] if config.always_split else _ALONE_ARGV
    workers: list[ChildSpec] = []
    places = ["--pd-disaggregation"]
    for i in range(num_prefill):
        bootstrap_port = free_port()
        own_argv = [
            f"--disaggregation-bootstrap-port={bootstrap_port}",
            f"--engine-nice={PREFILL_NICE}",
            *_READING_ARGV,
            *worker_argv,
        ]
        worker = _worker(f"prefill-{i}", "prefill", free_port(), model_path, own_argv)
        workers.append(worker)
        places += ["--prefill", worker.url, str(bootstrap_port)]
    for i in range(num_decode):
        own_argv = [
            _threads(num_cores // num_decode),
            f"--shared-threads={max(1, num_cores // (num_decode + 1))}",
            f"--shared-time={DECODE_SHARE}",
            *alone_argv,
            *worker_argv,
        ]
        worker = _worker(f"decode-{i}", "decode", free_port(), model_path, own_argv)
        workers.append(worker)
        places += ["--decode", worker.url]
    return workers, places


def _threads(num_threads: int) -> str:
    """Comes before the user's own options, so that theirs counts."""
    return f"--num-threads={max(1, num_threads)}"


def _worker(
    name: str, role: Role, port: int, model_path: str, more_argv: Sequence[str]
) -> ChildSpec:
    argv = (
        *(sys.executable, "-m", "baton.launch_server"),
        f"--model-path={model_path}",
        *(f"--host={_LOOPBACK}", f"--port={port}"),
        f"--disaggregation-mode={role}",
        *more_argv,
    )
    return ChildSpec(name, _LOOPBACK, port, "/health", argv)


def _router(config: ServeConfig, more_argv: Sequence[str]) -> ChildSpec:
    policy = () if config.policy is None else (f"--policy={config.policy}",)
    limit = config.max_whole_tokens
    whole = () if limit is None else (f"--max-whole-tokens={limit}",)
    argv = (
        *(sys.executable, "-m", "baton.launch_router"),
        *(f"--host={config.host}", f"--port={config.port}"),
        *policy,
        *whole,
        *more_argv,
    )
    return ChildSpec("router", config.host, config.port, "/readiness", argv)
