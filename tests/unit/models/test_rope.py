import torch

from baton.models.rope import RotaryTable


def test_rows_do_not_depend_on_what_was_asked_before() -> None:
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    grown, fresh = RotaryTable(frequencies), RotaryTable(frequencies)
    for position in (0, 5, 4095, 4096):
        grown.rows(torch.tensor([position]))
    positions = torch.tensor([9000, 3, 4097])
    for ours, theirs in zip(grown.rows(positions), fresh.rows(positions), strict=True):
        assert torch.equal(ours, theirs)


def test_angles() -> None:
    cos, sin = RotaryTable(torch.tensor([1.0, 0.5])).rows(torch.tensor([2, 0]))
    angles = torch.tensor([[2.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(cos, angles.cos())
    assert torch.allclose(sin, angles.sin())


def test_no_positions() -> None:
    cos, _ = RotaryTable(torch.tensor([1.0])).rows(torch.tensor([], dtype=torch.int64))
    assert cos.shape == (0, 2)
