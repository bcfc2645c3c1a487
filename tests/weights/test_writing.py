"""Writing checkpoints: the published bytes, and never half of them."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sounding.presets import tiny
from sounding.weights import writing
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import StoredTensor
from sounding.weights.state_dict import read_state, write_state
from sounding.weights.tensors import DTYPE_NAMES
from sounding.weights.writing import new_checkpoint, replacing
from tests.weights.folders import (
    INDEX,
    SHARD,
    TINY,
    base_tensors,
    tensor_bytes,
    tiny_config,
    tiny_tensors,
    write_model,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return read_state(Checkpoint(TINY))


def test_rewriting_the_golden_checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> None:
    write_state(state, Checkpoint(TINY).config, tmp_path / "new")
    written, original = load_file(tmp_path / "new" / SHARD), tiny_tensors()
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(written[name]) == tensor_bytes(tensor)
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == tiny_config()
    index = json.loads((tmp_path / "new" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4_434_066
    assert index["weight_map"] == dict.fromkeys(original, SHARD)


def test_data_lies_in_the_published_order(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """After the header, which there names the framework, the file is the original's."""
    write_state(state, tiny(), tmp_path / "new")
    ours, theirs = (tmp_path / "new" / SHARD).read_bytes(), (TINY / SHARD).read_bytes()
    assert ours[-4_434_066:] == theirs[-4_434_066:]


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_equal_those_of_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    tensors = {
        f"{name}.{i}": torch.arange(6).to(d) for d, name in DTYPE_NAMES.items() for i in "ba"
    }
    tensors["scalar"], tensors["empty"] = torch.tensor(3.0), torch.empty(0, 4)
    stored = [StoredTensor(n, tuple(t.shape), DTYPE_NAMES[t.dtype]) for n, t in tensors.items()]
    with new_checkpoint(tmp_path / "new", stored, {}, metadata=metadata) as writer:
        for name in reversed(tensors):  # any order
            writer.put(name, tensors[name])
    save_file(tensors, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "new" / SHARD).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_large_checkpoints_are_split_as_published(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SINGLE_SHARD_BYTES", 1000)
    write_state(state, tiny(), tmp_path / "new")
    index = json.loads((tmp_path / "new" / INDEX).read_text())["weight_map"]
    assert len(set(index.values())) == 8  # embedding, five layers, head, MTP block
    assert index["embed.weight"] == "model-00001-of-00008.safetensors"
    assert index["layers.4.attn.wkv.scale"] == "model-00006-of-00008.safetensors"
    assert index["hc_head_fn"] == index["norm.weight"] == "model-00007-of-00008.safetensors"
    assert index["mtp.0.norm.weight"] == "model-00008-of-00008.safetensors"
    again = read_state(Checkpoint(tmp_path / "new"))
    assert all(tensor_bytes(again[name]) == tensor_bytes(state[name]) for name in state)


def test_base_and_plain_states_are_written_as_they_are(tmp_path: Path) -> None:
    base = read_state(Checkpoint(write_model(tmp_path / "base", base_tensors())))
    write_state(base, tiny(), tmp_path / "a")
    again = Checkpoint(tmp_path / "a")
    assert again.storage.scales == "F32"
    assert again.config.expert_format == "fp8"
    plain = read_state(Checkpoint(TINY), torch.float32)
    write_state(plain, tiny(), tmp_path / "b")
    assert Checkpoint(tmp_path / "b").config.quantization_config is None
    assert Checkpoint(tmp_path / "b").config.torch_dtype == "float32"
    loaded = read_state(Checkpoint(tmp_path / "b"))
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("norm.weight", None, "'norm.weight' is missing from the state"),
        ("layers.0.attn.wq_a.scale", None, "scale' is missing: its weight is quantized"),
        ("norm.weights", torch.ones(1), "'norm.weights' is no parameter of the network"),
        ("norm.weight", torch.ones(1), r"'norm.weight' has shape \[1\]; the config calls"),
        ("norm.weight", torch.ones(128).int(), "'norm.weight' has dtype I32; it must be F64"),
        ("norm.weight", torch.ones(128) * 1j, "'norm.weight' has dtype torch.complex64"),
        ("norm.scale", torch.ones(1), "'norm.weight' is BF16 and has scales"),
        ("layers.0.attn.wq_a.scale", torch.ones(1, 1).half(), "dtype F16; it must be F8_E8M0"),
        ("layers.0.ffn.experts.w1.weight", torch.ones(7, 128, 64, dtype=torch.int8),
         r"has shape \[7, 128, 64\]; the config calls for \[8, 128, 64\]"),
    ],
)  # fmt: skip
def test_states_that_are_no_network(
    tmp_path: Path, state: dict[str, Tensor], name: str, tensor: Tensor | None, message: str
) -> None:
    spoiled = dict(state)
    spoiled.pop(name, None)
    if tensor is not None:
        spoiled[name] = tensor
    with pytest.raises(ValueError, match=message):
        write_state(spoiled, tiny(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Whole or not at all


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Interrupted(Exception):
    pass


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    tensors = [StoredTensor("a", (2,), "F32"), StoredTensor("b", (2,), "F32")]
    with pytest.raises(Interrupted), new_checkpoint(tmp_path / "new", tensors, {}) as writer:
        writer.put("a", torch.ones(2))
        raise Interrupted
    with (
        pytest.raises(AssertionError, match="never written"),
        new_checkpoint(tmp_path / "new", tensors, {}) as writer,
    ):
        writer.put("a", torch.ones(2))
    assert names(tmp_path) == []


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", tiny_tensors())
    with pytest.raises(Interrupted), replacing(folder, overwrite=True) as partial:
        (partial / "config.json").write_text("{}")
        raise Interrupted
    assert names(tmp_path) == ["model"]
    Checkpoint(folder)


def die_while_writing(folder: Path) -> None:
    tensors = [StoredTensor("a", (2,), "F32")]
    with new_checkpoint(folder, tensors, {}, overwrite=True):
        os._exit(9)  # as a power cut: no cleaning up


def run(target: object, *arguments: object) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crash_leaves_nothing_that_opens_and_the_next_save_cleans_up(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    folder = tmp_path / "model"
    assert run(die_while_writing, folder) == 9
    (left,) = names(tmp_path)
    assert left.startswith(".model.partial-")
    with pytest.raises(ValueError, match=r"no config\.json"):
        Checkpoint(tmp_path / left)
    write_state(state, tiny(), folder)
    assert names(tmp_path) == ["model"]
    Checkpoint(folder)


def test_a_crash_between_the_two_renames_is_undone(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    write_state(state, tiny(), tmp_path / ".model.replaced-0123")  # the old one, moved aside
    with (
        pytest.raises(ValueError, match="model is not empty"),
        replacing(tmp_path / "model"),
    ):
        pass
    assert names(tmp_path) == ["model"]
    Checkpoint(tmp_path / "model")


def test_a_save_in_progress_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "model") as busy:
        with replacing(tmp_path / "model") as other:
            (other / "a.json").write_text("2")
        assert busy.is_dir()
        with pytest.raises(OSError, match="not empty"):  # the swap of a loser must not destroy
            os.rename(busy, tmp_path / "model")
        (tmp_path / "model" / "a.json").unlink()
    assert names(tmp_path) == ["model"]


def test_existing_folders_are_replaced_only_on_request_and_only_models(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    folder = write_model(tmp_path / "model", tiny_tensors())
    with pytest.raises(ValueError, match="model is not empty; choose a new folder, or replace it"):
        write_state(state, tiny(), folder)
    write_state(state, tiny(), folder, overwrite=True)
    assert names(folder) == ["config.json", SHARD, INDEX]
    (folder / "diary.docx").write_text("x")
    with pytest.raises(ValueError, match=r"holds diary\.docx, which is no part of a checkpoint"):
        write_state(state, tiny(), folder, overwrite=True)
    assert (folder / "diary.docx").exists()
    with pytest.raises(ValueError, match="is a file; a checkpoint is written to a folder"):
        write_state(state, tiny(), folder / "config.json")
    (tmp_path / "empty").mkdir()
    write_state(state, tiny(), tmp_path / "empty")
    Checkpoint(tmp_path / "empty")


def test_a_disk_too_small(tmp_path: Path) -> None:
    huge = [StoredTensor("a", (10**18,), "F32")]
    with (
        pytest.raises(ValueError, match="would take 4,000,000,000,000,000,000 bytes and its disk"),
        new_checkpoint(tmp_path / "new", huge, {}),
    ):
        pass
    assert names(tmp_path) == []
