"""The Llama family: Llama, Mistral, Qwen2, Qwen3 and what shares their shape.

The reference, for any torch device; on the CPU the same decoder runs in C++ (native_llama.py). One
decoder, written over `Ops`; what differs between them is in ModelConfig. The tokens' KV goes to
a paged pool, so the model keeps nothing between steps.

Invariant: a row of logits depends on the sequence's tokens only (every op is row-deterministic),
never on the batch or on where chunks end.
Elsewhere: ops (kernels/), where weights come from (weights.py), positions (rope.py).

Shapes: T tokens, E hidden size, F intermediate size, H query heads, K kv heads, D head dim,
N blocks, L layers, S block size, V vocabulary.
"""

from dataclasses import dataclass

import torch

from baton.kernels import _native
from baton.kernels.interface import ForwardBatch, Logits, Ops, SequenceSpan
from baton.kvcache.layout import KvLayout
from baton.models.config import ModelConfig
from baton.models.kv_view import kv_view
from baton.models.linear import Linear, LinearFactory
from baton.models.rope import RotaryTable, inverse_frequencies
from baton.models.weights import ROPE_FACTORS, Weights

Tensor = torch.Tensor


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer. `qkv` gives queries, keys and values side by side, `gate_up` both
    halves of the gated MLP."""

    attention_norm_E: Tensor
    qkv: Linear
    q_norm_D: Tensor | None
    k_norm_D: Tensor | None
    o: Linear
    mlp_norm_E: Tensor
    gate_up: Linear
    down: Linear


class LlamaModel:
    """A decoder of the family, its weights loaded. `forward` is not reentrant."""

    def __init__(self, config: ModelConfig, weights: Weights, linears: LinearFactory, ops: Ops):
        self.config = config
        self.kernels: _native.Kernels | None = None
        self._ops = ops
        self._embedding_VE = weights.take_as_stored(
            "model.embed_tokens.weight", config.vocab_size, config.hidden_size
        )
        self._layers = [
            _load_layer(config, weights, linears, f"model.layers.{index}")
            for index in range(config.num_layers)
        ]
        self._norm_E = weights.take("model.norm.weight", config.hidden_size)
        self._lm_head = self._load_lm_head(weights, linears)
        self._rotary = RotaryTable(rotary_frequencies(config, weights))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_pool: Tensor) -> Logits:
        """Logits of the wanted rows, len(batch.logit_rows)×V in float32.

        `kv_pool` is N×L×2×S×K×D; the batch's keys and values are written to it.
        """
        token_ids_T, slots_T, logit_rows = (
            torch.from_numpy(each).to(self._norm_E.device)
            for each in (batch.token_ids_T, batch.slots_T, batch.logit_rows)
        )
        rotation = self._rotation(batch)
        x_TE = self._ops.embedding(token_ids_T, self._embedding_VE)
        for index, layer in enumerate(self._layers):
            kv_N2SKD = kv_pool[:, index]
            x_TE = x_TE + self._attend(layer, x_TE, batch.spans, slots_T, kv_N2SKD, rotation)
            x_TE = x_TE + self._mlp(layer, x_TE)
        logits = self._lm_head(self._norm(x_TE.index_select(0, logit_rows), self._norm_E))
        result: Logits = logits.cpu().numpy()
        return result

    def kv_layout(self, model_id: str, dtype: str, block_size: int) -> KvLayout:
        """How this model's KV lies in a block."""
        return KvLayout(
            model_id=model_id,
            dtype=dtype,
            block_size=block_size,
            num_layers=self.config.num_layers,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
        )

    def kv_view(self, buffer: memoryview, layout: KvLayout, num_blocks: int) -> Tensor:
        return kv_view(buffer, layout, num_blocks)

    def stage_seconds(self) -> dict[str, float]:
        return {}  # the reference does not time itself

    def _rotation(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rows, each T×D, the second half of D repeating the first."""
        cos, sin = (
            torch.from_numpy(table).to(self._norm_E.device)
            for table in self._rotary.rows(batch.positions_T)
        )
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    def _attend(
        self,
        layer: DecoderLayer,
        x_TE: Tensor,
        spans: list[SequenceSpan],
        slots_T: Tensor,
        kv_N2SKD: Tensor,
        rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        config, ops = self.config, self._ops
        num_tokens, num_qk = len(x_TE), config.num_heads + config.num_kv_heads
        qkv_TF = layer.qkv(self._norm(x_TE, layer.attention_norm_E))
        heads_THD = qkv_TF.view(num_tokens, num_qk + config.num_kv_heads, config.head_dim)
        qk_THD, v_TKD = heads_THD[:, :num_qk], heads_THD[:, num_qk:]
        if layer.q_norm_D is not None and layer.k_norm_D is not None:
            q_THD = self._norm(qk_THD[:, : config.num_heads], layer.q_norm_D)
            k_TKD = self._norm(qk_THD[:, config.num_heads :], layer.k_norm_D)
            qk_THD = torch.cat((q_THD, k_TKD), dim=1)
        qk_THD = ops.rotary(qk_THD, *rotation)
        q_THD, k_TKD = qk_THD[:, : config.num_heads], qk_THD[:, config.num_heads :]
        k_NSKD, v_NSKD = kv_N2SKD[:, 0], kv_N2SKD[:, 1]
        ops.write_kv(k_TKD, v_TKD, k_NSKD, v_NSKD, slots_T)
        out_THD = ops.paged_attention(
            q_THD, k_NSKD, v_NSKD, spans, config.head_dim**-0.5, config.sliding_window
        )
        return layer.o(out_THD.view(num_tokens, -1))

    def _mlp(self, layer: DecoderLayer, x_TE: Tensor) -> Tensor:
        gate_TF, up_TF = layer.gate_up(self._norm(x_TE, layer.mlp_norm_E)).chunk(2, dim=-1)
        return layer.down(self._ops.silu_mul(gate_TF, up_TF))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._ops.rms_norm(x, weight, self.config.rms_norm_eps)

    def _load_lm_head(self, weights: Weights, linears: LinearFactory) -> Linear:
        config = self.config
        if config.tie_word_embeddings:
            # Some tied checkpoints carry the copy all the same.
            weights.pass_over("lm_head.weight")
            return linears.wrap(self._embedding_VE)
        return linears.make(["lm_head"], config.hidden_size, [config.vocab_size], bias=False)


def _load_layer(
    config: ModelConfig, weights: Weights, linears: LinearFactory, prefix: str
) -> DecoderLayer:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return DecoderLayer(
        attention_norm_E=weights.take(f"{prefix}.input_layernorm.weight", hidden),
        qkv=linears.make(
            [f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"],
            hidden,
            [q_size, kv_size, kv_size],
            bias=config.qkv_bias,
        ),
        q_norm_D=_head_norm(config, weights, f"{attention}.q_norm.weight"),
        k_norm_D=_head_norm(config, weights, f"{attention}.k_norm.weight"),
        o=linears.make([f"{attention}.o_proj"], q_size, [hidden], bias=config.o_bias),
        mlp_norm_E=weights.take(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=linears.make(
            [f"{mlp}.gate_proj", f"{mlp}.up_proj"], hidden, [inner, inner], bias=config.mlp_bias
        ),
        down=linears.make([f"{mlp}.down_proj"], inner, [hidden], bias=config.mlp_bias),
    )


def _head_norm(config: ModelConfig, weights: Weights, name: str) -> Tensor | None:
    return weights.take(name, config.head_dim) if config.qk_norm else None


def rotary_frequencies(config: ModelConfig, weights: Weights) -> Tensor:
    factors = None
    if weights.has(ROPE_FACTORS):
        factors = weights.take(ROPE_FACTORS, config.head_dim // 2).cpu()
    return inverse_frequencies(config, factors)
