"""What attention computes at once, and where the keys lie: index tensors for one step.

Memory is bounded by cutting a chunk's queries into pieces and a decode batch into groups; by the
invariant of paged_attention.py that changes no bit of the result.

Invariant: slots past a sequence's context are never read; in their place stands the first key of
its own walk, with a weight of exactly zero. What an earlier owner left in a block (perhaps NaN, and
0 × NaN is NaN) cannot reach anybody's output.
Elsewhere: the arithmetic (paged_attention.py), who holds which block (kvcache/).

Shapes: T tokens, H query heads, K kv heads, G = H/K, D head dim, N blocks, S block size,
B sequences of a group, P tiles, C = TILE_KEYS, Q query tokens of a piece, M blocks of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baton.kernels.interface import SequenceSpan, Tensor

TILE_KEYS = 256
ROW_MULTIPLE = 8
"""Matrix products have the same bits per row from 8 rows on, in multiples of 8."""

_MAX_ROWS = 256
_SCORE_BUDGET = 4 << 20
"""Scores held at once, in elements: 16 MiB, so that they stay in a last-level cache."""
_GATHER_BUDGET = 8 << 20
"""Keys (and values) of a decode group gathered at once, in elements: 32 MiB of float32."""
_MAX_PADDING_TILES = 2
"""A decode group takes a sequence that is this much shorter: it costs less than another group."""


@dataclass(frozen=True)
class PoolShape:
    """What a plan needs of the pool: `block_rows` is the distance of two blocks, in rows of D."""

    block_size: int
    num_kv_heads: int
    head_dim: int
    block_rows: int


@dataclass(frozen=True)
class QueryPiece:
    """Queries that are computed at once: Q tokens of each of B sequences.

    `query_rows` are B·Q rows of the batch. They see tiles [first_tile, end_tile) of their group.
    `bias` (P'×B×1×(R or 1)×C; 0 or -inf) belongs to the last P' of those.
    """

    query_rows: Tensor
    num_tokens: int
    first_tile: int
    end_tile: int
    bias: Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences whose keys are gathered together. `key_rows` (P·B·K·C) are rows of D elements in
    the pool's memory, from the first block on."""

    num_sequences: int
    num_tiles: int
    key_rows: Tensor
    pieces: list[QueryPiece]


class AttentionPlanner:
    """Keeps the plan of a step, which is the same for each of its layers."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._groups: list[SequenceGroup] = []

    def plan(
        self, q_THD: Tensor, k_NSKD: Tensor, spans: list[SequenceSpan], window: int | None
    ) -> list[SequenceGroup]:
        pool = pool_shape(k_NSKD)
        num_heads = q_THD.shape[1]
        # A step's spans are frozen, and so are their block ids while it runs: a copy of the list
        # tells whether this is still the same step.
        key = (list(spans), pool, num_heads, window, q_THD.device)
        if key != self._key:
            group_size = num_heads // pool.num_kv_heads
            self._groups = _plan(spans, pool, group_size, window, q_THD.device)
            self._key = key
        return self._groups


def pool_shape(k_NSKD: Tensor) -> PoolShape:
    _, block_size, num_kv_heads, head_dim = k_NSKD.shape
    block_stride = k_NSKD.stride(0)
    assert k_NSKD.stride()[1:] == (num_kv_heads * head_dim, head_dim, 1), "a block is contiguous"
    assert block_stride % head_dim == 0, "blocks are whole rows of a head apart"
    return PoolShape(block_size, num_kv_heads, head_dim, block_stride // head_dim)


def _plan(
    spans: Sequence[SequenceSpan],
    pool: PoolShape,
    group_size: int,
    window: int | None,
    device: torch.device,
) -> list[SequenceGroup]:
    decoding = [span for span in spans if span.num_tokens == 1]
    tile_elements = TILE_KEYS * pool.num_kv_heads * pool.head_dim
    groups = [
        _decode_group(members, pool, window, device)
        for members in _cut_by_length(decoding, window, _GATHER_BUDGET // tile_elements)
    ]
    groups += [
        _prefill_group(span, pool, group_size, window, device)
        for span in spans
        if span.num_tokens > 1
    ]
    return groups


def _cut_by_length(
    spans: list[SequenceSpan], window: int | None, max_tiles: int
) -> list[list[SequenceSpan]]:
    """Groups of similar length: at most `max_tiles` gathered tiles each, unless it is alone."""
    groups: list[list[SequenceSpan]] = []
    longest = 0
    for span in sorted(spans, key=lambda each: -_num_tiles(each, window)):
        num_tiles = _num_tiles(span, window)
        is_similar = bool(groups) and longest - num_tiles <= _MAX_PADDING_TILES
        if is_similar and longest * (len(groups[-1]) + 1) <= max_tiles:
            groups[-1].append(span)
        else:
            groups.append([span])
            longest = num_tiles
    return groups


def _first_tile(position: int, window: int | None) -> int:
    """The tile of the first key that a query at `position` sees."""
    return 0 if window is None else max(0, position - window + 1) // TILE_KEYS


def _num_tiles(span: SequenceSpan, window: int | None) -> int:
    first = _first_tile(span.context_len - span.num_tokens, window)
    return -(-span.context_len // TILE_KEYS) - first


def _decode_group(
    spans: list[SequenceSpan], pool: PoolShape, window: int | None, device: torch.device
) -> SequenceGroup:
    first_tiles = [_first_tile(span.context_len - 1, window) for span in spans]
    num_tiles = max(_num_tiles(span, window) for span in spans)
    positions_PBC = _tile_positions(num_tiles, first_tiles, device)
    queries_B1 = torch.tensor([[span.context_len - 1] for span in spans], device=device)
    bias_PBC = _bias(positions_PBC, queries_B1, window)
    piece = QueryPiece(
        query_rows=torch.tensor([span.start for span in spans], device=device),
        num_tokens=1,
        first_tile=0,
        end_tile=num_tiles,
        bias=bias_PBC[:, :, None, None, :],
    )
    return SequenceGroup(
        len(spans), num_tiles, _key_rows(spans, positions_PBC, pool, device), [piece]
    )


def _prefill_group(
    span: SequenceSpan,
    pool: PoolShape,
    group_size: int,
    window: int | None,
    device: torch.device,
) -> SequenceGroup:
    start = span.context_len - span.num_tokens
    first_tile, num_tiles = _first_tile(start, window), _num_tiles(span, window)
    positions_P1C = _tile_positions(num_tiles, [first_tile], device)
    max_rows = _SCORE_BUDGET // (num_tiles * pool.num_kv_heads * TILE_KEYS)
    step = max(1, min(_MAX_ROWS, max_rows) // group_size)
    pieces = []
    for low in range(start, span.context_len, step):
        high = min(low + step, span.context_len)
        begin = _first_tile(low, window) - first_tile
        end = (high - 1) // TILE_KEYS + 1 - first_tile
        # Without a window, every tile before the first query's own is visible to all of them.
        biased_from = begin if window is not None else low // TILE_KEYS
        queries_R1 = _row_positions(low, high, group_size, device)
        bias_PRC = _bias(positions_P1C[biased_from:end], queries_R1, window)
        pieces.append(
            QueryPiece(
                query_rows=torch.arange(low, high, device=device) + (span.start - start),
                num_tokens=high - low,
                first_tile=begin,
                end_tile=end,
                bias=bias_PRC[:, None, None],
            )
        )
    return SequenceGroup(1, num_tiles, _key_rows([span], positions_P1C, pool, device), pieces)


def _tile_positions(num_tiles: int, first_tiles: list[int], device: torch.device) -> Tensor:
    """Positions of keys, P×B×C, each sequence beginning at its own first tile."""
    starts_B = torch.tensor(first_tiles, device=device) * TILE_KEYS
    steps_PC = torch.arange(num_tiles * TILE_KEYS, device=device).view(num_tiles, TILE_KEYS)
    return steps_PC[:, None, :] + starts_B[None, :, None]


def _row_positions(low: int, high: int, group_size: int, device: torch.device) -> Tensor:
    """Positions of a piece's query rows, R×1; padding rows repeat the last one."""
    rows = torch.arange(low, high, device=device).repeat_interleave(group_size)
    padding = rows[-1].expand(-len(rows) % ROW_MULTIPLE)
    return torch.cat((rows, padding)).unsqueeze(1)


def _bias(keys: Tensor, queries: Tensor, window: int | None) -> Tensor:
    """0 where a query sees a key, else -inf. Keys past the context lie after every query."""
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return torch.where(visible, 0.0, -torch.inf)


def _key_rows(
    spans: list[SequenceSpan], positions_PBC: Tensor, pool: PoolShape, device: torch.device
) -> Tensor:
    """Where each key lies (see SequenceGroup); keys past the context repeat the first one."""
    contexts_B1 = torch.tensor([[span.context_len] for span in spans], device=device)
    first_B1 = positions_PBC[0, :, :1]
    positions_PBC = torch.where(positions_PBC < contexts_B1, positions_PBC, first_B1)
    blocks_PBC, offsets_PBC = positions_PBC // pool.block_size, positions_PBC % pool.block_size
    width = max(len(span.block_ids) for span in spans)
    tables = [span.block_ids + [0] * (width - len(span.block_ids)) for span in spans]
    table_BM = torch.tensor(tables, device=device)
    sequences_B1 = torch.arange(len(spans), device=device).unsqueeze(1)
    rows_PBC = (
        table_BM[sequences_B1, blocks_PBC] * pool.block_rows + offsets_PBC * pool.num_kv_heads
    )
    heads_K = torch.arange(pool.num_kv_heads, device=device)
    return (rows_PBC[:, :, None, :] + heads_K[:, None]).flatten()
