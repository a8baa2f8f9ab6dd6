"""Matrix products: arithmetic speed at many rows against FBGEMM, memory speed at one row.

Both sides take float32 rows and give float32 rows, so rounding the activations is in the time.
Elsewhere: reading memory as fast as this machine can (bandwidth.py).
"""

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from baton.bench.bandwidth import READ_WAYS, read_bandwidth_cases
from baton.bench.report import Findings
from baton.bench.shapes import INTERMEDIATE_SIZE, LINEAR_SHAPES
from baton.bench.timing import Sample, interleave, rate
from baton.bench.weights import FORMS, draw_packed, repeat_rows
from baton.core.clock import Clock
from baton.kernels import _native
from baton.kernels.native import native_linear, native_weight, open_kernels

NUM_ROWS: Final = 512
_GIGA: Final = 1e9
_FBGEMM: Final = "fbgemm_int8"
_INT8_FLOOR: Final = 0.85
_U4_FLOOR: Final = 0.75
_BANDWIDTH_FLOOR: Final = 0.85

_ONE_ROW_FORMS: Final = ("u4_group32", "u8_group32", "int8_per_channel", "bfloat16")
_ONE_ROW_SEED_FEATURES: Final = 4096
_BANDWIDTH_RATIOS: Final = {
    "linear_1row_bandwidth": "u4_group32",  # the default model's
    "linear_1row_bandwidth_int8": "int8_per_channel",
}
_MIN_STREAM_BYTES: Final = 128 << 20
_CACHES_OF_STREAM: Final = 3
"""How many times the last-level cache the weights of a one-row product are: twice would do against
a cache that keeps the most recent, but some keep part of a longer stream."""


def measure_many_rows(findings: Findings, rounds: int, clock: Clock) -> None:
    """GOP/s of one thread over the model's shapes, all forms, NUM_ROWS rows."""
    torch.set_num_threads(1)
    kernels = open_kernels(1)
    cases = {
        f"linear_{form}_{NUM_ROWS}": rate(_ours(kernels, form), _giga_operations(), clock)
        for form in FORMS
    }
    theirs = f"linear_{_FBGEMM}_{NUM_ROWS}"
    if "fbgemm" in torch.backends.quantized.supported_engines:
        cases[theirs] = rate(_fbgemm(), _giga_operations(), clock)
    else:
        findings.skipped[theirs] = "this build of torch has no FBGEMM"
    with torch.inference_mode():
        for name, samples in interleave(cases, rounds).items():
            findings.add(name, samples, "GOP/s per core")
    reference = "FBGEMM dynamic int8 linear (torch), same shapes, 1 thread"
    for form, floor in (("int8_per_channel", _INT8_FLOOR), ("u4_group32", _U4_FLOOR)):
        name = f"linear_{form}_{NUM_ROWS}"
        findings.compare(name, name, theirs, floor, reference)


def measure_one_row(
    findings: Findings, rounds: int, num_threads: int, cache_bytes: int, clock: Clock
) -> None:
    """Bytes of packed weight per second of a product with a single row, beside what reading alone
    reaches over an array of the same size."""
    torch.set_num_threads(num_threads)
    num_bytes = max(_MIN_STREAM_BYTES, _CACHES_OF_STREAM * cache_bytes)
    kernels = open_kernels(num_threads)
    cases = {
        f"linear_1row_{form}": _one_row(kernels, form, num_bytes, clock) for form in _ONE_ROW_FORMS
    }
    cases |= read_bandwidth_cases(num_bytes, num_threads, clock)
    for name, samples in interleave(cases, rounds).items():
        findings.add(name, samples, "GB/s")
    for name, form in _BANDWIDTH_RATIOS.items():
        ours = f"linear_1row_{form}"
        way = findings.strictest(ours, READ_WAYS)
        reference = f"read bandwidth of {num_threads} threads, the best way: {READ_WAYS[way]}"
        findings.compare(name, ours, way, _BANDWIDTH_FLOOR, reference)


def _giga_operations() -> float:
    """A multiplication and an addition for each weight and row."""
    return sum(2 * NUM_ROWS * out * into for out, into in LINEAR_SHAPES.values()) / _GIGA


def _inputs() -> dict[int, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Activations by their width."""
    generator = np.random.default_rng(0)
    widths = sorted({num_in for _, num_in in LINEAR_SHAPES.values()})
    return {
        width: generator.standard_normal((NUM_ROWS, width), dtype=np.float32) for width in widths
    }


def _ours(kernels: _native.Kernels, form: str) -> Callable[[], None]:
    inputs = _inputs()
    products = []
    for number, (num_out, num_in) in enumerate(LINEAR_SHAPES.values()):
        linear = native_linear((native_weight(draw_packed(form, num_out, num_in, number)), None))
        products.append((linear, inputs[num_in], np.empty((NUM_ROWS, num_out), dtype=np.float32)))

    def run() -> None:
        for linear, x, y in products:
            kernels.linear(linear, x, y)

    return run


def _fbgemm() -> Callable[[], None]:
    """What `torch.ao.quantization.quantize_dynamic` makes of `nn.Linear`, called directly."""
    torch.backends.quantized.engine = "fbgemm"
    inputs = {width: torch.from_numpy(x) for width, x in _inputs().items()}
    generator = torch.Generator().manual_seed(0)
    products = []
    for num_out, num_in in LINEAR_SHAPES.values():
        weight = torch.randn(num_out, num_in, generator=generator)
        scale = float(weight.abs().max()) / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # deprecated, without a replacement
            quantized = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
        products.append((torch.ops.quantized.linear_prepack(quantized, None), inputs[num_in]))

    def run() -> None:
        for packed, x in products:
            torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)

    return run


def _one_row(kernels: _native.Kernels, form: str, num_bytes: int, clock: Clock) -> Sample:
    seed = draw_packed(form, _ONE_ROW_SEED_FEATURES, INTERMEDIATE_SIZE, seed=0)
    packed = repeat_rows(seed, -(-num_bytes // len(seed.data)))
    linear = native_linear((native_weight(packed), None))
    x = np.random.default_rng(0).standard_normal((1, packed.num_in), dtype=np.float32)
    y = np.empty((1, packed.num_out), dtype=np.float32)
    return rate(lambda: kernels.linear(linear, x, y), len(packed.data) / _GIGA, clock)
