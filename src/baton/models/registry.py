"""From a model's files to a model that runs.

Elsewhere: finding the files (checkpoint/source.py), which architectures (config_hf.py,
config_gguf.py).
"""

from typing import Protocol

import torch

from baton.checkpoint import GgufFile, HfFolder, open_checkpoint
from baton.core.model_card import ModelCard
from baton.kernels.interface import ForwardBatch, Ops
from baton.kernels.torch_ops import TorchOps
from baton.kvcache.layout import KvLayout
from baton.models.config import ModelConfig
from baton.models.config_gguf import config_from_gguf
from baton.models.config_hf import config_from_hf
from baton.models.gguf_source import GgufSource
from baton.models.linear import DenseLinearFactory
from baton.models.llama import LlamaModel
from baton.models.safetensors_source import SafetensorsSource
from baton.models.weights import TensorSource, Weights


class Model(Protocol):
    """What an engine needs of a model."""

    config: ModelConfig

    def forward(self, batch: ForwardBatch, kv_pool: torch.Tensor) -> torch.Tensor:
        """Logits, len(batch.logit_rows)×V in float32; writes the batch's KV to the pool."""
        ...

    def kv_layout(self, model_id: str, dtype: str, block_size: int) -> KvLayout: ...


def load_model(card: ModelCard, *, device: str = "cpu", ops: Ops | None = None) -> Model:
    """Read the weights into float32 on `device`.

    Raises UnsupportedModel (naming what is not supported) or CheckpointError (naming the tensor).
    """
    checkpoint = open_checkpoint(card.path)
    config = read_config(checkpoint)
    ops = TorchOps() if ops is None else ops
    weights = Weights(_source(checkpoint, config), device)
    with torch.inference_mode():
        model = LlamaModel(config, weights, DenseLinearFactory(ops, weights), ops)
    weights.check_all_taken()
    return model


def read_config(checkpoint: GgufFile | HfFolder) -> ModelConfig:
    """The model's configuration, or the reason why it cannot run (see load_model)."""
    if isinstance(checkpoint, GgufFile):
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        return config_from_gguf(checkpoint.metadata, shapes, str(checkpoint.path))
    return config_from_hf(checkpoint.config, f"{checkpoint.path}/config.json")


def _source(checkpoint: GgufFile | HfFolder, config: ModelConfig) -> TensorSource:
    if isinstance(checkpoint, GgufFile):
        return GgufSource(checkpoint, config)
    return SafetensorsSource(checkpoint)
