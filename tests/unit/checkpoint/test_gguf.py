"""Reading GGUF: values agree with the gguf package, and damage is always named."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from baton.checkpoint.gguf import SUPPORTED_TYPES, GgufFile
from baton.core.errors import CheckpointError, UnsupportedModel

QUANTIZABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def header(version: int = 3, num_tensors: int = 0, num_entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor_entry(name: str, extents: list[int], type_number: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return text(name) + shape + struct.pack("<IQ", type_number, offset)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "made.gguf"
    path.write_bytes(content)
    return path


def test_metadata_values_are_plain_python(write_gguf):
    metadata = {
        "a.bool": True,
        "a.int": 7,
        "a.float": 0.5,
        "a.text": "héllo 😀",
        "a.texts": ["x", "", "日本"],
        "a.numbers": [1, 2, 3],
        "a.reals": [0.25, -1.5],
        "a.flags": [True, False],
    }
    found = GgufFile(write_gguf(metadata)).metadata
    assert {key: found[key] for key in metadata} == metadata
    assert found["general.architecture"] == "llama"


@pytest.mark.parametrize("type_name", QUANTIZABLE)
def test_dequantized_values_agree_with_the_gguf_package(write_gguf, type_name):
    values = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    path = write_gguf({}, {"w": (values, type_name)})
    file = GgufFile(path)
    reference = gguf.GGUFReader(path).tensors[0]
    tensor = file.tensors["w"]
    assert (tensor.type_name, tensor.shape) == (type_name, (6, 64))
    assert not tensor.data.flags.writeable
    mine = file.dequantize("w")
    assert mine.dtype == np.float32
    assert mine.flags.writeable
    np.testing.assert_array_equal(
        mine, gguf.quants.dequantize(reference.data, reference.tensor_type)
    )


@pytest.mark.parametrize("type_name", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_agree_with_the_gguf_package(write_gguf, tmp_path, type_name):
    """The package cannot write these, so their bytes are random (with small fp16 scales)."""
    number, kind = next((n, t) for n, t in SUPPORTED_TYPES.items() if t.name == type_name)
    blocks = np.random.default_rng(1).integers(0, 60, (4, 2 * kind.block_bytes), dtype=np.uint8)
    content = header(3, 1) + tensor_entry("w", [512, 4], number, 0)
    content += b"\0" * (-len(content) % 32) + blocks.tobytes()
    file = GgufFile(written(tmp_path, content))
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(file.dequantize("w"), expected)


def test_block_sizes_are_those_of_the_format():
    for number, kind in SUPPORTED_TYPES.items():
        quant = gguf.GGMLQuantizationType(number)
        assert (quant.name, gguf.GGML_QUANT_SIZES[quant]) == (
            kind.name,
            (kind.block_size, kind.block_bytes),
        )


def test_shapes_are_rows_first(write_gguf):
    file = GgufFile(write_gguf({}, {"w": np.arange(24).reshape(2, 3, 4)}))
    assert file.tensors["w"].shape == (2, 3, 4)
    np.testing.assert_array_equal(file.dequantize("w"), np.arange(24).reshape(2, 3, 4))


def test_unknown_tensor_name_says_what_the_file_has(write_gguf):
    file = GgufFile(write_gguf({}, {"w": np.ones((1, 4))}))
    with pytest.raises(CheckpointError, match=r"no tensor 'v'; the file has 1"):
        file.dequantize("v")


def test_version_2_is_read(tmp_path):
    assert GgufFile(written(tmp_path, header(version=2))).tensors == {}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", CheckpointError, "is empty"),
        (b"PK\x03\x04aaaaaaaaaaaaaaaa", CheckpointError, "not a GGUF file"),
        (header(version=1), UnsupportedModel, "version 1"),
        (header(version=4), UnsupportedModel, "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel, "big-endian"),
        (header(num_tensors=2**63), CheckpointError, "tensor count"),
        (header(num_entries=2**63), CheckpointError, "metadata count"),
        (header(num_entries=1) + struct.pack("<Q", 2**62) + b"x" * 20, CheckpointError, "key 0"),
        (
            header(num_entries=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60),
            CheckpointError,
            "k at byte",
        ),
        (
            header(num_entries=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**60),
            CheckpointError,
            "k at byte",
        ),
        (
            header(num_entries=1) + text("k") + struct.pack("<I", 77) + b"abcd",
            CheckpointError,
            "unknown value type 77",
        ),
        (
            header(num_entries=1) + text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            CheckpointError,
            "deep",
        ),
        (
            header(num_entries=1) + struct.pack("<Q", 2) + b"\xff\xfe" + b"0" * 9,
            CheckpointError,
            "not UTF-8",
        ),
        (
            header(num_entries=2) + (text("k") + struct.pack("<II", 4, 1)) * 2,
            CheckpointError,
            "'k' is listed twice",
        ),
        (
            header(num_entries=1) + text("split.count") + struct.pack("<II", 4, 3),
            UnsupportedModel,
            "one of 3 parts",
        ),
        (
            header(num_entries=1) + text("general.alignment") + struct.pack("<II", 4, 24),
            CheckpointError,
            "not a power of two",
        ),
        (header(num_tensors=1) + tensor_entry("w", [4], 0, 2**62), CheckpointError, "'w' should"),
        (header(num_tensors=1) + tensor_entry("w", [2**60] * 4, 0, 0), CheckpointError, "'w'"),
        (header(num_tensors=1) + tensor_entry("w", [4, 0], 0, 0), CheckpointError, "shape"),
        (header(num_tensors=1) + tensor_entry("w", [33], 3, 0), CheckpointError, "Q4_1"),
        (header(num_tensors=1) + tensor_entry("w", [1] * 5, 0, 0), CheckpointError, "5 dimensions"),
        (header(num_tensors=1) + tensor_entry("w", [256], 10, 0), UnsupportedModel, "'w'.*Q2_K"),
        (header(num_tensors=1) + tensor_entry("w", [256], 999, 0), UnsupportedModel, "number 999"),
        (
            header(num_tensors=2) + tensor_entry("w", [1], 0, 0) * 2 + b"\0" * 64,
            CheckpointError,
            "'w' is listed twice",
        ),
    ],
)
def test_bad_files_are_named_and_refused(tmp_path, content, error, message):
    with pytest.raises(error, match=message):
        GgufFile(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot open .*gone\.gguf"):
        GgufFile(tmp_path / "gone.gguf")


def test_every_truncation_is_refused(write_gguf, tmp_path):
    metadata = {"t.tokens": ["a", "bc"], "t.ids": [1, 2], "t.flag": True}
    whole = write_gguf(metadata, {"w": (np.ones((2, 32)), "Q4_1"), "v": np.ones(3)}).read_bytes()
    end_of_data = len(whole) - (-(2 * 20 + 3 * 4) % 32)  # the writer pads after the last tensor
    for length in range(end_of_data - 32):
        with pytest.raises(CheckpointError):
            GgufFile(written(tmp_path, whole[:length]))


def test_random_damage_never_crashes(write_gguf, tmp_path):
    metadata = {"t.tokens": ["a", "bc"], "t.ids": [1, 2], "t.flag": True, "t.name": "x" * 20}
    whole = write_gguf(metadata, {"w": (np.ones((2, 32)), "Q4_1"), "v": np.ones(3)}).read_bytes()
    rng = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice(
                [0, 1, 0x7F, 0xFF, rng.randrange(256)]
            )
        try:
            file = GgufFile(written(tmp_path, bytes(damaged)))
        except (CheckpointError, UnsupportedModel):
            continue
        for name in file.tensors:
            with np.errstate(all="ignore"):  # damaged scales may be infinite
                file.dequantize(name)


def test_embedded_model_reads_as_the_gguf_package_reads_it(smollm2_gguf):
    file = GgufFile(smollm2_gguf)
    reference = gguf.GGUFReader(smollm2_gguf)
    for key in ("llama.block_count", "tokenizer.ggml.pre", "tokenizer.chat_template"):
        assert file.metadata[key] == reference.fields[key].contents()
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert file.data_offset == reference.data_offset
    for tensor in reference.tensors:
        mine = file.tensors[tensor.name]
        assert mine.type_name == tensor.tensor_type.name
        assert mine.shape == tuple(int(extent) for extent in reversed(tensor.shape))
        assert np.array_equal(mine.data.reshape(-1), tensor.data.view(np.uint8).reshape(-1))
