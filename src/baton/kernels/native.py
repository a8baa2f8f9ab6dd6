"""The C++ kernels as Python objects: which instruction set, how many threads, whose memory.

Elsewhere: the kernels (csrc/), their Python signatures (_native.pyi), the forms of weights
(packing.py).
"""

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.core.errors import ConfigError
from baton.kernels import _native
from baton.kernels.packing import PackedWeight

ISA_VARIABLE: Final = "BATON_CPU_ISA"
"""Environment variable that names the instruction set to use instead of the best one."""

LANES: Final = 16
"""Head sizes, and the widths of dense weights, are multiples of this."""


def open_kernels(num_threads: int, cores: Sequence[int] = ()) -> _native.Kernels:
    """The kernels of the best instruction set that this CPU has, or of the one that BATON_CPU_ISA
    names, on `num_threads` threads (the caller's is one of them). `cores`: one for each of the
    other threads to stay on. Raises ConfigError for a name that is not among them."""
    wanted = os.environ.get(ISA_VARIABLE) or None
    if wanted is not None and wanted not in _native.available_isas():
        known = ", ".join(_native.available_isas())
        raise ConfigError(f"{ISA_VARIABLE}={wanted} does not run on this CPU; it has {known}")
    return _native.Kernels(num_threads, wanted, list(cores))


def native_weight(packed: PackedWeight) -> _native.Weight:
    """The same bytes for the kernels, not copied."""
    return _native.Weight(
        int(packed.form),
        packed.num_out,
        packed.num_in,
        packed.group,
        packed.zero_point,
        packed.has_half_scales,
        packed.has_min,
        packed.panel_bytes,
        packed.data,
    )


def native_linear(
    *parts: tuple[_native.Weight, npt.NDArray[np.float32] | None],
) -> _native.Linear:
    """Weights (with biases) over the same inputs, their outputs side by side."""
    return _native.Linear(list(parts))
