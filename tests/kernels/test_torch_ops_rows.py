"""Each op gives a row the same bits alone, in any batch, and with any number of threads."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.kernels.torch_ops import TorchOps

MAX_ROWS = 150
RowOp = Callable[[torch.Tensor], torch.Tensor]

real_settings = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sizes = st.one_of(st.integers(1, 70), st.sampled_from([64, 96, 128, 192, 320, 576, 1536]))


def check_rows(op: RowOp, x_TE: torch.Tensor, cut: tuple[int, int], set_threads: object) -> None:
    """All rows with one thread, against rows [low, high) with one, two and three threads."""
    assert callable(set_threads)
    low, high = cut
    set_threads(1)
    expected = op(x_TE)
    for num_threads in (1, 2, 3):
        set_threads(num_threads)
        assert torch.equal(op(x_TE), expected)
        assert torch.equal(op(x_TE[low:high]), expected[low:high])
        assert torch.equal(op(x_TE[low:high].clone()), expected[low:high])


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int]:
    low = draw(st.integers(0, MAX_ROWS - 1))
    high = draw(st.one_of(st.just(low + 1), st.integers(low + 1, MAX_ROWS)))
    return low, high


def rows(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(MAX_ROWS, width, generator=torch.Generator().manual_seed(seed))


@real_settings
@given(num_in=sizes, num_out=sizes, cut=cuts(), with_bias=st.booleans())
def test_linear(
    set_threads: object, num_in: int, num_out: int, cut: tuple[int, int], with_bias: bool
) -> None:
    ops, x_TE = TorchOps(), rows(num_in)
    weight_FE = torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(1))
    bias_F = rows(num_out, seed=2)[0] if with_bias else None
    packed = ops.pack_weight(weight_FE)

    check_rows(lambda x: ops.linear(x, packed, bias_F), x_TE, cut, set_threads)

    assert torch.equal(ops.linear(x_TE, packed, bias_F), ops.linear(x_TE, weight_FE, bias_F))
    exact = x_TE.double() @ weight_FE.double().t() + (0 if bias_F is None else bias_F.double())
    # Rounding of num_in terms: float32's epsilon times their number bounds it generously.
    assert torch.allclose(
        ops.linear(x_TE, packed, bias_F).double(), exact, rtol=1e-5, atol=1e-6 * num_in
    )


@pytest.mark.parametrize(("num_in", "num_out"), [(576, 49152), (8192, 1024), (4096, 14336)])
def test_linear_of_model_size(set_threads: object, num_in: int, num_out: int) -> None:
    ops, x_TE = TorchOps(), rows(num_in)[:16]
    weight_FE = ops.pack_weight(torch.randn(num_out, num_in))
    for cut in ((0, 1), (3, 5), (2, 9), (0, 12)):
        check_rows(lambda x: ops.linear(x, weight_FE), x_TE, cut, set_threads)


def test_linear_of_no_rows() -> None:
    ops = TorchOps()
    assert ops.linear(torch.empty(0, 8), ops.pack_weight(torch.randn(5, 8))).shape == (0, 5)


@real_settings
@given(width=sizes, cut=cuts())
def test_rms_norm(set_threads: object, width: int, cut: tuple[int, int]) -> None:
    ops, weight_E = TorchOps(), rows(width, seed=1)[0]
    check_rows(lambda x: ops.rms_norm(x, weight_E, 1e-5), rows(width), cut, set_threads)


@real_settings
@given(num_heads=st.integers(1, 8), head_dim=st.integers(1, 80), cut=cuts())
def test_rms_norm_per_head(
    set_threads: object, num_heads: int, head_dim: int, cut: tuple[int, int]
) -> None:
    """Heads are a slice of a wider row there, so they are not contiguous."""
    ops, weight_D = TorchOps(), rows(head_dim, seed=1)[0]
    x_TF = rows((num_heads + 3) * head_dim)

    def op(x: torch.Tensor) -> torch.Tensor:
        heads = x[:, : num_heads * head_dim].reshape(-1, num_heads, head_dim)
        return ops.rms_norm(heads, weight_D, 1e-6)

    check_rows(op, x_TF, cut, set_threads)


@real_settings
@given(width=sizes, cut=cuts())
def test_silu_mul(set_threads: object, width: int, cut: tuple[int, int]) -> None:
    ops = TorchOps()
    check_rows(
        lambda x: ops.silu_mul(x[:, :width], x[:, width:]), rows(2 * width), cut, set_threads
    )


def test_silu_mul_of_large_values() -> None:
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]])
    out = TorchOps().silu_mul(gate, torch.full_like(gate, 2.0))
    expected = 2.0 * torch.nn.functional.silu(gate)
    # exp(90) is past float32: x / inf is an exact zero where silu gives a denormal.
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-30)


@real_settings
@given(num_heads=st.integers(1, 8), half=st.integers(1, 40), cut=cuts())
def test_rotary(set_threads: object, num_heads: int, half: int, cut: tuple[int, int]) -> None:
    ops, width = TorchOps(), num_heads * half * 2
    angles = rows(half, seed=3)
    table = torch.cat((angles.cos(), angles.cos(), angles.sin(), angles.sin()), dim=1)

    def op(x: torch.Tensor) -> torch.Tensor:
        x_THD = x[:, :width].reshape(-1, num_heads, 2 * half)
        return ops.rotary(x_THD, x[:, width : width + 2 * half], x[:, width + 2 * half :])

    check_rows(op, torch.cat((rows(width), table), dim=1), cut, set_threads)


def test_rotary_turns_pairs() -> None:
    """(low, high) of a pair is turned by its angle, as a complex number is."""
    x_THD, angles_TD = rows(12).view(-1, 2, 6), rows(3, seed=1)
    both = torch.cat((angles_TD, angles_TD), dim=1)
    out = TorchOps().rotary(x_THD, both.cos(), both.sin())
    turned = torch.complex(x_THD[..., :3], x_THD[..., 3:]) * torch.polar(
        torch.ones_like(angles_TD), angles_TD
    ).unsqueeze(1)
    assert torch.allclose(out, torch.cat((turned.real, turned.imag), dim=-1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embedding_is_exact(dtype: torch.dtype) -> None:
    table = torch.randn(20, 6).to(dtype)
    out = TorchOps().embedding(torch.tensor([3, 19, 3]), table)
    assert out.dtype == torch.float32
    assert torch.equal(out, table[[3, 19, 3]].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_kv_writes_its_slots_only(dtype: torch.dtype) -> None:
    pool = torch.zeros(5, 2, 2, 4, 3, 8, dtype=dtype)
    k, v = torch.randn(3, 3, 8), torch.randn(3, 3, 8)
    slots = torch.tensor([4, 19, 2])

    TorchOps().write_kv(k, v, pool[:, 1, 0], pool[:, 1, 1], slots)

    expected = torch.zeros(5, 2, 2, 4, 3, 8, dtype=dtype)
    for row, slot in enumerate(slots.tolist()):
        expected[slot // 4, 1, 0, slot % 4] = k[row].to(dtype)
        expected[slot // 4, 1, 1, slot % 4] = v[row].to(dtype)
    assert torch.equal(pool, expected)
