"""Causal attention over a paged KV pool, in plain torch.

The keys of a sequence are walked in tiles of TILE_KEYS, counted from position 0. A query row's
scores against a tile, the tile's sum of weights and the tile's weighted sum of values are each a
product or sum of one fixed shape, and tiles are added up from first to last:

    m = max over all keys of s        s = scale q·k,  -inf where masked
    l = sum over tiles of (sum over keys of exp(s - m))
    o = sum over tiles of (exp(s - m) @ v) / l

Invariant: a row's output has the same bits in a batch of one or many, in a chunk of any length, and
as a decode step. It holds because a maximum does not depend on order, because a tile that is
masked for a row adds exact zeros to it, and because every matrix product has TILE_KEYS keys and a
multiple of ROW_MULTIPLE rows per item. A global maximum (not a running one) means that no sum is
ever rescaled, and that no row, whatever its window, meets a maximum of -inf.

Elsewhere: what is computed at once, and where keys lie (attention_plan.py), the contract
(interface.py).

Shapes: those of attention_plan.py; R rows of an item (Q·G, padded).
"""

import torch
from torch.nn.functional import pad

from baton.kernels.attention_plan import (
    ROW_MULTIPLE,
    TILE_KEYS,
    QueryPiece,
    SequenceGroup,
    pool_shape,
)
from baton.kernels.interface import Tensor


def attend(q_THD: Tensor, k_NSKD: Tensor, v_NSKD: Tensor, groups: list[SequenceGroup]) -> Tensor:
    """Attention of the (already scaled) queries, as planned. Returns T×H×D."""
    num_kv_heads, head_dim = k_NSKD.shape[2:]
    k_rows, v_rows = _rows_of(k_NSKD), _rows_of(v_NSKD)
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    for group in groups:
        shape = (group.num_tiles, group.num_sequences, num_kv_heads, TILE_KEYS, head_dim)
        k_PBKCD = k_rows.index_select(0, group.key_rows).float().view(shape)
        v_PBKCD = v_rows.index_select(0, group.key_rows).float().view(shape)
        for piece in group.pieces:
            tiles = slice(piece.first_tile, piece.end_tile)
            _attend_piece(q_THD, k_PBKCD[tiles], v_PBKCD[tiles], piece, out_THD)
    return out_THD


def _attend_piece(
    q_THD: Tensor, k_PBKCD: Tensor, v_PBKCD: Tensor, piece: QueryPiece, out_THD: Tensor
) -> None:
    num_tiles, num_sequences, num_kv_heads, _, head_dim = k_PBKCD.shape
    by_token = (num_sequences, piece.num_tokens, num_kv_heads, -1, head_dim)
    q_BQKGD = q_THD.index_select(0, piece.query_rows).view(by_token)
    group_size = q_BQKGD.shape[3]
    num_rows = piece.num_tokens * group_size
    q_BKRD = q_BQKGD.transpose(1, 2).reshape(num_sequences, num_kv_heads, num_rows, head_dim)
    q_BKRD = pad(q_BKRD, (0, 0, 0, -num_rows % ROW_MULTIPLE))

    q_PBKRD = q_BKRD.expand(num_tiles, *q_BKRD.shape)
    s_PBKRC = _matmul(q_PBKRD, k_PBKCD.transpose(-1, -2))
    s_PBKRC[num_tiles - piece.bias.shape[0] :].add_(piece.bias)
    m_BKR1 = s_PBKRC.amax(-1, keepdim=True).amax(0)
    weights_PBKRC = s_PBKRC.sub_(m_BKR1).exp_()
    l_BKR1 = _add_up(weights_PBKRC.sum(-1, keepdim=True))
    o_BKRD = _add_up(_matmul(weights_PBKRC, v_PBKCD)).div_(l_BKR1)

    by_head = (num_sequences, num_kv_heads, piece.num_tokens, group_size, head_dim)
    o_BQKGD = o_BKRD[:, :, :num_rows].reshape(by_head).transpose(1, 2)
    out_THD.index_copy_(0, piece.query_rows, o_BQKGD.reshape(-1, *q_THD.shape[1:]))


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Products over the last two dimensions, one item at a time for all leading ones."""
    leading = a.shape[:-2]
    product = torch.bmm(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
    return product.view(*leading, *product.shape[-2:])


def _add_up(x_P: Tensor) -> Tensor:
    """Sum over tiles, first to last. (`sum` groups its terms by how many there are.)"""
    total = x_P[0]
    for tile in x_P[1:]:
        total = total.add_(tile)
    return total


def _rows_of(x_NSKD: Tensor) -> Tensor:
    """The memory from the first to the last block as rows of one head, so that index_select can
    gather any layout in one pass over memory."""
    pool = pool_shape(x_NSKD)
    num_rows = (x_NSKD.shape[0] - 1) * pool.block_rows + pool.block_size * pool.num_kv_heads
    return x_NSKD.as_strided((num_rows, pool.head_dim), (pool.head_dim, 1))
