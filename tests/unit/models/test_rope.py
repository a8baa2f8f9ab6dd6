import numpy as np
import torch

from baton.models.rope import RotaryTable


def test_rows_do_not_depend_on_what_was_asked_before() -> None:
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    grown, fresh = RotaryTable(frequencies), RotaryTable(frequencies)
    for position in (0, 5, 4095, 4096):
        grown.rows(np.array([position]))
    positions = np.array([9000, 3, 4097])
    for ours, theirs in zip(grown.rows(positions), fresh.rows(positions), strict=True):
        assert np.array_equal(ours, theirs)


def test_angles() -> None:
    cos, sin = RotaryTable(torch.tensor([1.0, 0.5])).rows(np.array([2, 0]))
    angles = np.array([[2.0, 1.0], [0.0, 0.0]])
    assert np.allclose(cos, np.cos(angles))
    assert np.allclose(sin, np.sin(angles))


def test_no_positions() -> None:
    cos, _ = RotaryTable(torch.tensor([1.0])).rows(np.array([], dtype=np.int64))
    assert cos.shape == (0, 1)
