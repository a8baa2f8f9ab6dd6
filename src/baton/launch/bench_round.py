"""One server's turn in a comparison: it is started, loaded and stopped.

Elsewhere: whose turn it is (bench_compare.py, bench_suite.py), the load
(baton/bench/serve/bench_serve.py).
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from baton.bench.serve.config import (
    DatasetConfig,
    LimitsConfig,
    LoadConfig,
    OutputConfig,
    TargetConfig,
)
from baton.core.errors import ConfigError
from baton.launch.bench_serve import load_tokenizer
from baton.obs.profile_config import ProfileConfig

if TYPE_CHECKING:
    from baton.bench.serve.compare import Candidate
    from baton.bench.serve.report import ServeReport

_SCRIPTS: Final = Path("benchmarks/peers/start")


@dataclass(frozen=True)
class Running:
    """A candidate that answers at `url`; `pids` are its processes, none where it ran already."""

    candidate: "Candidate"
    url: str
    pids: tuple[int, ...] = ()

    def load(
        self,
        dataset: DatasetConfig,
        load: LoadConfig,
        limits: LimitsConfig,
        *,
        warmup_requests: int,
        tokenizer: str | None,
        request_timeout_s: float = TargetConfig.request_timeout_s,
    ) -> "ServeReport":
        """`tokenizer` makes and counts text. Raises ServerError when it cannot be warmed up."""
        import uvloop

        from baton.bench.serve.bench_serve import ServeBench, bench_serve

        bench = ServeBench(
            target=TargetConfig(
                backend=self.candidate.backend,
                base_url=self.url,
                warmup_requests=warmup_requests,
                request_timeout_s=request_timeout_s,
            ),
            dataset=dataset,
            load=load,
            limits=limits,
            output=OutputConfig(server_pid=self.pids),
            profile=ProfileConfig(),
            command=(),
            load_tokenizer=lambda: load_tokenizer(tokenizer),
        )
        return uvloop.run(bench_serve(bench)).report


@contextlib.contextmanager
def running(candidate: "Candidate", *, start_timeout_s: float) -> Iterator[Running]:
    """Started afresh, unless it runs already. Raises ServerError when it does not come up."""
    from baton.bench.serve.peer_server import started

    if candidate.url is not None:
        yield Running(candidate, candidate.url)
        return
    assert candidate.script is not None
    command = [str(_SCRIPTS / candidate.script), "PORT", *candidate.arguments]
    with started(command, timeout_s=start_timeout_s) as (url, pid):
        yield Running(candidate, url, (pid,))


def require_scripts(candidates: "Sequence[Candidate]") -> None:
    """Raises ConfigError when a candidate cannot be started from here."""
    for each in candidates:
        if each.script is not None and not os.access(_SCRIPTS / each.script, os.X_OK):
            raise ConfigError(
                f"--servers {each.name}: {_SCRIPTS / each.script} is not here; run from Baton's"
                " repository"
            )


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves as an exception does, so that a server that was started is ended, too."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
