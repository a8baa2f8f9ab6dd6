"""The C++ kernels as Python objects: which instruction set, how many threads, whose memory.

Elsewhere: the kernels (csrc/), their Python signatures (_native.pyi), the forms of weights
(packing.py).
"""

import contextlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.core.errors import ConfigError
from baton.kernels import _native
from baton.kernels.packing import ALIGNMENT_BYTES, PackedWeight

ISA_VARIABLE: Final = "BATON_CPU_ISA"
"""Environment variable that names the instruction set to use instead of the best one."""

LANES: Final = 16
"""Head sizes, and the widths of dense weights, are multiples of this."""

_CHUNK_BYTES: Final = 32 << 20


def open_kernels(num_threads: int, cores: Sequence[int] = ()) -> _native.Kernels:
    """The kernels of the best instruction set that this CPU has, or of the one that BATON_CPU_ISA
    names, on `num_threads` threads (the caller's is one of them). `cores`: one for each of the
    other threads to stay on. Raises ConfigError for a name that is not among them."""
    wanted = os.environ.get(ISA_VARIABLE) or None
    if wanted is not None and wanted not in _native.available_isas():
        known = ", ".join(_native.available_isas())
        raise ConfigError(f"{ISA_VARIABLE}={wanted} does not run on this CPU; it has {known}")
    return _native.Kernels(num_threads, wanted, list(cores))


class LargePages:
    """Memory for packed weights in pages of 2 MiB, where the system grants them.

    A step reads every weight once. With small pages the processor looks up an address every few
    hundred nanoseconds, and its prefetcher stops there. Chunks live as long as a weight in them.
    """

    def __init__(self) -> None:
        self._chunk = np.empty(0, dtype=np.uint8)

    def place(self, packed: PackedWeight) -> PackedWeight:
        """A copy that lies here."""
        size = -(-packed.data.size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if size > self._chunk.size:
            self._chunk = _map_pages(max(size, _CHUNK_BYTES))
        data, self._chunk = self._chunk[: packed.data.size], self._chunk[size:]
        data[:] = packed.data
        return replace(packed, data=data)


def _map_pages(num_bytes: int) -> npt.NDArray[np.uint8]:
    whole = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


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
