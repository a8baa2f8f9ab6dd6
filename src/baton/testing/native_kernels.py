"""Every way to run the C++ kernels on this machine, and the comparison that they must pass.

Elsewhere: what results should be (kernels/reference.py).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from baton.kernels import _native

NUM_THREADS: Final = (1, 2, 3)


def every_kernels() -> list[_native.Kernels]:
    """Each instruction set that this CPU has, best first, with each of NUM_THREADS."""
    return [
        _native.Kernels(num_threads, isa)
        for isa in _native.available_isas()
        for num_threads in NUM_THREADS
    ]


def name_of(kernels: _native.Kernels) -> str:
    return f"{kernels.isa} with {kernels.num_threads} threads"


def assert_same_bits(
    actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], what: str
) -> None:
    """Raises AssertionError that names the first element that differs. Zeros of both signs differ;
    all NaNs are alike."""
    assert actual.shape == expected.shape, what
    is_other = actual.view(np.uint32) != expected.view(np.uint32)
    is_other &= ~(np.isnan(actual) & np.isnan(expected))
    if is_other.any():
        at = tuple(int(index) for index in np.argwhere(is_other)[0])
        raise AssertionError(
            f"{what}: {int(is_other.sum())} of {is_other.size} differ, first at {at}: "
            f"{actual[at]!r}, not {expected[at]!r}"
        )
