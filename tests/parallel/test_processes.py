"""Several processes compute what one computes, send no more than the formulas say, and go on with
what any other number of them saved.

Catches: sums that count a token twice or not at all, gradients that miss what another process sent,
a collective that one process skips, matrices updated by two or none, parts of a checkpoint put back
at another place.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sounding.config import ModelConfig
from sounding.parallel.group import ALONE
from sounding.parallel.matrices import owners
from sounding.state.row_layout import draft_layouts, layer_layouts
from sounding.train.metrics import MetricsRow
from sounding.train.phases import is_indexer
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state
from tests.parallel import runs
from tests.parallel.launch import run_cases

pytestmark = pytest.mark.slow
FOUR = ("2x2x1", "2x1x2")
SETTING = "small-3"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes found, and then two with what the four saved."""
    folder = tmp_path_factory.mktemp("processes")
    cases = [f"train:{axes}:{SETTING}" for axes in FOUR]
    cases += ["sent:1x4x1:small-3", "sent:1x1x4:small-3", "logits:1x1x4:small-3"]
    run_cases(4, folder, *cases, f"save:2x2x1:{SETTING}")
    run_cases(2, folder, f"load:1x1x2:{SETTING}")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    run = runs.run_config(SETTING)
    return {
        "metrics": runs.metrics(run, folder / "metrics", ALONE),
        "gradients": runs.gradients(run, folder / "gradients", ALONE),
    }


def found(out: Path, case: str) -> dict[str, Any]:
    answer: dict[str, Any] = torch.load(out / f"{case}.pt")
    return answer


def assert_same_metrics(ours: list[MetricsRow], theirs: list[MetricsRow], rel: float) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            expected = pytest.approx(two[name], rel=rel) if name != "phase" else two[name]
            assert one[name] == expected, (one["step"], name)


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """As vectors of all parameters: of some a gradient is the rounding of what cancels out."""
    assert ours.keys() == theirs.keys()
    squares = sum(float(gradient.double().square().sum()) for gradient in theirs.values())
    for name, theirs_ in theirs.items():
        assert ours[name].shape == theirs_.shape, name
    apart = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in theirs)
    assert apart**0.5 <= 1e-6 * squares**0.5


@pytest.mark.parametrize("axes", FOUR)
def test_four_processes_make_the_losses_of_one(out: Path, alone: dict[str, Any], axes: str) -> None:
    ours = found(out, f"train-{axes}")
    assert {row["phase"] for row in ours["metrics"]} == {"dense", "indexer", "sparse"}
    assert_same_metrics(ours["metrics"], alone["metrics"], rel=1e-9)


@pytest.mark.parametrize("axes", FOUR)
def test_four_processes_make_the_gradients_of_one(
    out: Path, alone: dict[str, Any], axes: str
) -> None:
    assert_same_gradients(found(out, f"train-{axes}")["gradients"], alone["gradients"])


