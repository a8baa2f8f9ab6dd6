"""What the environment says about NVLink reaches Mooncake, or is refused with the mend."""

import pytest

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.launch.transfer_flags import mooncake_environ, mooncake_of
from baton.transfer.config import MooncakeConfig, TransferConfig
from baton.transfer.registry import open_transport, why_missing

POOL, MNNVL = "SGLANG_MOONCAKE_CUSTOM_MEM_POOL", "MC_FORCE_MNNVL"


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        *(("true", "NVLINK"), ("True", "NVLINK"), ("1", "NVLINK")),
        *(("NVLINK", "NVLINK"), ("barex", "BAREX"), ("INTRA_NODE_NVLINK", "INTRA_NODE_NVLINK")),
        *(("", ""), ("0", ""), ("False", ""), ("None", "")),
    ],
)
def test_a_memory_pool_is_read_as_sglang_reads_it(text: str, pool: str) -> None:
    config, ignored = mooncake_of("rdma", "mlx5_0", "mooncake", {POOL: text})
    assert config == MooncakeConfig(protocol="rdma", device="mlx5_0", memory_pool=pool)
    assert ignored == []


@pytest.mark.parametrize(("name", "value"), [(POOL, "NVLINKS"), (MNNVL, "maybe"), (MNNVL, "2")])
def test_a_value_without_meaning_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='{value}' .*; give .*unset it"):
        mooncake_of("tcp", "", "mooncake", {name: value})


def test_what_another_backend_ignores_is_listed() -> None:
    given = {POOL: "1", MNNVL: "yes"}
    assert mooncake_of("tcp", "mlx5_0", "tcp", given)[1] == [
        "--disaggregation-ib-device",
        POOL,
        MNNVL,
    ]
    assert mooncake_of("tcp", "", "auto", {POOL: "0", MNNVL: "false"})[1] == []


def test_a_variable_that_is_off_is_not_passed_on() -> None:
    given = {POOL: "False", MNNVL: "false", "HOME": "/root"}
    assert mooncake_environ(mooncake_of("tcp", "", "mooncake", given)[0], given) == {
        "HOME": "/root"
    }
    given = {POOL: "True", MNNVL: "true"}
    assert mooncake_environ(mooncake_of("tcp", "", "mooncake", given)[0], given) == {
        POOL: "NVLINK",
        MNNVL: "1",
    }


@pytest.mark.parametrize("given", [{POOL: "BAREX"}, {MNNVL: "1"}])
def test_a_build_without_cuda_refuses_nvlink_and_names_the_wheel(given: dict[str, str]) -> None:
    if reason := why_missing("mooncake"):
        pytest.skip(reason)
    segment = SharedSegment(4096)
    config, _ = mooncake_of("tcp", "", "mooncake", given)
    name = next(iter(given))
    with pytest.raises(ConfigError, match=f"{name}.* without CUDA; .*pip install mooncake-trans"):
        open_transport("mooncake", segment, config=TransferConfig(mooncake=config))
    segment.close()
