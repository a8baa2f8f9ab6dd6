from pathlib import Path

import numpy as np
import pytest

from baton.checkpoint import GgufFile
from baton.core.errors import CheckpointError
from baton.models.dequantize import gguf_to_float32
from baton.testing.tiny_gguf import TensorTypeName, write_tiny_gguf


@pytest.mark.parametrize("tensor_type", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_every_value_has_the_bits_of_the_plain_way(
    tmp_path: Path, tensor_type: TensorTypeName
) -> None:
    file = GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=tensor_type))
    for name in file.tensors:
        values = gguf_to_float32(file, name).numpy()
        assert values.dtype == np.float32
        assert np.array_equal(values, file.dequantize(name))


def test_no_such_tensor(tmp_path: Path) -> None:
    file = GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(CheckpointError, match="nothing"):
        gguf_to_float32(file, "nothing")
