"""The next token: filters keep what they should, seeds decide, penalties push the right way."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.errors import RequestError
from baton.core.sampling import SamplingParams
from baton.engine.sampler import NO_TOKEN, Logits, NextToken, Sampler
from baton.messages.engine import TokenLogprob

V = 50
SAMPLER = Sampler()


def logits_of(seed: int) -> Logits:
    return np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 8, **fields})  # type: ignore[arg-type]


def choose(logits: Logits, params: SamplingParams, prompt: list[int], output: list[int]) -> int:
    return SAMPLER.choose([NextToken(logits, params, prompt + output, len(prompt))])[0]


def logprob(logits: Logits, token_id: int, num_top: int) -> TokenLogprob:
    return SAMPLER.logprobs([logits], [token_id], [num_top])[0]


def test_temperature_zero_takes_the_best() -> None:
    logits = logits_of(0)
    assert choose(logits, params(temperature=0.0), [1], []) == int(np.argmax(logits))


def test_of_equals_the_first_is_the_best() -> None:
    logits = np.array([1, 3, 2, 3, 3], dtype=np.float32)
    assert choose(logits, params(temperature=0.0), [1], []) == 1


@pytest.mark.parametrize("temperature", [1.0, 2.0, 100.0])
def test_top_k_of_one_takes_the_best(temperature: float) -> None:
    logits = np.array([1, 1 + 2**-23, 1], dtype=np.float32)
    assert choose(logits, params(temperature=temperature, top_k=1), [1], []) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-40, 1e-7])
def test_a_temperature_next_to_zero_takes_the_best(temperature: float) -> None:
    logits = logits_of(0)
    chosen = choose(logits, params(temperature=temperature, seed=3), [1], [])
    assert chosen == int(np.argmax(logits))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 17, V - 1])
def test_logits_that_are_no_numbers_give_no_token(
    temperature: float, broken: float, at: int
) -> None:
    logits = logits_of(0)
    logits[at] = broken
    assert choose(logits, params(temperature=temperature), [1], []) == NO_TOKEN
    entry = logprob(logits, 3, 5)
    assert entry.logprob is not None
    assert math.isnan(entry.logprob)
    assert entry.top == []


def test_all_barred_gives_no_token() -> None:
    logits = np.full(V, -np.inf, dtype=np.float32)
    assert choose(logits, params(), [1], []) == NO_TOKEN


def test_batch_mates_do_not_matter() -> None:
    broken = np.full(V, np.nan, dtype=np.float32)
    wanted = [
        NextToken(logits, params(temperature=temperature, top_p=top_p, seed=seed), [1], 1)
        for seed, (logits, temperature, top_p) in enumerate(
            itertools.product([logits_of(1), broken, logits_of(2)], [0.0, 1.0], [0.5, 1.0])
        )
    ]
    alone = [SAMPLER.choose([each])[0] for each in wanted]
    assert SAMPLER.choose(wanted) == alone
    assert SAMPLER.choose(wanted[::-1]) == alone[::-1]
    assert SAMPLER.choose([]) == []


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    drawn = [choose(logits, params(seed=s), [0], []) for s in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    # Four standard deviations of a share of 0.5 over 4,000 draws.
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 4 * 0.5 / np.sqrt(4000)


@given(
    logits_seed=st.integers(0, 1000),
    seed=st.integers(0, 10**9),
    top_k=st.integers(1, V),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_only_kept_tokens_are_drawn(
    logits_seed: int, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(logits_seed)
    chosen = choose(logits, params(seed=seed, top_k=top_k, top_p=top_p, min_p=min_p), [1], [])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    order = list(np.argsort(-probabilities, kind="stable"))
    rank = order.index(chosen)
    assert rank < top_k
    top = probabilities[order[:top_k]]
    # Weights are single precision.
    assert top[:rank].sum() / top.sum() < top_p + 1e-6
    assert rank == 0 or probabilities[chosen] >= min_p * probabilities[order[0]] * (1 - 1e-6)


def test_logits_are_not_changed() -> None:
    logits = logits_of(3)
    before = logits.copy()
    choose(logits, params(logit_bias={1: 5.0}, repetition_penalty=1.5), [1], [2])
    assert (logits == before).all()


def test_bias_bars_and_forces() -> None:
    logits = logits_of(3)
    best = int(np.argmax(logits))
    greedy = params(temperature=0.0, logit_bias={best: -100.0})
    assert choose(logits, greedy, [1], []) != best
    assert choose(logits, params(temperature=0.0, logit_bias={7: 100.0}), [1], []) == 7


def test_penalties_move_away_from_what_was_said() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[4], logits[5] = 2.0, 1.9
    assert choose(logits, params(temperature=0.0, frequency_penalty=0.2), [], [4]) == 5
    assert choose(logits, params(temperature=0.0, presence_penalty=0.2), [], [4]) == 5
    assert choose(logits, params(temperature=0.0, repetition_penalty=1.2), [4], []) == 5
    assert choose(logits, params(temperature=0.0, frequency_penalty=0.2), [4], []) == 4


def test_end_tokens_wait_for_min_new_tokens() -> None:
    logits = logits_of(5)
    best = int(np.argmax(logits))
    early = params(temperature=0.0, min_new_tokens=2, stop_token_ids=(best,))
    assert choose(logits, early, [1], [3]) != best
    assert choose(logits, early, [1], [3, 4]) == best


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.999}, {"min_p": 0.001}])
def test_barred_tokens_are_never_drawn(filters: dict[str, float]) -> None:
    logits = np.zeros(4, dtype=np.float32)
    barred = params(min_new_tokens=1, stop_token_ids=(3,), **filters)
    wanted = [NextToken(logits, barred, [0] * length, length) for length in range(1, 500)]
    assert set(SAMPLER.choose(wanted)) == {0, 1, 2}


def test_logprobs_are_normalised_and_ordered() -> None:
    logits = logits_of(6)
    entry = logprob(logits, 9, V)
    assert np.isclose(sum(np.exp(logprob) for _, logprob in entry.top), 1.0)
    assert [lp for _, lp in entry.top] == sorted((lp for _, lp in entry.top), reverse=True)
    assert dict(entry.top)[9] == entry.logprob


def test_equal_logprobs_go_by_id() -> None:
    logits = np.array([0.0, 1.0, -0.0, 1.0, 0.0], dtype=np.float32)
    assert [token_id for token_id, _ in logprob(logits, 0, 4).top] == [1, 3, 0, 2]


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 100.0])
def test_logprobs_are_those_of_double_precision(spread: float) -> None:
    """Each weight is exact to 2e-6 of itself: the exponent, up to 28 where a weight still counts,
    is rounded in single precision, and the polynomial errs by 2 units."""
    logits = np.random.default_rng(1).normal(0, spread, 49_152).astype(np.float32)
    exact = logits.astype(np.float64) - float(logits.max())
    exact -= np.log(np.exp(exact).sum())
    for token_id in (0, 5, int(np.argmax(logits))):
        assert logprob(logits, token_id, 0).logprob == pytest.approx(exact[token_id], abs=2e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2.0),
        ("max_new_tokens", 0),
        ("min_new_tokens", 9),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 3.0),
        ("logit_bias", {V: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("stop_token_ids", (V,)),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field):
        params(**{field: value}).validate(V)
