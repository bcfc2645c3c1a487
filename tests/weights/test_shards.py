"""Reading safetensors: every promise of the format is checked, and nothing is read before use."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sounding.weights import shards
from sounding.weights.shards import Shard, read_folder
from sounding.weights.tensors import DTYPE_NAMES, TORCH_DTYPES
from tests.weights.folders import (
    INDEX,
    SHARD,
    TINY,
    raw_file,
    tensor_bytes,
    tiny_tensors,
    write_index,
    write_shards,
)

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end]}


def test_tensors_equal_those_of_safetensors() -> None:
    shard = Shard(TINY / SHARD)
    expected = load_file(TINY / SHARD)
    assert shard.entries.keys() == expected.keys()
    for name, tensor in expected.items():
        found = shard.read(name)
        assert (found.dtype, found.shape) == (DTYPE_NAMES[tensor.dtype], tensor.shape)
        assert tensor_bytes(found) == tensor_bytes(tensor)


def test_every_dtype_round_trips(tmp_path: Path) -> None:
    tensors = {
        name: torch.arange(24).to(dtype).reshape(2, 3, 4) for name, dtype in TORCH_DTYPES.items()
    }
    tensors["empty"] = torch.empty(0, 3)
    tensors["scalar"] = torch.tensor(2.5)
    save_file(tensors, tmp_path / "a.safetensors")
    shard = Shard(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert shard.read(name).shape == tensor.shape
        assert tensor_bytes(shard.read(name)) == tensor_bytes(tensor)


def test_f4_is_bytes_of_two_numbers(tmp_path: Path) -> None:
    """As the library writes torch's own type: F4, its last dimension counted in numbers."""
    packed = torch.arange(24, dtype=torch.uint8).reshape(2, 12)
    save_file({"x": packed.view(torch.float4_e2m1fn_x2)}, tmp_path / "a.safetensors")
    header = (tmp_path / "a.safetensors").read_bytes()[8:100]
    assert b'"F4"' in header and b"[2,24]" in header
    found = Shard(tmp_path / "a.safetensors").read("x")
    assert (found.dtype, found.shape) == ("I8", (2, 12))
    assert tensor_bytes(found) == bytes(range(24))


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    header = {"x": entry(0, 3), "y": {**F32, "data_offsets": [3, 11]}}
    data = b"abc" + tensor_bytes(torch.tensor([1.5, -2.0]))
    assert Shard(raw_file(tmp_path / "a", header, data)).read("y").array.tolist() == [1.5, -2.0]


