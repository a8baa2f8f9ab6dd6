"""Deadlines from the environment: SGLang's names, and a clear word about wrong values."""

import pytest

from baton.core.errors import ConfigError
from baton.disagg.config import DisaggConfig


def test_variables_replace_the_defaults() -> None:
    config = DisaggConfig.from_environ(
        {
            "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "2.5",
            "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "7",
        }
    )
    assert config == DisaggConfig(waiting_timeout_s=2.5, heartbeat_max_failure=7)


@pytest.mark.parametrize("text", ["0", "-1", "0.5", "2.5", "many", "", "1e400"])
def test_half_a_missed_heartbeat_is_refused(text: str) -> None:
    name = "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE"
    with pytest.raises(ConfigError, match=f"{name}='{text}' is not a positive whole number"):
        DisaggConfig.from_environ({name: text})
