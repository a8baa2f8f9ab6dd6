import pytest
import torch

from baton.kvcache.layout import KvLayout
from baton.kvcache.storage import SharedSegment
from baton.models.kv_view import kv_view


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_view_is_the_layout(dtype: str) -> None:
    """What is written through the view stands where the layout says that it stands."""
    layout = KvLayout("model", dtype, 4, 3, 2, 8)
    segment = SharedSegment(5 * layout.block_bytes)
    view = kv_view(segment.view(), layout, 5)
    assert view.shape == (5, 3, 2, 4, 2, 8)

    view[2, 1, 0] = 1.0
    start, end = (2 * layout.block_bytes + edge for edge in layout.layer_range(1))
    written = bytes(segment.view()[start:end])
    half = layout.layer_bytes // 2
    assert (
        written[:half] == torch.ones(4, 2, 8, dtype=view.dtype).view(torch.uint8).numpy().tobytes()
    )
    assert not any(written[half:])
    assert not any(segment.view()[:start])
    assert not any(segment.view()[end:])
    del view
    segment.close()


def test_a_buffer_that_is_too_small_is_a_bug() -> None:
    layout = KvLayout("model", "float32", 4, 3, 2, 8)
    with pytest.raises(AssertionError, match="no room"):
        kv_view(memoryview(bytearray(layout.block_bytes)), layout, 2)
