"""From a model's files to a model that runs.

Elsewhere: finding the files (checkpoint/source.py), which architectures (config_hf.py,
config_gguf.py).
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from baton.checkpoint import GgufFile, HfFolder, open_checkpoint
from baton.core.errors import ConfigError
from baton.core.model_card import ModelCard
from baton.kernels import _native
from baton.kernels.interface import ForwardBatch, Logits
from baton.kernels.native import open_kernels
from baton.kernels.torch_ops import TorchOps
from baton.kvcache.layout import KvLayout
from baton.models.config import ModelConfig
from baton.models.config_gguf import config_from_gguf
from baton.models.config_hf import config_from_hf
from baton.models.gguf_source import GgufSource
from baton.models.linear import DenseLinearFactory
from baton.models.llama import LlamaModel
from baton.models.native_llama import NativeLlamaModel, why_not_native
from baton.models.safetensors_source import SafetensorsSource
from baton.models.weights import TensorSource, Weights
from baton.obs.logs import event_log

log = event_log("models")

KernelBackend = Literal["auto", "native", "torch"]
Quantization = Literal["none", "w8a8_int8"]


class Model(Protocol):
    """What an engine needs of a model. `kernels`: those that it runs on, None for torch."""

    config: ModelConfig
    kernels: _native.Kernels | None

    def forward(self, batch: ForwardBatch, kv_pool: Any) -> Logits:
        """Logits, len(batch.logit_rows)×V, valid until the next call; writes the batch's KV to
        the pool."""
        ...

    def kv_layout(self, model_id: str, dtype: str, block_size: int) -> KvLayout: ...

    def kv_view(self, buffer: memoryview, layout: KvLayout, num_blocks: int) -> Any:
        """The pool that `forward` takes, over the first `num_blocks` blocks of a writable buffer,
        which it keeps alive."""
        ...

    def stage_seconds(self) -> dict[str, float]:
        """Time spent in each stage of the forward pass since the start; empty where it is not
        measured."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """How to run a model. `backend`: the C++ kernels on the CPU (`auto`: where they can run it) or
    the torch reference. `cores`: processors for all threads but the caller's, empty for any."""

    backend: KernelBackend = "auto"
    quantization: Quantization = "none"
    num_threads: int = 1
    cores: tuple[int, ...] = ()
    device: str = "cpu"


def load_model(card: ModelCard, options: LoadOptions = LoadOptions()) -> Model:
    """Read the weights.

    Raises UnsupportedModel (naming what is not supported), CheckpointError (naming the tensor) or
    ConfigError (naming the option).
    """
    checkpoint = open_checkpoint(card.path)
    config = read_config(checkpoint)
    weights = Weights(_source(checkpoint, config), options.device)
    with torch.inference_mode():
        model = _build(config, weights, options)
    weights.check_all_taken()
    return model


def _build(config: ModelConfig, weights: Weights, options: LoadOptions) -> Model:
    is_native = options.backend != "torch" and options.device == "cpu"
    reason = why_not_native(config) if is_native else None
    if reason is not None:
        if options.backend == "native":
            raise ConfigError(f"--kernel-backend native cannot run this model: {reason}")
        log.info("the torch kernels run this model", reason=reason)
        is_native = False
    if is_native:
        kernels = open_kernels(options.num_threads, options.cores)
        log.info("CPU kernels", isa=kernels.isa, threads=kernels.num_threads)
        to_int8 = options.quantization == "w8a8_int8"
        return NativeLlamaModel(config, weights, kernels, to_int8=to_int8)
    if options.quantization != "none":
        raise ConfigError(
            f"--quantization {options.quantization} needs the C++ kernels, not --kernel-backend "
            "torch"
        )
    torch.set_num_threads(options.num_threads)
    ops = TorchOps()
    return LlamaModel(config, weights, DenseLinearFactory(ops, weights), ops)


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
