"""Weights for measuring are what their form says."""

import numpy as np
import pytest

from baton.bench.weights import FORMS, draw_packed, repeat_rows
from baton.kernels.packing import ALIGNMENT_BYTES, unpack


@pytest.mark.parametrize("form", FORMS)
def test_drawn_weights_are_finite_and_differ(form: str) -> None:
    values = unpack(draw_packed(form, 32, 64, seed=1))
    assert values.shape == (32, 64)
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 100


@pytest.mark.parametrize("form", ["u4_group32", "bfloat16"])
def test_repeated_rows_are_the_same_values_in_aligned_memory_of_their_own(form: str) -> None:
    packed = draw_packed(form, 32, 64, seed=1)
    repeated = repeat_rows(packed, 3)
    assert repeated.data.ctypes.data % ALIGNMENT_BYTES == 0
    assert len(repeated.data) == 3 * len(packed.data)
    assert np.array_equal(unpack(repeated), np.tile(unpack(packed), (3, 1)))
