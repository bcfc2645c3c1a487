"""Beginning with a model's weights: all of them, in any format, and no other network's."""

import json
import logging
from pathlib import Path

import pytest
import torch

from sounding.model.from_checkpoint import load_model, save_model
from sounding.text.tokenizer import Tokenizer, train
from sounding.train.build_network import build_network
from sounding.train.initial_weights import load_initial_weights
from sounding.train.metrics import MetricsRow
from sounding.train.saved_models import CHECKPOINTS_NAME
from sounding.train.source import open_source
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.quantize import Target, convert
from tests.networks import make_network
from tests.train.test_trainer import CPU, assert_same_bits, small, trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in which every parameter differs from what a run would draw."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    save_model(make_network(small().model, seed=7), folder)
    return folder


@pytest.mark.parametrize("target", ["bf16", "fp8", "fp4"])
def test_every_weight_is_the_models_whatever_its_format(
    tmp_path: Path, model: Path, target: Target
) -> None:
    convert(Checkpoint(model), tmp_path / target, target)
    run = small(f"train.initial_weights={tmp_path / target}")
    one = trainer(run, tmp_path / "run")
    wanted = load_model(Checkpoint(tmp_path / target), dequantize=torch.float32)
    expected = dict(wanted.named_parameters())
    found = dict(one.model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in found)
    assert all(p.dtype == torch.float32 for n, p in found.items() if "tid2eid" not in n)
    assert (one.step, one.tokens) == (0, 0)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert saved["train"]["initial_weights"] == str(tmp_path / target)


def test_a_resumed_run_goes_on_from_its_own_checkpoint(tmp_path: Path, model: Path) -> None:
    run = small(f"train.initial_weights={model}")
    trainer(run, tmp_path / "whole").train()

    def stop(row: MetricsRow) -> None:
        first._interrupt.requested = row["step"] == 4

    first = trainer(run, tmp_path / "stopped", report=stop)
    assert not first.train()
    hidden = model.rename(tmp_path / "gone")  # read at step 0 only
    try:
        assert trainer(run, tmp_path / "stopped").train()
    finally:
        hidden.rename(model)
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")
    trainer(small(), tmp_path / "random").train()
    with pytest.raises(AssertionError):
        assert_same_bits(tmp_path / "whole", tmp_path / "random")


def test_another_network_is_refused_by_name(tmp_path: Path, model: Path) -> None:
    wider = small(f"train.initial_weights={model}", "model.moe_intermediate_size=64")
    with pytest.raises(ValueError) as caught:
        trainer(wider, tmp_path)
    for part in ("w1.weight is of shape [32, 32] there and of shape [64, 32] in the run",
                 "moe_intermediate_size: 32, not 64", "--set model.NAME=VALUE"):  # fmt: skip
        assert part in str(caught.value)
    deeper = small(f"train.initial_weights={model}", "model.num_hidden_layers=4",
                   "model.compress_ratios=0,4,128,0,0")  # fmt: skip
    with pytest.raises(ValueError, match=r"layers\.3\.\S+ is missing there"):
        trainer(deeper, tmp_path)
    assert not (tmp_path / CHECKPOINTS_NAME).exists()


def test_a_setting_without_a_shape_is_a_warning(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small("model.sliding_window=32")
    with caplog.at_level(logging.WARNING):
        load_initial_weights(build_network(run, CPU), model)
    assert [r.message for r in caplog.records] == [
        f"{model} was made with another sliding_window: 16, not 32"
    ]


def test_another_tokenizer_is_refused(tmp_path: Path, model: Path) -> None:
    texts = ["def f(x):\n    return x + 1\n" * 20, "import os\nprint(os.getcwd())\n" * 20]
    ours, theirs = train(texts, 320), train(texts[1:], 320)
    (tmp_path / "data").mkdir()
    ours.save(tmp_path / "data" / "tokenizer.json")
    network = make_network(small().model)
    save_model(network, tmp_path / "model")

    def start(tokenizer: Tokenizer) -> None:
        tokenizer.save(tmp_path / "model" / "tokenizer.json")
        run = small(f"train.initial_weights={tmp_path / 'model'}")
        beside = [tmp_path / "data" / "tokenizer.json"]
        trainer(run, tmp_path / "run", beside=beside)

    start(ours)
    with pytest.raises(ValueError, match="are different tokenizers"):
        start(theirs)


def test_a_checkpoint_brings_its_moments_along(tmp_path: Path) -> None:
    """At the same rate on the same data, a next phase takes the step the first would have taken."""
    constant = ("train.warmup_steps=0", "train.decay_steps=0", "sparsity.dense_steps=50")
    whole = trainer(small(*constant), tmp_path / "first")
    for _ in range(3):
        whole.take_step()
    whole.save()
    saved = tmp_path / "first" / CHECKPOINTS_NAME / "step-00000003"
    whole.take_step()

    def after_one_step(begun: Path, name: str) -> dict[str, torch.Tensor]:
        run = small(*constant, f"train.initial_weights={begun}")
        phase = trainer(run, tmp_path / name)
        assert (phase.step, phase.tokens) == (0, 0)
        phase._stream = open_source(run)(json.loads((saved / "state.json").read_text())["data"])
        phase.take_step()
        return {name: param.detach() for name, param in phase.model.named_parameters()}

    wanted = {name: param.detach() for name, param in whole.model.named_parameters()}
    with_moments = after_one_step(saved, "second")
    assert all(torch.equal(with_moments[name], wanted[name]) for name in wanted)
    weights_alone = after_one_step(saved / "model", "third")
    assert not all(torch.equal(weights_alone[name], wanted[name]) for name in wanted)


def test_a_milestone_has_no_moments(tmp_path: Path) -> None:
    run = small("log.milestone_every=2", "train.steps=4")
    trainer(run, tmp_path / "first").train()
    milestone = tmp_path / "first" / "milestones" / "step-00000002"
    with pytest.raises(ValueError, match="is a milestone and has no moments"):
        trainer(small(f"train.initial_weights={milestone}"), tmp_path / "second")
    trainer(small(f"train.initial_weights={milestone / 'model'}"), tmp_path / "third")
