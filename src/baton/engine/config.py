"""Options of the engine; the worker's command line is derived from these fields."""

import math
from dataclasses import dataclass, field

from baton.core.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and limits of one engine. None means: worked out from the model and the machine."""

    page_size: int = field(default=16, metadata={"help": "tokens in one KV block (a power of two)"})
    max_total_tokens: int | None = field(
        default=None,
        metadata={"help": "tokens that the KV pool holds (default: from --mem-fraction-static)"},
    )
    mem_fraction_static: float = field(
        default=0.1,
        metadata={"help": "share of the machine's memory for the KV pool of this worker"},
    )
    max_running_requests: int = field(
        default=64, metadata={"help": "sequences that run at the same time; others wait"}
    )
    chunked_prefill_size: int = field(
        default=512, metadata={"help": "most tokens computed in one step"}
    )
    step_target_ms: float | None = field(
        default=None,
        metadata={
            "help": "read prompts in pieces beside running streams, so that a step takes about "
            "this long (default: whatever --chunked-prefill-size takes)"
        },
    )
    smooth_step_target_ms: float | None = field(
        default=None,
        metadata={
            "help": "where it is shorter: the same while the only prompt to be read has more "
            "tokens than --chunked-prefill-size (default: --step-target-ms)"
        },
    )
    prompt_slack_ms: float = field(
        default=0.0,
        metadata={
            "help": "read short prompts first: each token of a prompt lets newer, shorter ones "
            "pass it for this long (default: 0, first come, first served)"
        },
    )
    context_length: int | None = field(
        default=None, metadata={"help": "longest sequence in tokens (default: the model's own)"}
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata={
            "help": "number format of the KV cache (auto: bfloat16; float32: torch kernels only)",
            "choices": ("auto", "bfloat16", "int8", "float32"),
        },
    )
    quantization: str = field(
        default="none",
        metadata={
            "help": "quantize floating weights while loading (w8a8_int8: per output channel)",
            "choices": ("none", "w8a8_int8"),
        },
    )
    kernel_backend: str = field(
        default="auto",
        metadata={
            "help": "what computes the model (auto: the C++ kernels where they can)",
            "choices": ("auto", "native", "torch"),
        },
    )
    disable_radix_cache: bool = field(
        default=False, metadata={"help": "do not reuse the KV of equal prompt prefixes"}
    )
    num_threads: int | None = field(
        default=None,
        metadata={"help": "threads of the CPU kernels (default: the cores it may use)"},
    )

    def __post_init__(self) -> None:
        for name in ("max_running_requests", "chunked_prefill_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_total_tokens", "context_length", "num_threads"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"--page-size {self.page_size} is not a power of two; try 16")
        if self.max_total_tokens is not None and self.max_total_tokens < self.page_size:
            raise ConfigError(
                f"--max-total-tokens {self.max_total_tokens} is less than one block of "
                f"--page-size {self.page_size}; a useful pool holds some thousand tokens"
            )
        if self.step_target_ms is not None and not self.step_target_ms > 0.0:
            raise ConfigError(
                f"--step-target-ms {self.step_target_ms:g} is not above 0; 80 keeps streams smooth"
            )
        if self.smooth_step_target_ms is not None:
            if self.step_target_ms is None:
                raise ConfigError(
                    f"--smooth-step-target-ms {self.smooth_step_target_ms:g} says how much shorter "
                    "some steps are; give --step-target-ms too"
                )
            if not self.smooth_step_target_ms > 0.0:
                raise ConfigError(
                    f"--smooth-step-target-ms {self.smooth_step_target_ms:g} is not above 0; 20 "
                    "keeps streams even"
                )
        if not 0.0 <= self.prompt_slack_ms < math.inf:
            raise ConfigError(
                f"--prompt-slack-ms {self.prompt_slack_ms:g} is not a time of 0 or more; 2 lets a "
                "prompt of 500 tokens wait for a second"
            )
        if not 0.0 < self.mem_fraction_static < 1.0:
            raise ConfigError(
                f"--mem-fraction-static {self.mem_fraction_static} is not between 0 and 1; try 0.1"
            )


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"--{name.replace('_', '-')} {value} is below {low}")
