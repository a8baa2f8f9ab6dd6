"""The C++ sampler against its reference: the same tokens and the same bits, on every instruction
set, whatever the threads and the rows beside it."""

from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine import sampler_reference as reference
from baton.kernels import _native
from baton.testing.native_kernels import every_kernels, name_of

Logits = npt.NDArray[np.float32]

ALL: Final = [(name_of(each), _native.Sampler(each)) for each in every_kernels()]
LONE: Final = _native.Sampler()
VOCAB_SIZE: Final = 49_152

exact = settings(deadline=None, derandomize=True, max_examples=150)


@dataclass(frozen=True)
class Choice:
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0


choices = st.builds(
    Choice,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 0.7, 1.0, 1.5, 100.0]) | st.floats(1e-6, 100.0),
    top_k=st.sampled_from([-1, 0, 1, 2, 16, 17, 50]) | st.integers(1, 3000),
    top_p=st.sampled_from([1e-9, 0.5, 0.9, 0.95, 1.0 - 2**-53, 1.0])
    | st.floats(0.0, 1.0, exclude_min=True),
    min_p=st.sampled_from([0.0, 0.05, 1.0]) | st.floats(0.0, 1.0),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 2**40),
)
num_tokens = st.sampled_from([1, 15, 16, 17, 1024, 1025, 2049]) | st.integers(1, 3000)


@st.composite
def rows(draw: st.DrawFn) -> Logits:
    """Ties, tokens that are barred, values from denormal to huge, one token far above, values that
    differ in their last bit."""
    size, seed = draw(num_tokens), draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    spread = draw(st.sampled_from([0.0, 1e-40, 1e-6, 0.1, 1.0, 3.0, 20.0, 1e30, 1e38]))
    row = np.clip(generator.normal(0, 1, size), -3, 3) * spread
    step = draw(st.sampled_from([0.0, 0.25, 1.0]))
    if step > 0 and spread < 1e6:
        row = np.round(row / step) * step
    row[generator.random(size) < draw(st.sampled_from([0.0, 0.0, 0.3, 0.99]))] = -np.inf
    kind = draw(st.sampled_from(["plain", "ladder", "one-hot", "broken"]))
    if kind == "ladder":
        row = np.asarray(1 + generator.permutation(size) * 2.0**-23, dtype=np.float64)
    if kind == "one-hot":
        row[generator.integers(size)] = 1e3
    if kind == "broken":
        row[generator.integers(size)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return row.astype(np.float32)


@exact
@given(row=rows(), choice=choices)
def test_tokens_are_those_of_the_reference(row: Logits, choice: Choice) -> None:
    expected = reference.choose(row, **vars(choice))
    for name, sampler in ALL:
        assert sampler.choose([row], [astuple(choice)]) == [expected], name


@exact
@given(row=rows(), token=st.integers(0, 2999), num_top=st.integers(0, 128))
def test_logprobs_are_those_of_the_reference(row: Logits, token: int, num_top: int) -> None:
    token, num_top = token % len(row), min(num_top, len(row))
    expected = repr(reference.logprobs(row, token, num_top))  # NaN is not equal to itself
    for name, sampler in ALL:
        assert repr(sampler.logprobs([row], [token], [num_top])[0]) == expected, name


@settings(deadline=None, derandomize=True, max_examples=20)
@given(batch=st.lists(st.tuples(rows(), choices), max_size=12))
def test_batch_mates_do_not_matter(batch: list[tuple[Logits, Choice]]) -> None:
    logits = [row for row, _ in batch]
    fields = [astuple(choice) for _, choice in batch]
    alone = [LONE.choose([row], [each])[0] for row, each in zip(logits, fields, strict=True)]
    for name, sampler in ALL:
        assert sampler.choose(logits, fields) == alone, name


@pytest.mark.parametrize(
    ("top_p", "num_kept"), [(0.25, 1), (0.25 + 2**-54, 2), (0.75, 3), (1.0, 4)]
)
def test_a_nucleus_ends_where_its_mass_is_reached(top_p: float, num_kept: int) -> None:
    """Of equal weights, to the quantum."""
    row = np.zeros(4, np.float32)
    fields = [astuple(Choice(top_p=top_p, seed=seed)) for seed in range(100)]
    weights = reference.weigh(row, 1.0)
    assert list(reference.filter_tokens(weights, -1, top_p, 0.0)) == list(range(num_kept))
    for name, sampler in ALL:
        assert set(sampler.choose([row] * len(fields), fields)) == set(range(num_kept)), name


FILTERS: Final = [
    Choice(),
    Choice(temperature=0.7),
    Choice(top_p=0.9),
    Choice(top_p=0.9999, temperature=1.5),
    Choice(top_k=50),
    Choice(top_k=50, top_p=0.9),
    Choice(top_k=1000),
    Choice(top_k=20_000, top_p=0.9),
    Choice(min_p=0.02, top_p=0.99),
]


@pytest.mark.parametrize("choice", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 5.0])
def test_a_whole_vocabulary(choice: Choice, spread: float) -> None:
    """More candidates than small rows have."""
    row = np.random.default_rng(2).normal(0, spread, VOCAB_SIZE).astype(np.float32)
    weights = reference.weigh(row, choice.temperature)
    kept = reference.filter_tokens(weights, choice.top_k, choice.top_p, choice.min_p)
    seeds = range(20)
    bits = [reference.random_bits(seed, choice.position) for seed in seeds]
    expected = [int(kept[reference.draw(weights[kept], each)]) for each in bits]
    fields = [(*astuple(choice)[:4], seed, choice.position) for seed in seeds]
    for isa in _native.available_isas():
        sampler = _native.Sampler(_native.Kernels(2, isa))
        assert sampler.choose([row] * len(seeds), fields) == expected, isa


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_random_bits_are_those_of_numpy(seed: int, position: int) -> None:
    bits = _native.random_bits(seed, position)
    assert bits == reference.random_bits(seed, position)
    assert 0 <= bits < 2**53
    assert bits != _native.random_bits(seed, position + 1)


