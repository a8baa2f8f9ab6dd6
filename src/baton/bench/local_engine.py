"""A unified engine in this process: what launch/engine_process.py builds, without its sockets.

Elsewhere: serving (launch/), workloads (bench_engine.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from baton.bench.machine import num_cores
from baton.checkpoint import read_model_card
from baton.core.clock import Clock, MonotonicClock
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.engine.runner import ModelRunner
from baton.kvcache.block_pool import BlockPool
from baton.kvcache.storage import SharedSegment
from baton.messages.engine import TokenOutput
from baton.models.native_llama import NativeLlamaModel
from baton.models.registry import KernelBackend, LoadOptions, Quantization, load_model

_PAGE_BYTES = 4096


class LocalEngine:
    """A loaded model, its KV pool of `config.max_total_tokens`, and engine cores over both.

    Raises what `load_model` raises.
    """

    def __init__(self, model_path: Path, config: EngineConfig, clock: Clock | None = None):
        assert config.max_total_tokens is not None, "the pool's size is part of a measurement"
        self.config = config
        self.card = read_model_card(model_path)
        self.num_threads = config.num_threads or num_cores()
        self._clock = clock or MonotonicClock()
        options = LoadOptions(
            backend=cast(KernelBackend, config.kernel_backend),
            quantization=cast(Quantization, config.quantization),
            num_threads=self.num_threads,
        )
        self.model = load_model(self.card, options)
        dtype = "bfloat16" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
        layout = self.model.kv_layout(self.card.model_id, dtype, config.page_size)
        self._num_blocks = config.max_total_tokens // config.page_size
        segment = SharedSegment(self._num_blocks * layout.block_bytes)
        # The first touch of a page is many times as slow as the next; a server does it once.
        np.frombuffer(segment.view(), dtype=np.uint8)[::_PAGE_BYTES] = 0
        pool = self.model.kv_view(segment.view(), layout, self._num_blocks)
        self._runner = ModelRunner(self.model, pool, layout.block_size)
        self._runner.warm_up(self._num_blocks, self.card.context_length)

    def core(self, chunked_prefill_size: int | None = None) -> EngineCore:
        """A new core on the whole pool; cores that are used in turn must be idle meanwhile."""
        config = self.config
        if chunked_prefill_size is not None:
            config = replace(config, chunked_prefill_size=chunked_prefill_size)
        blocks = BlockPool(self._num_blocks, enable_prefix_cache=not config.disable_radix_cache)
        return EngineCore(
            config,
            self._runner,
            blocks,
            context_length=self.card.context_length,
            vocab_size=self.card.vocab_size,
            clock=self._clock,
            op_seconds=self.model.stage_seconds,
        )

    def kernel_seconds(self) -> float | None:
        """Time spent in the C++ kernels so far; None for the torch reference."""
        if isinstance(self.model, NativeLlamaModel):
            return sum(self.model.stage_seconds().values())
        return None


def greedy_request(request_id: str, prompt: Sequence[int], max_new_tokens: int) -> EngineRequest:
    """A request that no end token stops."""
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0),
    )


def run_step(core: EngineCore) -> list[TokenOutput]:
    """One step and what came of it."""
    is_running = core.step()
    assert is_running, "nothing can run: the pool is too small for this workload"
    return core.take_outputs()