def test_writing_into_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a", {"x": F32}, tensor_bytes(torch.ones(2)))
    Shard(path).read("x").array.fill(0)
    assert Shard(path).read("x").array.tolist() == [1, 1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_a_tensor_keeps_no_file_open_and_is_unmapped_with_its_last_view() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(TINY / SHARD))

    files, before = len(os.listdir("/proc/self/fd")), mappings()
    shard = Shard(TINY / SHARD)
    tensors = [shard.read(name) for name in shard.entries]
    assert len(os.listdir("/proc/self/fd")) == files
    views = [tensor.array.reshape(-1)[:1] for tensor in tensors]
    assert mappings() > before
    expected = [view.copy() for view in views]
    del tensors
    assert all(a.tobytes() == b.tobytes() for a, b in zip(views, expected, strict=True))
    del views
    assert mappings() == before


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GB without data blocks: only the bytes of the header may be asked for."""
    size = 64 * 10**9
    header = json.dumps({"x": entry(0, size), "y": entry(size, size + 8)}).encode()
    path = raw_file(tmp_path / "a.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + size + 8)
    asked = 0
    parse = shards._read_header

    def counting(read: Any, *rest: Any) -> Any:
        def counted(count: int) -> bytes:
            nonlocal asked
            asked += count
            return bytes(read(count))

        return parse(counted, *rest)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("data was mapped while opening")

    monkeypatch.setattr(shards, "_read_header", counting)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_map", forbidden)
        shard = Shard(path)
    assert asked <= max(64, 8 + len(header))
    assert shard.read("y").array.tolist() == [0] * 8
    assert shard.read("x").array[size // 2] == 0


# --------------------------------------------------------------------------------------------------
# Refusals: one file


def zip_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (zip_file, "zip archive, as torch.save writes; it holds a pickle"),
        (lambda p: p.write_bytes(pickle.dumps({"a": list(range(99))})), "Python pickle, which can"),
        (lambda p: p.write_bytes(b"GGUF" + bytes(100)), "a GGUF file"),
        (lambda p: p.write_bytes(b"\x93NUMPY" + bytes(100)), "a NumPy array"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>"), "a web page"),
        (lambda p: p.write_bytes(b""), "only 0 bytes long"),
        (lambda p: p.write_bytes(b"1234"), "only 4 bytes long"),
        (lambda p: p.write_bytes(bytes(100)), "not a safetensors file"),
    ],
    ids=["zip", "pickle", "gguf", "numpy", "lfs", "html", "empty", "short", "zeros"],
)
def test_files_of_other_formats_are_named_and_refused(
    tmp_path: Path, make: Any, message: str
) -> None:
    make(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors is .*{message}.*only safetensors"):
        Shard(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b'{"x": ', b"", "not readable JSON"),
        (b'{"\xff": 1}', b"", "not readable JSON"),
        (b"{" + b'"a":{' * 50_000, b"", "not readable JSON"),
        (b'{"x": 1, "x": 2}', b"", "names 'x' twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map names to texts"),
        ({"x": [1]}, b"", "tensor 'x' must have dtype, shape and data_offsets"),
        ({"x": {**F32, "more": 1}}, b"12345678", "must have dtype, shape and data_offsets"),
        ({"x": {**F32, "dtype": "F5"}}, b"12345678", "unknown dtype 'F5'"),
        ({"x": {**F32, "dtype": "F4", "shape": [2, 3]}}, b"12345678", "dimension must be even"),
        ({"x": {**F32, "dtype": ["F32"]}}, b"12345678", "unknown dtype"),
        ({"x": {**F32, "shape": [-2]}}, b"12345678", r"impossible shape \[-2\]"),
        ({"x": {**F32, "shape": [True, 2]}}, b"12345678", "impossible shape"),
        ({"x": {**F32, "shape": "2"}}, b"12345678", "impossible shape"),
        ({"x": {**F32, "data_offsets": [8, 0]}}, b"12345678", "impossible data_offsets"),
        ({"x": {**F32, "data_offsets": [0]}}, b"12345678", "impossible data_offsets"),
        ({"x": {**F32, "shape": [3]}}, b"12345678", r"F32 \[3\], which takes 12 bytes.*span 8"),
        ({"x": F32}, b"1234", "is truncated: its header describes"),
        ({"x": F32}, b"123456789", "has 1 bytes after its last tensor"),
        ({"x": entry(0, 4), "y": entry(2, 6)}, b"123456", "tensor 'y' overlaps 'x'"),
        ({"x": entry(0, 4), "y": entry(5, 6)}, b"123456", "tensor 'y' leaves a hole after 'x'"),
        ({"x": entry(1, 4)}, b"1234", "tensor 'x' leaves a hole after the header"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = raw_file(tmp_path / "a.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as caught:
        Shard(path)
    assert str(path) in str(caught.value)


def test_header_lengths_that_cannot_be(tmp_path: Path) -> None:
    absurd = raw_file(tmp_path / "a", {"x": F32}, b"12345678", length=2**60)
    with pytest.raises(ValueError, match="claims a header of 1,152,921,504,606,846,976 bytes"):
        Shard(absurd)
    cut = raw_file(tmp_path / "b", {"x": F32}, length=4000)
    with pytest.raises(ValueError, match="truncated within its header"):
        Shard(cut)


def test_truncated_shard_of_a_real_checkpoint(tmp_path: Path) -> None:
    whole = (TINY / SHARD).read_bytes()
    (tmp_path / SHARD).write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=r"truncated: its header describes 4,484,\d+ bytes"):
        Shard(tmp_path / SHARD)


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "I8", "shape": [4], "data_offsets": [16, 20]},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def open_bytes(folder: Path, content: bytes) -> None:
    """Open a file of these bytes and read all it claims to hold; only ValueError may come."""
    path = folder / "a.safetensors"
    path.write_bytes(content)
    try:
        shard = Shard(path)
    except ValueError:
        return
    for name in shard.entries:
        shard.read(name)


@given(st.data())
def test_any_corruption_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = json.dumps(HEADER).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + bytes(20))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    open_bytes(tmp_path_factory.getbasetemp(), bytes(content[:end]))


@given(key=st.sampled_from(["dtype", "shape", "data_offsets", None]), value=JSON)
def test_any_json_in_a_header_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, key: str | None, value: Any
) -> None:
    header = json.loads(json.dumps(HEADER))
    if key is None:
        header["a"] = value
    else:
        header["a"][key] = value
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(20)
    open_bytes(tmp_path_factory.getbasetemp(), content)


# --------------------------------------------------------------------------------------------------
# Refusals: folders


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    one = {"x": torch.ones(2)}
    write_shards(tmp_path, {"a.safetensors": {**one, "y": torch.ones(1)}, "b.safetensors": one})
    with pytest.raises(ValueError, match=r"'x' is in .*a\.safetensors and in .*b\.safetensors"):
        read_folder(tmp_path)


def test_an_index_pointing_to_a_missing_file(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": torch.ones(2)}})
    write_index(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"})
    with pytest.raises(ValueError, match=r"names the shard b\.safetensors, which is missing"):
        read_folder(tmp_path)


def test_an_index_pointing_to_a_missing_tensor(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": torch.ones(2)}})
    write_index(tmp_path, {"x": "a.safetensors", "y": "a.safetensors"})
    with pytest.raises(ValueError, match=r"places tensor 'y' in a\.safetensors, which does not"):
        read_folder(tmp_path)


def test_a_tensor_the_index_does_not_name(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": torch.ones(2), "y": torch.ones(1)}})
    write_index(tmp_path, {"x": "a.safetensors"})
    with pytest.raises(ValueError, match=r"a\.safetensors holds tensor 'y', which .* not name"):
        read_folder(tmp_path)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "x/../../a", "a\\b", "", 7])
def test_an_index_reaching_out_of_the_folder(tmp_path: Path, file: Any) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": torch.ones(2)}})
    write_index(tmp_path, {"x": file})
    with pytest.raises(ValueError, match="must be a file within the model's folder"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"x": "a", "x": "b"}}', "names 'x' twice"),
        ('{"weight_map": []}', "must have a weight_map"),
        ('{"weight_map": {}}', "must have a weight_map"),
        ("[1]", "must be a JSON object, not list"),
        ("{", "not readable JSON"),
    ],
)
def test_a_damaged_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_files_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no safetensors file of a model; only"):
        read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin is a pickle of PyTorch, which can run"
    ):
        read_folder(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model\.gguf is a GGUF file, the format of llama"):
        read_folder(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"is an adapter \(LoRA\).*; merge it into the model"):
        read_folder(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    assert read_folder(tmp_path)["x"].path.name == "weights.safetensors"
    save_file({"x": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="holds 2 safetensors files and no model"):
        read_folder(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_folder(tmp_path)["x"].path.name == "model.safetensors"


def test_the_golden_folder_ignores_its_neighbours() -> None:
    assert read_folder(TINY).keys() == tiny_tensors().keys()  # golden.safetensors lies beside it


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + "]}}", "not readable JSON"),
        ('{"a": ' + "[" * 100_000 + "}", "not readable JSON"),
        (json.dumps({"a": {**F32, "shape": [1] * 100_000}}), "impossible shape"),
        (json.dumps({"a": {**F32, "shape": [2**62] * 64}}), "impossible shape"),
        (json.dumps({"a": {**F32, "data_offsets": [0] * 100_000}}), "impossible data_offsets"),
        (json.dumps({"a" * 100_000: F32}), "name has 100,000 characters"),
        ('{"' + "a" * 100_000 + '": 1, "' + "a" * 100_000 + '": 1}', "twice"),
        (json.dumps({"__metadata__": {"a" * 100_000: 1}}), "must map names to texts"),
    ],
)
def test_a_damaged_header_is_named_in_few_words(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ValueError, match=message) as found:
        Shard(path)
    assert str(path) in str(found.value) and len(str(found.value)) < 1500
