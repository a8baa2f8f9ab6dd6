"""The number of working threads changes between jobs, and shows in no result."""

import random

import numpy as np
import pytest

from baton.kernels import _native
from baton.testing.native_kernels import assert_same_bits


def _norm(kernels: _native.Kernels, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = np.empty_like(rows)
    kernels.rms_norm(rows, weight, 1e-5, y)
    return y


def test_results_do_not_depend_on_a_limit_that_keeps_changing() -> None:
    draw, generator = random.Random(5), np.random.default_rng(5)
    rows = generator.normal(size=(257, 64)).astype(np.float32)
    weight = generator.normal(size=64).astype(np.float32)
    expected = _norm(_native.Kernels(1), rows, weight)
    kernels = _native.Kernels(3)
    for _ in range(2_000):
        kernels.limit_threads(draw.randint(1, 3))
        assert_same_bits(_norm(kernels, rows, weight), expected, "rows")


def test_a_limited_thread_comes_back() -> None:
    """More jobs without it than its job numbers can count."""
    generator = np.random.default_rng(6)
    rows = generator.normal(size=(2, 16)).astype(np.float32)
    weight = generator.normal(size=16).astype(np.float32)
    kernels = _native.Kernels(3)
    expected = _norm(kernels, rows, weight)
    kernels.limit_threads(2)
    for _ in range(2**16 + 1):
        _norm(kernels, rows, weight)
    kernels.limit_threads(3)
    for _ in range(10):
        assert_same_bits(_norm(kernels, rows, weight), expected, "rows")


@pytest.mark.parametrize("num_working", [0, -1, 3])
def test_a_limit_beyond_the_threads_is_refused(num_working: int) -> None:
    with pytest.raises(ValueError, match=f"num_working is {num_working}, not from 1 to 2"):
        _native.Kernels(2).limit_threads(num_working)
