"""Matrix products of the C++ kernels: the bits of the reference, whatever runs them beside what.

Each example is one product, checked four ways: against kernels/reference.py, on every instruction
set and number of threads, with other rows beside it, and with each row alone.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from baton.kernels import _native, reference
from baton.kernels.native import native_linear, native_weight
from baton.kernels.packing import interleave_gate_up, pack
from baton.kernels.quantized import QuantizedMatrix, quantize_per_channel
from baton.testing.native_kernels import assert_same_bits, name_of

Floats = npt.NDArray[np.float32]
STORE, ADD, SILU_MUL = 0, 1, 2
EPS = 1e-5

exact = settings(deadline=None, derandomize=True, max_examples=30)


@dataclass(frozen=True)
class Form:
    """How a weight is quantized; `bits` 0: not at all."""

    bits: int = 0
    group: int = 32
    zero_point: int = 0
    has_min: bool = False
    is_half: bool = True
    dtype: torch.dtype = torch.float32


FORMS = {
    "Q4_0": Form(4, zero_point=8),
    "Q4_1": Form(4, has_min=True),
    "Q4_K": Form(4, has_min=True, is_half=False),
    "u4, float scales": Form(4, zero_point=8, is_half=False),
    "Q5_0": Form(8, zero_point=16),
    "Q5_1": Form(8, has_min=True),
    "Q5_K": Form(8, has_min=True, is_half=False),
    "Q6_K": Form(8, 16, zero_point=32, is_half=False),
    "u8, groups of 16, half scales": Form(8, 16, zero_point=32),
    "Q8_0": Form(8, zero_point=128),
    "u8, float scales": Form(8, zero_point=128, is_half=False),
    "per channel": Form(8, group=0),
    "bf16": Form(dtype=torch.bfloat16),
    "f32": Form(dtype=torch.float32),
}


def make_weight(form: Form, num_out: int, num_in: int, seed: int) -> reference.Weight:
    """Random, with all values that the form has; scales of both signs, as GGUF allows."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(num_out, num_in)).astype(np.float32)
    if form.bits == 0:
        return torch.from_numpy(values).to(form.dtype)
    if form.group == 0:
        return quantize_per_channel(torch.from_numpy(values))
    shape = (num_out, num_in // form.group)
    dtype = np.float16 if form.is_half else np.float32
    q_FK = generator.integers(0, 2**form.bits, (num_out, num_in), dtype=np.uint8)
    scales, mins = generator.normal(size=(2, *shape)).astype(dtype)
    return QuantizedMatrix(
        q_FK, scales, mins if form.has_min else None, form.zero_point, form.group, form.bits
    )


def make_rows(num_rows: int, num_in: int, kind: str, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(num_rows, num_in)).astype(np.float32)
    if kind == "zero rows":
        rows[generator.random(num_rows) < 0.5] = 0.0
    elif kind == "zero groups":
        rows.reshape(num_rows, -1, 16)[generator.random((num_rows, num_in // 16)) < 0.5] = -0.0
    elif kind == "all magnitudes":
        # 1e-42 is a denormal; the squares of 1e30 are infinite.
        powers = generator.uniform(-42, 30, (num_rows, num_in // 16))
        rows.reshape(num_rows, -1, 16)[:] *= (10.0**powers).astype(np.float32)[:, :, None]
    elif kind == "outliers":
        rows[:, generator.integers(num_in)] *= 1e4
    return rows


@dataclass(frozen=True)
class Product:
    """One call: rows, one weight or several side by side, and what happens around it."""

    form_names: list[str]
    num_out: list[int]
    num_in: int
    num_rows: int
    rows_kind: str = "normal"
    has_bias: bool = False
    has_norm: bool = False
    epilogue: int = STORE
    seed: int = 0
    weights: list[reference.Weight] = field(init=False, repr=False)
    x_TK: Floats = field(init=False, repr=False)
    y_TF: Floats = field(init=False, repr=False)
    norm_K: Floats | None = field(init=False, repr=False)
    biases: list[Floats | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed + 1)

        def normal(*shape: int) -> Floats:
            return generator.normal(size=shape).astype(np.float32)

        forms = zip(self.form_names, self.num_out, strict=True)
        weights = [
            make_weight(FORMS[name], num_out, self.num_in, self.seed + index)
            for index, (name, num_out) in enumerate(forms)
        ]
        for name, value in {
            "weights": weights,
            "x_TK": make_rows(self.num_rows, self.num_in, self.rows_kind, self.seed),
            "y_TF": normal(self.num_rows, sum(self.num_out)),  # what `add` adds to
            "norm_K": normal(self.num_in) if self.has_norm else None,
            "biases": [normal(size) if self.has_bias else None for size in self.num_out],
        }.items():
            object.__setattr__(self, name, value)

    def native(self) -> _native.Linear:
        if self.epilogue != SILU_MUL:
            weights = [native_weight(pack(weight)) for weight in self.weights]
            return native_linear(*zip(weights, self.biases, strict=True))
        gate_bias, up_bias = self.biases
        both = None
        if gate_bias is not None and up_bias is not None:
            both = np.stack([gate_bias.reshape(-1, 16), up_bias.reshape(-1, 16)], 1).ravel()
        gate, up = map(pack, self.weights)
        return native_linear((native_weight(interleave_gate_up(gate, up)), both))

    def run(self, kernels: _native.Kernels, rows: npt.NDArray[np.intp]) -> Floats:
        """The result's rows for these rows of the input, in their order."""
        num_columns = self.num_out[0] if self.epilogue == SILU_MUL else sum(self.num_out)
        y_TF = self.y_TF[rows, :num_columns].copy()
        kernels.linear(self.native(), self.x_TK[rows], y_TF, self.epilogue, self.norm_K, EPS)
        return y_TF

    def expected_parts(self) -> list[Floats]:
        x_TK = self.x_TK
        if self.norm_K is not None:
            x_TK = reference.rms_norm(x_TK, self.norm_K, EPS)
        return [
            reference.linear(x_TK, weight, bias)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]


forms = st.sampled_from(list(FORMS))
features = st.integers(1, 70)
seeds = st.integers(0, 2**16)
rows_kinds = st.sampled_from(["normal", "zero rows", "zero groups", "all magnitudes", "outliers"])


@st.composite
def products(draw: st.DrawFn, form_names: list[str], epilogues: tuple[int, ...]) -> Product:
    epilogue = draw(st.sampled_from(epilogues))
    is_gated = epilogue == SILU_MUL
    num_out = (
        [16 * draw(st.integers(1, 3))] * 2 if is_gated else [draw(features) for _ in form_names]
    )
    step = 16 if all(FORMS[name].bits == 0 for name in form_names) else 32
    return Product(
        form_names=form_names * 2 if is_gated else form_names,
        num_out=num_out,
        num_in=step * draw(st.integers(1, 6)),
        num_rows=draw(st.integers(1, 70)),
        rows_kind=draw(rows_kinds),
        has_bias=draw(st.booleans()),
        has_norm=draw(st.booleans()),
        epilogue=epilogue,
        seed=draw(seeds),
    )


def check_bits_do_not_depend_on_anything_else(
    product: Product, all_kernels: list[_native.Kernels]
) -> Floats:
    """All kernels, a random choice of rows (also repeated, also in another order), and each row by
    itself. Returns the result."""
    everything = np.arange(product.num_rows)
    result = product.run(all_kernels[0], everything)
    generator = np.random.default_rng(product.seed)
    some = generator.choice(product.num_rows, generator.integers(1, product.num_rows + 1))
    shuffled = generator.permutation(product.num_rows)
    for kernels in all_kernels:
        for rows in (everything, some, shuffled):
            what = f"{name_of(kernels)}, rows {rows.tolist()}"
            assert_same_bits(product.run(kernels, rows), result[rows], what)
    for row in everything:
        alone = product.run(all_kernels[0], everything[row : row + 1])
        assert_same_bits(alone[0], result[row], f"row {row} alone")
    return result


@pytest.mark.parametrize("form_name", FORMS)
@exact
@given(data=st.data())
def test_one_weight(
    all_kernels: list[_native.Kernels], form_name: str, data: st.DataObject
) -> None:
    product = data.draw(products([form_name], (STORE, ADD)))
    result = check_bits_do_not_depend_on_anything_else(product, all_kernels)
    (expected,) = product.expected_parts()
    if product.epilogue == ADD:
        expected = reference.add(product.y_TF, expected)
    assert_same_bits(result, expected, "against the reference")


@pytest.mark.parametrize("form_name", FORMS)
@settings(exact, max_examples=15)
@given(data=st.data())
def test_gate_and_up(
    all_kernels: list[_native.Kernels], form_name: str, data: st.DataObject
) -> None:
    product = data.draw(products([form_name], (SILU_MUL,)))
    result = check_bits_do_not_depend_on_anything_else(product, all_kernels)
    assert_is_silu_mul(result, *product.expected_parts())


@exact
@given(names=st.lists(forms, min_size=2, max_size=4), data=st.data())
def test_weights_of_several_forms_side_by_side(
    all_kernels: list[_native.Kernels], names: list[str], data: st.DataObject
) -> None:
    """As queries, keys and values of a mixed GGUF are."""
    product = data.draw(products(names, (STORE, ADD)))
    result = check_bits_do_not_depend_on_anything_else(product, all_kernels)
    expected = np.concatenate(product.expected_parts(), axis=1)
    if product.epilogue == ADD:
        expected = reference.add(product.y_TF, expected)
    assert_same_bits(result, expected, "against the reference")


def assert_is_silu_mul(actual: Floats, gate: Floats, up: Floats) -> None:
    """Within the error of a float32 exponential: its argument's rounding, 2^-24 of it, is the
    result's error in proportion; a few roundings more for polynomial, division and product. The
    kernels' sigmoid stops at 2^-126."""
    exact_product = reference.silu_mul(gate, up)
    with np.errstate(all="ignore"):
        bound = (4 + np.abs(gate.astype(np.float64))) * 2.0**-23 * np.abs(exact_product)
        floor = 2.0**-125 * np.maximum(np.abs(gate), 1.0) * np.maximum(np.abs(up), 1.0)
        is_near = np.abs(actual - exact_product) <= bound + floor
    too_large = ~(np.abs(exact_product) < np.finfo(np.float32).max)
    note(f"{(~is_near).sum()} of {is_near.size} off")
    assert (is_near | too_large).all()


@pytest.mark.parametrize("form_name", FORMS)
def test_many_pieces(all_kernels: list[_native.Kernels], form_name: str) -> None:
    """More rows than a piece has (96) and panels enough for every thread to take many."""
    product = Product([form_name], [530], 64, 203, has_bias=True, has_norm=True, seed=5)
    expected = product.expected_parts()[0]
    for kernels in all_kernels:
        result = product.run(kernels, np.arange(203))
        assert_same_bits(result, expected, name_of(kernels))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("form_name", FORMS)
def test_a_broken_row_harms_no_other(
    all_kernels: list[_native.Kernels], form_name: str, has_norm: bool, bad: float
) -> None:
    product = Product([form_name], [37], 64, 13, has_norm=has_norm)
    expected = product.expected_parts()[0]
    product.x_TK[[3, 9], 5] = bad
    others = np.delete(np.arange(13), [3, 9])
    for kernels in all_kernels:
        result = product.run(kernels, np.arange(13))
        assert_same_bits(result[others], expected[others], name_of(kernels))


@pytest.mark.parametrize("form_name", FORMS)
def test_no_rows(all_kernels: list[_native.Kernels], form_name: str) -> None:
    product = Product([form_name], [5], 32, 1)
    for kernels in all_kernels:
        assert product.run(kernels, np.arange(0)).shape == (0, 5)


@pytest.mark.parametrize("form_name", FORMS)
def test_the_reference_is_near_the_real_product(form_name: str) -> None:
    """What rounding activations may cost: half a step of each int8, 2^-9 of each bfloat16."""
    product = Product([form_name], [40], 192, 30, has_bias=True)
    (weight,), (bias,) = product.weights, product.biases
    is_quantized = isinstance(weight, QuantizedMatrix)
    values = weight.dequantized() if is_quantized else weight.float().numpy()
    assert bias is not None
    expected = product.x_TK.astype(np.float64) @ values.T.astype(np.float64) + bias
    step = {0: 2.0**-8, 4: 1 / 127, 8: 1 / 127}[FORMS[form_name].bits]
    if form_name == "f32":
        step = 192 * 2.0**-24
    largest = np.abs(product.x_TK).max(axis=1, keepdims=True)
    # Errors of inputs are independent, so they add up as a root of squares; 6 deviations.
    spread = np.sqrt(np.square(values).sum(axis=1))
    error = np.abs(product.expected_parts()[0] - expected)
    assert (error <= 6 * step / np.sqrt(12) * largest * spread + 1e-5).all()
