"""Small GGUF files written to order, and the embedded model where it can be had."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baton.checkpoint import default_cache_dir, resolve_model
from baton.core.errors import CheckpointError

WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """write_gguf(metadata, {name: float32 array or (array, "Q4_1")}, arch=...) -> path"""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    def write(
        metadata: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
        arch: str = "llama",
        name: str = "tiny.gguf",
    ) -> Path:
        path = tmp_path / name
        writer = GGUFWriter(path, arch)
        for key, value in (metadata or {}).items():
            add = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
                list: writer.add_array,
            }[type(value)]
            add(key, value)
        for tensor_name, spec in (tensors or {}).items():
            values, type_name = spec if isinstance(spec, tuple) else (spec, "F32")
            quant = GGMLQuantizationType[type_name]
            stored = quants.quantize(np.asarray(values, np.float32), quant)
            writer.add_tensor(tensor_name, stored, raw_dtype=quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    try:
        return resolve_model(None, cache_dir=default_cache_dir(os.environ))
    except CheckpointError as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")