@pytest.mark.parametrize("weights", [[0, 5, 0, 1, 0], [1], [0, 2**40], [2**40] * 3 + [0]])
def test_the_reference_draws_every_weight_in_proportion(weights: list[int]) -> None:
    """At both ends of each token's share of the random numbers; those of no weight have none."""
    array, total = np.array(weights, dtype=np.int64), sum(weights)
    assert reference.draw(array, 0) == int(np.flatnonzero(array)[0])
    assert reference.draw(array, 2**53 - 1) == int(np.flatnonzero(array)[-1])
    for index in np.flatnonzero(array):
        before = int(array[:index].sum())
        lowest = -(-(before << 53) // total)
        highest = -(-((before + int(array[index])) << 53) // total) - 1
        assert reference.draw(array, lowest) == index
        assert reference.draw(array, highest) == index


@pytest.mark.parametrize(
    ("choice", "seed"),
    [(Choice(), 11), (Choice(temperature=0.5), 12), (Choice(top_p=0.8), 13), (Choice(top_k=4), 14)],
    ids=str,
)
def test_shares_of_the_tokens(choice: Choice, seed: int) -> None:
    """Pearson's chi-square over 20,000 draws: below its 99.9th percentile for up to 7 degrees of
    freedom. A new seed may fail once in a thousand; this one passes or not for ever."""
    num_draws, generator = 20_000, np.random.default_rng(seed)
    print(f"seed {seed}")
    row = generator.normal(0, 1, 8).astype(np.float32)
    exact = np.exp(row.astype(np.float64) / choice.temperature)
    order = np.argsort(-exact)
    kept = order[: choice.top_k] if choice.top_k > 0 else order
    reached = np.cumsum(exact[kept]) / exact[kept].sum()
    kept = kept[: int(np.searchsorted(reached, choice.top_p)) + 1]
    shares = np.zeros(8)
    shares[kept] = exact[kept] / exact[kept].sum()
    fields = [(*astuple(choice)[:4], seed, position) for position in range(num_draws)]
    counts = np.bincount(LONE.choose([row] * num_draws, fields), minlength=8)
    assert counts[shares == 0].sum() == 0
    expected = shares[kept] * num_draws
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 24.32


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ((1e-7, -1, 1.0, 0.0, 0, 0), "temperature"),
        ((float("nan"), -1, 1.0, 0.0, 0, 0), "temperature"),
        ((1.0, -1, 0.0, 0.0, 0, 0), "top_p"),
        ((1.0, -1, float("nan"), 0.0, 0, 0), "top_p"),
        ((1.0, -1, 1.0, 1.5, 0, 0), "min_p"),
    ],
)
def test_choices_out_of_range_are_named(
    fields: tuple[float, int, float, float, int, int], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        LONE.choose([np.zeros(4, np.float32)], [fields])


def test_sizes_that_do_not_match_are_refused() -> None:
    row = np.zeros(4, np.float32)
    for rows, tokens, num_top in (([row], [4], [0]), ([row], [-1], [0]), ([row], [0], [5])):
        with pytest.raises(ValueError, match=r"token|num_top"):
            LONE.logprobs(rows, tokens, num_top)
    with pytest.raises(ValueError, match="number"):
        LONE.logprobs([row], [0, 1], [0])
    with pytest.raises(ValueError, match="number"):
        LONE.choose([row], [])
    with pytest.raises(ValueError, match="logits"):
        LONE.choose([row[:0]], [astuple(Choice())])
