"""Threads and queues from the environment: SGLang's names, and a clear word about wrong values."""

import pytest

from baton.core.errors import ConfigError
from baton.transfer.config import TransferConfig, queue_of

THREADS = "SGLANG_DISAGGREGATION_THREAD_POOL_SIZE"
QUEUES = "SGLANG_DISAGGREGATION_QUEUE_SIZE"


@pytest.mark.parametrize(("num_cores", "num_threads"), [(1, 1), (2, 1), (4, 3), (64, 48)])
def test_three_quarters_of_the_cores_by_default(num_cores: int, num_threads: int) -> None:
    assert TransferConfig.from_environ({}, num_cores) == TransferConfig(num_threads, 4)


def test_variables_replace_the_defaults() -> None:
    config = TransferConfig.from_environ({THREADS: "5", QUEUES: "2"}, 64)
    assert config == TransferConfig(num_threads=5, num_queues=2)


@pytest.mark.parametrize("name", [THREADS, QUEUES])
@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "", "1000000"])
def test_a_wrong_value_is_named_with_its_mend(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}='{text}' is not a whole .*; try \d"):
        TransferConfig.from_environ({name: text}, 2)


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(ConfigError, match="num_threads is 0"):
        TransferConfig(num_threads=0)
    with pytest.raises(ConfigError, match="num_queues is 65"):
        TransferConfig(num_queues=65)


def test_every_queue_gets_windows_and_a_window_keeps_its_queue() -> None:
    windows = [f"transfer-{index}" for index in range(100)]
    assert {queue_of(window, 4) for window in windows} == {0, 1, 2, 3}
    assert [queue_of(window, 4) for window in windows] == [queue_of(w, 4) for w in windows]
