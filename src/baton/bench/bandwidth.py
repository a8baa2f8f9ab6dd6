"""How fast this machine reads memory: the best of several library routines that only read.

No single one is the fastest everywhere: some are bound by arithmetic, some spread badly.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from baton.bench.timing import Sample, rate
from baton.core.clock import Clock

_GIGA: Final = 1e9

READ_WAYS: Final = {
    "read_torch_sum": "torch.sum of float32",
    "read_torch_sum64": "torch.sum of float64",
    "read_numpy_dot": "numpy.dot of float32 with itself, an array for each thread",
    "read_numpy_max": "numpy.max of int64, an array for each thread",
}
"""Figure names and what they stand for."""


def read_bandwidth_cases(num_bytes: int, num_threads: int, clock: Clock) -> dict[str, Sample]:
    """GB/s of each way to read `num_bytes` with `num_threads`; torch's are to be set already."""
    # numpy's memory for all: it asks for huge pages, as the weights have, and torch's does not.
    floats = np.ones(num_bytes // 4, dtype=np.float32)
    torch_floats = torch.from_numpy(floats)
    torch_doubles = torch.from_numpy(floats.view(np.float64))
    shares = np.array_split(floats, num_threads)
    integers = np.array_split(floats.view(np.int64), num_threads)
    pool = ThreadPoolExecutor(num_threads)
    giga_bytes = num_bytes / _GIGA
    return {
        "read_torch_sum": rate(torch_floats.sum, giga_bytes, clock),
        "read_torch_sum64": rate(torch_doubles.sum, giga_bytes, clock),
        "read_numpy_dot": rate(lambda: list(pool.map(np.dot, shares, shares)), giga_bytes, clock),
        "read_numpy_max": rate(lambda: list(pool.map(np.max, integers)), giga_bytes, clock),
    }
