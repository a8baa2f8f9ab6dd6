"""The next token: filters keep what they should, seeds decide, penalties push the right way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.errors import RequestError
from baton.core.sampling import SamplingParams
from baton.engine.sampler import _best, _nucleus, choose_token, token_logprob, uniform_at

V = 50


def logits_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 8, **fields})  # type: ignore[arg-type]


def test_temperature_zero_takes_the_best() -> None:
    logits = logits_of(0)
    assert choose_token(logits, params(temperature=0.0), [1], []) == int(np.argmax(logits))


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-40, 1e-7])
def test_a_temperature_next_to_zero_takes_the_best(temperature: float) -> None:
    logits = logits_of(0)
    chosen = choose_token(logits, params(temperature=temperature, seed=3), [1], [])
    assert chosen == int(np.argmax(logits))


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_uniforms_are_a_function_of_seed_and_position(seed: int, position: int) -> None:
    value = uniform_at(seed, position)
    assert 0.0 <= value < 1.0
    assert value == uniform_at(seed, position)
    assert value != uniform_at(seed, position + 1)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    drawn = [choose_token(logits, params(seed=s), [0], []) for s in range(4000)]
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
    chosen = choose_token(logits, params(seed=seed, top_k=top_k, top_p=top_p, min_p=min_p), [1], [])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    order = list(np.argsort(-probabilities, kind="stable"))
    rank = order.index(chosen)
    assert rank < top_k
    top = probabilities[order[:top_k]]
    assert top[:rank].sum() / top.sum() < top_p + 1e-9
    assert rank == 0 or probabilities[chosen] >= min_p * probabilities[order[0]] - 1e-12


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40),
    count=st.integers(1, 50),
)
def test_the_best_are_those_of_a_full_sort(values: list[float], count: int) -> None:
    array = np.array(values)
    assert list(_best(array, count)) == list(np.argsort(-array, kind="stable")[:count])


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0 - 2**-53])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_nucleus_is_that_of_a_full_sort(top_p: float, spread: float) -> None:
    weights = np.exp(np.random.default_rng(1).normal(0, spread, 5000))
    weights /= weights.max()
    order = np.argsort(-weights, kind="stable")
    wanted = int(np.searchsorted(np.cumsum(weights[order]), top_p * weights.sum())) + 1
    kept = _nucleus(weights, top_p * weights.sum())
    assert list(kept) == list(order[:wanted])


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.999}])
def test_a_uniform_next_to_one_draws_no_barred_token(
    filters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.engine.sampler.uniform_at", lambda seed, position: 1.0)
    logits = logits_of(5)
    barred = params(min_new_tokens=1, stop_token_ids=(V - 1,), **filters)
    assert choose_token(logits, barred, [1], []) != V - 1


def test_bias_bars_and_forces() -> None:
    logits = logits_of(3)
    best = int(np.argmax(logits))
    greedy = params(temperature=0.0, logit_bias={best: -100.0})
    assert choose_token(logits, greedy, [1], []) != best
    assert choose_token(logits, params(temperature=0.0, logit_bias={7: 100.0}), [1], []) == 7


def test_penalties_move_away_from_what_was_said() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[4], logits[5] = 2.0, 1.9
    assert choose_token(logits, params(temperature=0.0, frequency_penalty=0.2), [], [4]) == 5
    assert choose_token(logits, params(temperature=0.0, presence_penalty=0.2), [], [4]) == 5
    assert choose_token(logits, params(temperature=0.0, repetition_penalty=1.2), [4], []) == 5
    assert choose_token(logits, params(temperature=0.0, frequency_penalty=0.2), [4], []) == 4


def test_end_tokens_wait_for_min_new_tokens() -> None:
    logits = logits_of(5)
    best = int(np.argmax(logits))
    early = params(temperature=0.0, min_new_tokens=2, stop_token_ids=(best,))
    assert choose_token(logits, early, [1], [3]) != best
    assert choose_token(logits, early, [1], [3, 4]) == best


def test_logprobs_are_normalised_and_ordered() -> None:
    logits = logits_of(6)
    entry = token_logprob(logits, 9, V)
    assert np.isclose(sum(np.exp(logprob) for _, logprob in entry.top), 1.0)
    assert [lp for _, lp in entry.top] == sorted((lp for _, lp in entry.top), reverse=True)
    assert dict(entry.top)[9] == entry.logprob


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
