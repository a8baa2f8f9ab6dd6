"""Options of the engine that cannot be are refused by name."""

import pytest

from baton.core.errors import ConfigError
from baton.engine.config import EngineConfig


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("page_size", 12, "--page-size 12"),
        ("page_size", 0, "--page-size 0"),
        ("max_total_tokens", 3, "--max-total-tokens 3"),
        ("max_running_requests", 0, "--max-running-requests 0"),
        ("chunked_prefill_size", 0, "--chunked-prefill-size 0"),
        ("context_length", 0, "--context-length 0"),
        ("num_threads", 0, "--num-threads 0"),
        ("mem_fraction_static", 1.5, "--mem-fraction-static 1.5"),
        ("step_target_ms", 0, "--step-target-ms 0"),
        ("smooth_step_target_ms", 20, "--step-target-ms too"),
        ("prompt_slack_ms", -1, "--prompt-slack-ms -1"),
        ("prompt_slack_ms", float("inf"), "--prompt-slack-ms inf"),
    ],
)
def test_impossible_options_are_named(field: str, value: float, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        EngineConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("smooth_ms", [0.0, float("nan")])
def test_a_smooth_step_takes_time(smooth_ms: float) -> None:
    with pytest.raises(ConfigError, match=r"--smooth-step-target-ms .* is not above 0"):
        EngineConfig(step_target_ms=70.0, smooth_step_target_ms=smooth_ms)