def test_sequences_cut_over_processes_have_the_same_logits(out: Path) -> None:
    logits = found(out, "logits-1x1x4")
    assert torch.allclose(logits["cut"], logits["alone"], rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Bytes


def test_experts_are_sent_what_is_chosen_and_no_more(out: Path) -> None:
    config, size = runs.run_config("small-3").model, 4
    processes = found(out, "sent-1x4x1")["processes"]
    held = config.n_routed_experts // size
    expected = 0
    for process in processes:
        for chosen in process["chosen"]:
            remote = int((chosen // held != process["expert_rank"]).sum())
            # Tokens, their weights and results, and the gradients of all three.
            expected += 2 * remote * 4 * (2 * config.hidden_size + 1)
            expected += 8 * (config.n_routed_experts - held)  # how many rows go to each expert
    assert sum(process["sent"]["experts"] for process in processes) == expected


def test_sequences_send_their_ends_and_entries_and_no_more(out: Path) -> None:
    run = runs.run_config("small-3")
    processes = found(out, "sent-1x1x4")["processes"]
    expected = 2 * context_bytes(run.model, run.data.batch_tokens, 4)  # and gradients
    expected *= run.train.accumulation
    assert sum(process["sent"]["context"] for process in processes) == expected


def context_bytes(config: ModelConfig, num_tokens: int, size: int) -> int:
    """What a forward pass of one sequence sends, in float32, while indexers rest."""
    each, total = num_tokens // size, 0
    for layer in (*layer_layouts(config), *draft_layouts(config)):
        tails = [layer.window] + ([layer.compressor.projections] if layer.compressor else [])
        total += sum((size - 1) * rows.retention.needed * rows.width * 4 for rows in tails)
        if layer.compressor:  # to every later process
            pairs = size * (size - 1) // 2
            total += pairs * each // layer.ratio * layer.compressor.entries.width * 4
    return total


@pytest.mark.parametrize("axes", ["1x4x1", "1x1x4"])
def test_matrices_go_once_to_their_owner_and_back(out: Path, axes: str) -> None:
    processes = found(out, f"sent-{axes}")["processes"]
    names = [name for name in processes[0]["matrices"] if not is_indexer(name)]  # in a dense step
    shapes = [processes[0]["matrices"][name][0] for name in names]
    expected = sum(
        4 * (shape.numel() - processes[owner]["matrices"][name][1])
        for name, shape, owner in zip(names, shapes, owners(shapes, 4), strict=True)
    )
    assert sum(process["sent"]["matrices"] for process in processes) == 2 * expected


# --------------------------------------------------------------------------------------------------
# Checkpoints


def test_two_and_one_go_on_with_what_four_saved(out: Path, tmp_path: Path) -> None:
    saved, two = found(out, "save-2x2x1")["tensors"], found(out, "load-1x1x2")
    one = runs.trainer(runs.run_config(SETTING), out / "saved", ALONE, torch.float32)
    assert one.step == two["step"] == 2
    named = dict(one.model.named_parameters()) | one.optimizers.named_state()
    assert saved.keys() == two["tensors"].keys() == named.keys()
    for name, tensor in saved.items():
        assert torch.equal(two["tensors"][name], tensor), name
        assert torch.equal(named[name].detach(), tensor), name
    assert_same_metrics(two["metrics"], [one.take_step()], rel=1e-4)


def test_the_model_beside_the_parts_is_whole(out: Path) -> None:
    saved = found(out, "save-2x2x1")["tensors"]
    folder = out / "saved" / "checkpoints" / "step-00000002" / "model"
    for name, tensor in read_state(Checkpoint(folder)).items():
        assert torch.equal(tensor, saved[name]), name


# --------------------------------------------------------------------------------------------------
# Long forms


@pytest.mark.long
@pytest.mark.parametrize(
    ("axes", "setting"),
    [
        ("2x1x1", "tiny-50-160"),
        ("1x2x1", "tiny-50-160"),
        ("1x1x2", "tiny-50-512-2"),
        ("4x1x1", "tiny-50-160"),
        ("1x4x1", "tiny-50-160"),
        ("1x1x4", "tiny-50-512-2"),
        ("2x2x1", "tiny-50-160"),
        ("2x1x2", "tiny-50-512-2"),
        ("1x2x2", "tiny-50-512-2"),
    ],
)
def test_fifty_steps_of_tiny(tmp_path: Path, axes: str, setting: str) -> None:
    count = math.prod(map(int, axes.split("x")))
    run_cases(count, tmp_path, f"train:{axes}:{setting}", timeout=3600)
    run, ours = runs.run_config(setting), found(tmp_path, f"train-{axes}")
    assert_same_metrics(ours["metrics"], runs.metrics(run, tmp_path / "alone", ALONE), rel=1e-9)
    assert_same_gradients(ours["gradients"], runs.gradients(run, tmp_path / "one", ALONE))


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_activations_fall_with_the_processes_that_share_a_sequence(
    tmp_path: Path, size: int
) -> None:
    case, tokens = "memory", 4096
    run_cases(1, tmp_path, f"{case}:1x1x1:{tokens}")
    run_cases(size, tmp_path, f"{case}:1x1x{size}:{tokens}")
    (alone,) = found(tmp_path, f"{case}-1x1x1")["peaks"]
    peaks = found(tmp_path, f"{case}-1x1x{size}")["peaks"]
    assert max(peaks) <= 1.2 * alone / size
