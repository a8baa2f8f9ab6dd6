"""The reference ops in plain torch: they run on any torch device and are row-deterministic.

Invariant: an output row has the same bits whatever the number of rows, the other rows, and the
number of threads. Torch does not promise that, so each op here is built only from pieces that
keep it (tests/kernels holds the evidence):
- matrix products pad their rows, because one to three rows take other code paths than many;
- elementwise ops are those that IEEE rounds exactly, plus `exp`, which torch computes with the same
  vector code everywhere. `silu` and `sigmoid` are not: a thread's last few elements go through
  scalar code with other bits;
- sums run along the last dimension only, where each row is added up on its own.
Elsewhere: the contract (interface.py), attention (paged_attention.py).
"""

import torch
from torch.nn.functional import pad

from baton.kernels.attention_plan import AttentionPlanner
from baton.kernels.interface import SequenceSpan, Tensor
from baton.kernels.paged_attention import attend

_PACKED_ROW_MULTIPLE = 4
"""oneDNN: rows in multiples of 4 have the bits of any larger number of rows; 1 row does not."""

_PLAIN_ROW_MULTIPLE = 8
"""torch.mm (MKL on the CPU): the same holds from 8 rows on."""

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class TorchOps:
    """`baton.kernels.interface.Ops` in torch. One instance serves one model in one thread."""

    def __init__(self) -> None:
        self._planner = AttentionPlanner()

    def pack_weight(self, weight_FE: Tensor) -> Tensor:
        """The weight in the form that `linear` is fastest with (oneDNN's blocked one on the CPU);
        the results have the same bits with and without."""
        if not _onednn_multiplies(weight_FE):
            return weight_FE.contiguous()
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_FE.contiguous(), None)
        return packed

    def embedding(self, ids_T: Tensor, table_VE: Tensor) -> Tensor:
        return table_VE.index_select(0, ids_T).float()

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        mean_square = x_TE.square().mean(-1, keepdim=True)
        return x_TE * torch.rsqrt(mean_square.add_(eps)) * weight_E

    def linear(self, x_TE: Tensor, weight_FE: Tensor, bias_F: Tensor | None = None) -> Tensor:
        num_rows = x_TE.shape[0]
        if num_rows == 0:
            return x_TE.new_empty(0, weight_FE.shape[0])
        if weight_FE.is_mkldnn or _onednn_multiplies(weight_FE):
            x_TE = _pad_rows(x_TE, _PACKED_ROW_MULTIPLE)
            y_TF: Tensor = torch.ops.mkldnn._linear_pointwise(
                x_TE, weight_FE, bias_F, "none", [], ""
            )
            return y_TF[:num_rows]
        y_TF = _pad_rows(x_TE, _PLAIN_ROW_MULTIPLE).mm(weight_FE.t())[:num_rows]
        return y_TF if bias_F is None else y_TF.add_(bias_F)

    def rotary(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        low, high = x_THD.chunk(2, dim=-1)
        turned_THD = torch.cat((-high, low), dim=-1)
        return (x_THD * cos_TD.unsqueeze(1)).add_(turned_THD.mul_(sin_TD.unsqueeze(1)))

    def write_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, k_NSKD: Tensor, v_NSKD: Tensor, slots_T: Tensor
    ) -> None:
        block_size = k_NSKD.shape[1]
        where = (slots_T // block_size, slots_T % block_size)
        k_NSKD.index_put_(where, k_TKD.to(k_NSKD.dtype))
        v_NSKD.index_put_(where, v_TKD.to(v_NSKD.dtype))

    def paged_attention(
        self,
        q_THD: Tensor,
        k_NSKD: Tensor,
        v_NSKD: Tensor,
        spans: list[SequenceSpan],
        scale: float,
        window: int | None,
    ) -> Tensor:
        groups = self._planner.plan(q_THD, k_NSKD, spans, window)
        return attend(q_THD * scale, k_NSKD, v_NSKD, groups)

    def silu_mul(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        denominator_TF = torch.neg(gate_TF).exp_().add_(1.0)
        return torch.div(gate_TF, denominator_TF, out=denominator_TF).mul_(up_TF)


def _onednn_multiplies(weight_FE: Tensor) -> bool:
    is_plain_cpu = weight_FE.device.type == "cpu" and weight_FE.dtype == torch.float32
    return is_plain_cpu and _HAS_ONEDNN


def _pad_rows(x_TE: Tensor, multiple: int) -> Tensor:
    missing = -x_TE.shape[0] % multiple
    return pad(x_TE, (0, 0, 0, missing)) if missing else x_TE.contiguous()
