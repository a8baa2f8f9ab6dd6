"""Attention over the paged pool: right, and with the same bits however the work is cut."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.kernels import attention_plan
from baton.kernels.interface import SequenceSpan
from baton.kernels.torch_ops import TorchOps
from baton.testing.paged_cases import PagedCase, add_sequence, make_pool, reference_attention

Case = tuple[PagedCase, int | None]

TILE = attention_plan.TILE_KEYS


def attend(
    ops: TorchOps,
    case: PagedCase,
    q_THD: torch.Tensor,
    spans: list[SequenceSpan],
    window: int | None,
) -> torch.Tensor:
    scale = case.q_THD.shape[2] ** -0.5
    return ops.paged_attention(q_THD, case.k_NSKD, case.v_NSKD, spans, scale, window)


def whole(case: PagedCase, window: int | None) -> torch.Tensor:
    num_tokens = len(case.q_THD)
    return attend(TorchOps(), case, case.q_THD, [case.span(0, 0, num_tokens)], window)


def in_chunks(case: PagedCase, borders: list[int], window: int | None) -> torch.Tensor:
    """The sequence computed chunk by chunk, one step each."""
    ops = TorchOps()
    edges = sorted({0, len(case.q_THD), *borders})
    parts = [
        attend(ops, case, case.q_THD[low:high], [case.span(0, low, high)], window)
        for low, high in itertools.pairwise(edges)
    ]
    return torch.cat(parts)


def one_case(
    num_tokens: int,
    *,
    kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PagedCase:
    num_blocks = -(-num_tokens // block_size) + 2
    pool = make_pool(num_blocks, block_size, kv_heads, head_dim, dtype)
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    return add_sequence(pool, order[:-2], num_tokens, kv_heads * group, seed)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_tokens = draw(st.one_of(st.integers(2, 60), st.sampled_from([255, 256, 257, 300, 530])))
    case = one_case(
        num_tokens,
        kv_heads=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 3, 7])),
        head_dim=draw(st.sampled_from([8, 16, 64])),
        block_size=draw(st.sampled_from([4, 16, 512])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        seed=draw(st.integers(0, 5)),
    )
    return case, draw(st.sampled_from([None, None, 1, 5, 256, 270]))


thread_settings = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@thread_settings
@given(case=cases(), data=st.data())
def test_bits_do_not_depend_on_chunks_or_threads(
    set_threads: object, case: Case, data: st.DataObject
) -> None:
    assert callable(set_threads)
    paged, window = case
    set_threads(1)
    expected = whole(paged, window)
    assert not expected.isnan().any()
    borders = data.draw(st.lists(st.integers(1, len(paged.q_THD) - 1), max_size=6))
    for num_threads in (1, 2):
        set_threads(num_threads)
        assert torch.equal(whole(paged, window), expected)
        assert torch.equal(in_chunks(paged, borders, window), expected)


@thread_settings
@given(case=cases(), data=st.data())
def test_a_decode_step_has_the_bits_of_a_chunk(
    set_threads: object, case: Case, data: st.DataObject
) -> None:
    assert callable(set_threads)
    paged, window = case
    set_threads(1)
    expected = whole(paged, window)
    for num_threads in (1, 2):
        set_threads(num_threads)
        for position in data.draw(st.lists(st.integers(0, len(paged.q_THD) - 1), max_size=4)):
            span = paged.span(0, position, position + 1)
            query = paged.q_THD[position : position + 1]
            out = attend(TorchOps(), paged, query, [span], window)
            assert torch.equal(out, expected[position : position + 1])


@thread_settings
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 40), st.sampled_from([256, 257, 600])), min_size=1, max_size=9
    ),
    window=st.sampled_from([None, 3, 300]),
    data=st.data(),
)
def test_bits_do_not_depend_on_batch_mates(
    set_threads: object, lengths: list[int], window: int | None, data: st.DataObject
) -> None:
    """Decode steps and chunks of several sequences in one batch, against each sequence alone."""
    assert callable(set_threads)
    block_size = 16
    counts = [-(-length // block_size) for length in lengths]
    pool = make_pool(sum(counts), block_size, 2, 16, torch.float32)
    starts = [sum(counts[:index]) for index in range(len(counts))]
    paged = [
        add_sequence(pool, list(range(start, start + count)), length, 6, seed)
        for seed, (start, count, length) in enumerate(zip(starts, counts, lengths, strict=True))
    ]
    spans, queries, expected = [], [], []
    row = 0
    set_threads(1)
    for case in paged:
        length = len(case.q_THD)
        first = data.draw(st.one_of(st.just(length - 1), st.integers(0, length - 1)))
        spans.append(case.span(row, first, length))
        queries.append(case.q_THD[first:])
        expected.append(whole(case, window)[first:])
        row += length - first
    for num_threads in (1, 2):
        set_threads(num_threads)
        out = attend(TorchOps(), paged[0], torch.cat(queries), spans, window)
        assert torch.equal(out, torch.cat(expected))


@thread_settings
@given(case=cases())
def test_values(case: Case) -> None:
    paged, window = case
    k_TKD, v_TKD = paged.dense_kv(len(paged.q_THD))
    expected = reference_attention(paged.q_THD, k_TKD, v_TKD, window)
    # float32 against float64; a weighted mean of values near 1 keeps the absolute error small.
    assert torch.allclose(whole(paged, window), expected, atol=2e-5)


def test_pieces_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = one_case(700)
    expected = whole(case, None)
    monkeypatch.setattr(attention_plan, "_SCORE_BUDGET", 1)
    monkeypatch.setattr(attention_plan, "_GATHER_BUDGET", 1)
    assert torch.equal(whole(case, None)[:40], expected[:40])
    spans = [
        SequenceSpan(row, 1, position + 1, case.block_ids)
        for row, position in enumerate((5, 299, 699))
    ]
    out = attend(TorchOps(), case, case.q_THD[[5, 299, 699]], spans, None)
    assert torch.equal(out, expected[[5, 299, 699]])


def test_a_long_context_needs_bounded_memory() -> None:
    """A chunk of 512 at context 4096 is cut so that scores stay within their budget."""
    case = one_case(4096, kv_heads=1, group=4, head_dim=8)
    planner = attention_plan.AttentionPlanner()
    (group,) = planner.plan(case.q_THD, case.k_NSKD, [case.span(0, 3584, 4096)], None)
    for piece in group.pieces:
        scores = (piece.end_tile - piece.first_tile) * piece.num_tokens * 4 * TILE
        assert scores <= attention_plan._SCORE_BUDGET
    assert sum(piece.num_tokens for piece in group.pieces) == 512


def test_a_window_skips_tiles_that_nobody_sees() -> None:
    case = one_case(1100)
    planner = attention_plan.AttentionPlanner()
    (group,) = planner.plan(case.q_THD, case.k_NSKD, [case.span(0, 1099, 1100)], 64)
    assert group.num_tiles == 1


def test_a_plan_is_kept_for_a_step_and_not_longer() -> None:
    case = one_case(40)
    planner = attention_plan.AttentionPlanner()
    spans = [case.span(0, 38, 39)]
    first = planner.plan(case.q_THD, case.k_NSKD, spans, None)
    assert planner.plan(case.q_THD, case.k_NSKD, spans, None) is first
    spans[0] = case.span(0, 39, 40)
    assert planner.plan(case.q_THD, case.k_NSKD, spans, None) is not first
