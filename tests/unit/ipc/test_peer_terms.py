"""A difference between two layouts is told by name, with both values and the mend."""

import msgspec
import pytest

from baton.ipc.peer_terms import find_difference
from baton.messages.handover import EngineHello, LayoutTerms

LAYOUT = LayoutTerms(
    version=1,
    model_id="aaaa",
    dtype="bfloat16",
    block_size=16,
    num_layers=30,
    num_kv_heads=3,
    head_dim=64,
    form="lanes",
)


def hello(role: str, **changes: int | str) -> EngineHello:
    layout = msgspec.structs.replace(LAYOUT, **changes)
    return EngineHello(engine_id=role, role=role, layout=layout)


def test_equal_layouts_differ_in_nothing() -> None:
    assert find_difference(hello("decode"), hello("prefill")) == ""
    bare = EngineHello(engine_id="a")
    assert find_difference(bare, bare) == ""


@pytest.mark.parametrize("field", LayoutTerms.__struct_fields__)
def test_every_field_has_a_name_and_a_mend(field: str) -> None:
    value = getattr(LAYOUT, field)
    other = f"{value}?" if isinstance(value, str) else value + 7
    told = find_difference(hello("decode", **{field: other}), hello("prefill"))
    assert f"is {value} on the prefill worker and {other} on the decode worker; " in told
    assert "; start both with the same " in told


def test_the_mend_is_the_flag() -> None:
    told = find_difference(hello("decode", block_size=32), hello("prefill"))
    assert told == (
        "--page-size is 16 on the prefill worker and 32 on the decode worker; "
        "start both with the same --page-size"
    )


def test_what_follows_from_another_model_is_not_told_and_what_does_not_is() -> None:
    decode = hello("decode", model_id="bbbb", num_layers=24, head_dim=128, dtype="int8")
    told = find_difference(decode, hello("prefill"))
    assert "layers" not in told
    assert "head" not in told
    assert "the model is aaaa on the prefill worker and bbbb on the decode worker" in told
    assert "--kv-cache-dtype is bfloat16 on the prefill worker and int8" in told
    assert told.endswith("same --model-path and --quantization and --kv-cache-dtype")


def test_an_engine_without_a_pool_fits_none_that_has_one() -> None:
    told = find_difference(EngineHello(engine_id="a"), hello("prefill"))
    assert "the model is aaaa on the prefill worker and nothing on the other worker" in told
