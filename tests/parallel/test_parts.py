"""How processes are arranged, sequences cut and matrices dealt, without starting any."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sounding.parallel.context import cut, least_tokens
from sounding.parallel.group import ALONE, Group, mesh_shape
from sounding.parallel.matrices import owners, work_of
from sounding.parallel.shards import load_shards, read_whole, save_shards
from sounding.presets import flash, tiny
from sounding.train.run_checkpoint import moments_of
from sounding.train.runs import change
from sounding.train.supervised import Supervised
from tests.parallel import runs


def test_what_expert_and_context_leave_is_data() -> None:
    assert mesh_shape(8, None, 2, 2) == (2, 2, 2)
    assert mesh_shape(1, None, 1, 1) == (1, 1, 1)
    assert mesh_shape(6, 3, 1, 2) == (3, 1, 2)


@pytest.mark.parametrize(
    ("world", "sizes", "wanted"),
    [
        (4, (2, 1, 1), "start 2 by"),
        (4, (None, 3, 1), "start 3 by"),
        (1, (None, 1, 2), "one process was started: start 2 by"),
        (2, (4, 1, 1), "2 processes were started"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_processes_are_named(
    world: int, sizes: tuple[int | None, int, int], wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted) as caught:
        mesh_shape(world, *sizes)
    assert "parallel.expert" in str(caught.value)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12), size=st.integers(1, 6))
def test_parts_hold_every_token_once_in_order(lengths: list[int], size: int) -> None:
    total = sum(lengths)
    if total < size:
        with pytest.raises(ValueError, match="cannot be cut"):
            cut(lengths, size)
        return
    parts = cut(lengths, size)
    assert [token for part in parts for token in range(total)[part.rows]] == list(range(total))
    sizes = [sum(part.lengths) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    seen = [0] * len(lengths)
    for part in parts:
        for number, start, length in zip(part.sequences, part.starts, part.lengths, strict=True):
            assert start == seen[number] and length > 0
            seen[number] += length
        assert not any(part.starts[1:])
    assert seen == lengths


def test_a_part_must_hold_what_the_next_may_need() -> None:
    assert least_tokens(tiny()) == 127  # of the window, and of an unfinished group of HCA


def test_no_process_has_much_more_work_than_another() -> None:
    """Matrices of a published shape, dealt over as many processes as a node has."""
    config = flash()
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    layer = [
        torch.Size((config.q_lora_rank, width)),
        torch.Size((heads, config.q_lora_rank)),
        torch.Size((config.head_dim, width)),
        torch.Size((config.o_groups * config.o_lora_rank, heads // config.o_groups)),
        torch.Size((width, config.o_groups * config.o_lora_rank)),
    ]
    shapes = layer * config.num_hidden_layers
    found = owners(shapes, 8)
    loads = [0] * 8
    for shape, rank in zip(shapes, found, strict=True):
        loads[rank] += work_of(shape)
    assert max(loads) <= 1.1 * sum(loads) / 8
    assert found == owners(shapes, 8)


def test_equal_matrices_are_dealt_evenly() -> None:
    counts = torch.tensor(owners([torch.Size((4, 6))] * 10, 4)).bincount()
    assert counts.tolist() in ([3, 3, 2, 2],)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("parallel.expert=2", "parallel.expert = 2.*this run has one"),
        ("parallel.data=4", "parallel.data = 4.*this run has one"),
        ("parallel.context=0", "context = 0 must be at least 1"),
    ],
)
def test_settings_for_more_processes_than_there_are_are_refused(
    tmp_path: Path, setting: str, wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        run = change(runs.run_config("small-3"), [setting])
        runs.trainer(run, tmp_path, ALONE, torch.float32)


def test_parts_that_the_next_would_need_more_of_are_refused() -> None:
    run = change(runs.run_config("small-3"), ["data.sequence_tokens=256", "data.batch_tokens=256"])

    class Four(Group):
        def size(self, axis: str) -> int:
            return 4 if axis == "context" else 1

    with pytest.raises(ValueError, match=r"raise data.batch_tokens to 508, or lower parallel"):
        Supervised(run, None, Four(0, 4))


def test_what_several_processes_saved_begins_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000002"
    saved = shards(folder / "shards")
    (folder / "state.json").write_text("{}")
    moments = moments_of(folder)
    assert moments["a.step"].shape == () and moments["a.step"] == saved["optimizer.a.step"]


# --------------------------------------------------------------------------------------------------
# Checkpoints of one process in the form of several


def shards(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {
        "model.a": torch.arange(12.0).view(3, 4),
        "model.table": torch.arange(5),
        "optimizer.a.step": torch.tensor(7.0),
    }
    folder.mkdir(parents=True)
    save_shards(folder, tensors, ALONE)
    return tensors


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    saved = shards(tmp_path / "shards")
    empty = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    load_shards(tmp_path / "shards", empty, ALONE)
    assert all(torch.equal(empty[name], saved[name]) for name in saved)
    assert read_whole(tmp_path / "shards", "optimizer.")["a.step"].item() == 7


def test_a_file_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    saved = shards(folder)
    (name,) = json.loads((folder / "files.json").read_text())
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"damaged: {name} has"):
        load_shards(folder, saved, ALONE)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        load_shards(folder, saved, ALONE)


def test_tensors_of_another_network_are_named(tmp_path: Path) -> None:
    shards(tmp_path / "shards")
    for tensors, wanted in (
        ({"model.b": torch.zeros(3)}, "model.b is missing"),
        ({"model.a": torch.zeros(4, 4)}, r"model.a has the shape \[3, 4\]"),
    ):
        with pytest.raises(ValueError, match=wanted):
            load_shards(tmp_path / "shards", tensors, ALONE)


def test_files_carry_no_code(tmp_path: Path) -> None:
    shards(tmp_path / "shards")
    assert {path.suffix for path in (tmp_path / "shards").iterdir()} == {".safetensors", ".json"}
