"""Packed checkpoints: the same tensors, one read for an expert, and no damage that goes unseen.

Catches: a tensor under another's name, a file that is taken for complete, a checksum that is not
checked, a second read for an expert.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sounding.loading import load_network
from sounding.ops import cpu
from sounding.weights import pack as packing
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.digest import weights_digest
from sounding.weights.expert_files import (
    PAGE_BYTES,
    ExpertFiles,
    ExpertReadError,
    bytes_checksum,
    require_checksums,
)
from sounding.weights.pack import pack
from tests.weights.folders import TINY, base_tensors, tiny_config, write_model

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

LAYERS = ["layers.0", "layers.4", "mtp.0"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "tiny"
    pack(Checkpoint(TINY), folder)
    return folder


def files_of(folder: Path) -> ExpertFiles:
    return ExpertFiles(Checkpoint(folder), LAYERS, [8] * len(LAYERS))


def test_a_packed_checkpoint_is_the_checkpoint(packed: Path) -> None:
    mine, theirs = Checkpoint(packed), Checkpoint(TINY)
    assert mine.config == theirs.config
    assert weights_digest(mine.read_all()) == weights_digest(theirs.read_all())
    assert (packed / "config.json").read_bytes() == (TINY / "config.json").read_bytes()


def test_an_expert_is_one_piece_and_its_file_begins_at_a_page(packed: Path) -> None:
    files = files_of(packed)
    for layer in range(len(LAYERS)):
        begins = []
        for expert in range(8):
            (piece,) = files.place(layer, expert).pieces
            begins.append(piece.begin)
        assert begins == sorted(begins)
        assert begins[0] % PAGE_BYTES == 0
    files.close()


def test_experts_read_from_both_forms_are_the_same_bytes(packed: Path) -> None:
    forms = [files_of(packed), files_of(TINY)]
    for layer in range(len(LAYERS)):
        for expert in range(8):
            found = []
            for files in forms:
                slot = memoryview(bytearray(files.slot_bytes + PAGE_BYTES))
                start = -np.frombuffer(slot, np.uint8).ctypes.data % PAGE_BYTES
                slot = slot[start : start + files.slot_bytes]
                files.read(layer, expert, slot)
                place, sizes = files.place(layer, expert), files.sources[layer]
                found.append(
                    [
                        bytes(slot[offset : offset + sizes[f"{part}.{leaf}"].num_bytes])
                        for leaf, offsets in (("weight", place.values), ("scale", place.scales))
                        for part, offset in zip(("w1", "w2", "w3"), offsets, strict=True)
                    ]
                )
            assert found[0] == found[1]
    for files in forms:
        files.close()


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file, and nothing else about it."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_damaged_expert_is_found_by_its_first_read(copy: Path) -> None:
    files = files_of(copy)
    piece = files.place(1, 5).pieces[0]
    flip(files.path(1, 5), piece.begin + 1234)
    slot = memoryview(bytearray(files.slot_bytes + PAGE_BYTES))
    start = -np.frombuffer(slot, np.uint8).ctypes.data % PAGE_BYTES
    slot = slot[start : start + files.slot_bytes]
    files.read(1, 4, slot)
    with pytest.raises(ExpertReadError, match=r"expert 5 of layers.4 does not have its checksum"):
        files.read(1, 5, slot)
    files.close()


def test_a_damaged_weight_that_stays_in_memory_is_found_when_it_is_loaded(copy: Path) -> None:
    checkpoint = Checkpoint(copy)
    names = list(checkpoint.names(routed_experts=False))
    require_checksums(checkpoint, {name: checkpoint.read_raw(name) for name in names})
    source = checkpoint.sources["norm.weight"]
    flip(source.shard.path, source.extent[0])
    with pytest.raises(ExpertReadError, match=r"'norm.weight' does not have its checksum"):
        require_checksums(checkpoint, {name: checkpoint.read_raw(name) for name in names})


def test_packing_goes_on_where_it_was_interrupted(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = packing._layer_data
    folder = tmp_path / "out"

    def interrupted(files: ExpertFiles, layer: int) -> Iterator[object]:
        for number, entry in enumerate(original(files, layer)):
            if layer == 2 and number == 3:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(packing, "_layer_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(Checkpoint(TINY), folder)
    with pytest.raises(ValueError):
        Checkpoint(folder)
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(done) == 3
    monkeypatch.setattr(packing, "_layer_data", original)
    sizes: list[int] = []
    pack(Checkpoint(TINY), folder, sizes.append)
    assert sum(sizes) == Checkpoint(TINY).num_bytes
    for name, time in done.items():
        assert (folder / name).stat().st_mtime_ns == time
    assert not list(folder.glob("*.partial"))
    for path in packed.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    pack(Checkpoint(TINY), folder)  # nothing is left to do


def test_a_file_of_another_source_is_written_again(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    other = write_model(tmp_path / "other", base_tensors(), tiny_config(expert_dtype=None))
    pack(Checkpoint(other), folder)
    with pytest.raises(ValueError, match="holds another checkpoint; choose a new folder"):
        pack(Checkpoint(TINY), folder)
    (folder / "model.safetensors.index.json").unlink()
    pack(Checkpoint(TINY), folder)
    assert weights_digest(Checkpoint(folder).read_all()) == weights_digest(
        Checkpoint(TINY).read_all()
    )


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds letter.txt, which is no part of a checkpoint"):
        pack(Checkpoint(TINY), tmp_path)


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"more bytes and its disk has 10 free"):
        pack(Checkpoint(TINY), tmp_path / "out")


def test_a_packed_model_answers_as_the_model_does(packed: Path) -> None:
    tokens = list(range(40))
    made = []
    for folder in (packed, TINY):
        network = load_network(folder)
        made.append(network.predict(tokens, [39], [40], [network.new_state()]).logits)
    assert np.array_equal(made[0], made[1])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 63, 64, 65, 1000])
def test_a_checksum_changes_with_every_bit_and_with_the_length(count: int) -> None:
    data = np.random.default_rng(count).integers(256, size=count, dtype=np.uint8)
    whole = bytes_checksum(data)
    assert bytes_checksum(np.append(data, np.uint8(0))) != whole
    for at in range(0, count, max(1, count // 50)):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert bytes_checksum(data) != whole
            data[at] ^= 1 << bit
    assert bytes_checksum(data) == whole
