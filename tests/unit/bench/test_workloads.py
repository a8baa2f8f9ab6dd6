"""Workloads on a real, tiny engine, timed by a clock that moves only with its steps."""

from pathlib import Path

import pytest

from baton.bench import workloads
from baton.bench.local_engine import LocalEngine
from baton.bench.workloads import Arrival, Workloads, steady_rate
from baton.core.clock import FakeClock
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.testing.tiny_models import write_tiny_model

STEP_S = 0.5


class StepClock(FakeClock):
    """Every step of an engine takes STEP_S."""

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = EngineCore.step

        def step(core: EngineCore) -> bool:
            self.advance(STEP_S)
            return original(core)

        monkeypatch.setattr(EngineCore, "step", step)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    made = StepClock()
    made.watch(monkeypatch)
    return made


@pytest.fixture
def engine(tmp_path: Path, clock: StepClock) -> LocalEngine:
    config = EngineConfig(
        max_total_tokens=1024,
        chunked_prefill_size=32,
        num_threads=1,
        kernel_backend="torch",
        kv_cache_dtype="float32",
    )
    return LocalEngine(write_tiny_model(tmp_path / "tiny", "llama"), config, clock)


def test_prefill_counts_prompt_tokens_until_the_first_token(
    engine: LocalEngine, clock: StepClock
) -> None:
    tiny = Workloads(engine, clock)
    assert tiny.prefill(64)() == 64 / (2 * STEP_S)
    assert tiny.prefill(64, 64)() == 64 / STEP_S
    assert tiny.prefill(64)() == 64 / (2 * STEP_S), "a prompt was in the cache"


def test_decode_counts_streams_while_all_of_them_run(
    engine: LocalEngine, clock: StepClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "PROMPT_TOKENS", 24)
    monkeypatch.setattr(workloads, "NEW_TOKENS", 8)
    tiny = Workloads(engine, clock)
    assert tiny.decode(1)() == pytest.approx(1 / STEP_S)
    assert tiny.decode(4)() == pytest.approx(4 / STEP_S)
    assert tiny.one_stream()() == pytest.approx(1 / STEP_S)
    assert tiny.kernel_shares == [], "the torch reference does not count its kernels' time"


def test_steady_is_from_the_last_start_to_the_first_end() -> None:
    """One stream from 0 to 3 s, one from 2 to 4 s: between 2 and 3 s each makes a token."""
    times = {"a": (0.0, 1.0, 2.0, 3.0), "b": (2.0, 3.0, 4.0)}
    arrivals = [Arrival(name, time_s) for name, each in times.items() for time_s in each]
    assert steady_rate(sorted(arrivals, key=lambda each: each.time_s)) == 2.0


def test_streams_that_never_ran_together_have_no_rate() -> None:
    arrivals = [Arrival("a", 0.0), Arrival("a", 1.0), Arrival("b", 2.0), Arrival("b", 3.0)]
    with pytest.raises(AssertionError, match="no moment"):
        steady_rate(arrivals)
