"""The Llama family on the C++ kernels: packs the weights, then makes one call per step.

Weights keep the form that the checkpoint has them in (quantized ones exactly, bfloat16, float32);
with `to_int8`, floating ones are quantized per output channel. A tied embedding is held once.

Invariant: as in llama.py, of which this is the fast twin: a row of logits depends on the sequence's
tokens only.
Elsewhere: the decoder's loop (csrc/decoder.cpp), the reference (llama.py), packing
(kernels/packing.py).

Shapes: T tokens, E hidden size, D head dim, V vocabulary.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from baton.core.errors import ConfigError
from baton.kernels import _native
from baton.kernels.interface import ForwardBatch, Logits
from baton.kernels.native import LANES, LargePages, native_linear, native_weight
from baton.kernels.packing import PackedWeight, can_interleave, interleave_gate_up, pack
from baton.kvcache.layout import KvLayout
from baton.models.config import ModelConfig
from baton.models.llama import rotary_frequencies
from baton.models.rope import RotaryTable
from baton.models.weights import Weights

BLOCK_MULTIPLE: Final = 16
MAX_HEAD_DIM: Final = 256
KV_DTYPES: Final = ("bfloat16", "int8")

Floats = npt.NDArray[np.float32]


def why_not_native(config: ModelConfig) -> str | None:
    """What keeps the C++ kernels from running this model; None when nothing does."""
    for name in ("head_dim", "hidden_size", "intermediate_size"):
        if getattr(config, name) % LANES:
            return f"{name} is {getattr(config, name)}, not a multiple of {LANES}"
    if config.head_dim > MAX_HEAD_DIM:
        return f"head_dim is {config.head_dim}, above {MAX_HEAD_DIM}"
    return None


class NativeLlamaModel:
    """A decoder of the family, its weights loaded. `forward` is not reentrant."""

    def __init__(
        self, config: ModelConfig, weights: Weights, kernels: _native.Kernels, *, to_int8: bool
    ):
        self.config = config
        self.kernels: _native.Kernels | None = kernels
        loader = _Loader(weights, to_int8)
        hidden, head_dim = config.hidden_size, config.head_dim
        table = loader.native(loader.pack("model.embed_tokens.weight", config.vocab_size, hidden))
        if config.tie_word_embeddings:
            # Some tied checkpoints carry the copy all the same.
            weights.pass_over("lm_head.weight")
            lm_head = native_linear((table, None))
        else:
            lm_head = loader.linear(["lm_head"], hidden, [config.vocab_size], bias=False)
        self._decoder = _native.Decoder(
            kernels,
            config.num_heads,
            config.num_kv_heads,
            head_dim,
            hidden,
            config.intermediate_size,
            config.rms_norm_eps,
            config.sliding_window or 0,
            table,
            loader.floats("model.norm.weight", hidden),
            lm_head,
        )
        for index in range(config.num_layers):
            _add_layer(self._decoder, config, loader, f"model.layers.{index}")
        self._rotary = RotaryTable(rotary_frequencies(config, weights))
        self._logits = np.empty((0, config.vocab_size), dtype=np.float32)

    def forward(self, batch: ForwardBatch, kv_pool: _native.Pool) -> Logits:
        """Logits of the wanted rows, len(batch.logit_rows)×V, valid until the next call."""
        cos_TD, sin_TD = self._rotary.rows(batch.positions_T)
        logits = self._rows_of_logits(len(batch.logit_rows))
        self._decoder.forward(
            kv_pool,
            batch.token_ids_T,
            batch.slots_T,
            cos_TD,
            sin_TD,
            [(span.start, span.num_tokens, span.context_len) for span in batch.spans],
            [span.block_ids for span in batch.spans],
            batch.logit_rows,
            logits,
        )
        return logits

    def kv_layout(self, model_id: str, dtype: str, block_size: int) -> KvLayout:
        """How this model's KV lies in a block. Raises ConfigError for what the kernels do not
        have."""
        check_kv(dtype, block_size)
        return KvLayout(
            model_id=model_id,
            dtype=dtype,
            block_size=block_size,
            num_layers=self.config.num_layers,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            form="lanes",
        )

    def kv_view(self, buffer: memoryview, layout: KvLayout, num_blocks: int) -> _native.Pool:
        memory = np.frombuffer(buffer, dtype=np.uint8, count=num_blocks * layout.block_bytes)
        return _native.Pool(
            memory,
            layout.num_layers,
            layout.block_size,
            layout.num_kv_heads,
            layout.head_dim,
            layout.dtype == "int8",
        )

    def stage_seconds(self) -> dict[str, float]:
        """Time spent in each stage of the forward pass since the start."""
        return self._decoder.stage_seconds()

    def _rows_of_logits(self, num_rows: int) -> Logits:
        # Kept: fresh memory for a batch's logits costs more than some layers do.
        if len(self._logits) < num_rows:
            self._logits = np.empty((num_rows, self.config.vocab_size), dtype=np.float32)
        return self._logits[:num_rows]


class _Loader:
    """Takes tensors and packs them."""

    def __init__(self, weights: Weights, to_int8: bool):
        self._weights = weights
        self._to_int8 = to_int8
        self._pages = LargePages()

    def floats(self, name: str, size: int) -> Floats:
        values: Floats = self._weights.take(name, size).numpy()
        return values

    def pack(self, name: str, num_out: int, num_in: int) -> PackedWeight:
        return pack(self._weights.take_matrix(name, num_out, num_in, to_int8=self._to_int8))

    def native(self, packed: PackedWeight) -> _native.Weight:
        return native_weight(self._pages.place(packed))

    def linear(
        self, names: list[str], num_in: int, num_out: list[int], *, bias: bool
    ) -> _native.Linear:
        """The layers `names` side by side."""
        return native_linear(
            *(
                (
                    self.native(self.pack(f"{name}.weight", size, num_in)),
                    self.floats(f"{name}.bias", size) if bias else None,
                )
                for name, size in zip(names, num_out, strict=True)
            )
        )

    def gate_up(self, prefix: str, num_in: int, num_out: int, *, bias: bool) -> _native.Linear:
        """Both halves of the gated MLP, their panels in turn where they have the same form."""
        names = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
        gate, up = (self.pack(f"{name}.weight", num_out, num_in) for name in names)
        biases = [self.floats(f"{name}.bias", num_out) if bias else None for name in names]
        if not can_interleave(gate, up):
            weights = [self.native(gate), self.native(up)]
            return native_linear(*zip(weights, biases, strict=True))
        both = None
        if biases[0] is not None and biases[1] is not None:
            both = np.stack([each.reshape(-1, LANES) for each in biases if each is not None], 1)
            both = np.ascontiguousarray(both).reshape(-1)
        return native_linear((self.native(interleave_gate_up(gate, up)), both))


def check_kv(dtype: str, block_size: int) -> None:
    """Raises ConfigError for a KV cache that the kernels do not have."""
    if dtype not in KV_DTYPES:
        raise ConfigError(
            f"--kv-cache-dtype {dtype} needs --kernel-backend torch; the C++ kernels have "
            f"{' and '.join(KV_DTYPES)}"
        )
    if block_size % BLOCK_MULTIPLE:
        raise ConfigError(
            f"--page-size {block_size} needs --kernel-backend torch; the C++ kernels take "
            f"multiples of {BLOCK_MULTIPLE}"
        )


def _add_layer(decoder: _native.Decoder, config: ModelConfig, loader: _Loader, prefix: str) -> None:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    has_head_norms = config.qk_norm
    decoder.add_layer(
        loader.floats(f"{prefix}.input_layernorm.weight", hidden),
        loader.linear(
            [f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"],
            hidden,
            [q_size, kv_size, kv_size],
            bias=config.qkv_bias,
        ),
        loader.floats(f"{attention}.q_norm.weight", head_dim) if has_head_norms else None,
        loader.floats(f"{attention}.k_norm.weight", head_dim) if has_head_norms else None,
        loader.linear([f"{attention}.o_proj"], q_size, [hidden], bias=config.o_bias),
        loader.floats(f"{prefix}.post_attention_layernorm.weight", hidden),
        loader.gate_up(mlp, hidden, inner, bias=config.mlp_bias),
        loader.linear([f"{mlp}.down_proj"], inner, [hidden], bias=config.mlp_bias),
    )
