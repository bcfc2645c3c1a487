"""Quantization-aware training is on: what trains is what is deployed, and nothing else would do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sounding.config import ModelConfig
from sounding.model import layers
from sounding.model.from_checkpoint import build_model, load_model, save_model
from sounding.model.layers import Linear
from sounding.model.transformer import Transformer
from sounding.ops import experts as expert_ops
from sounding.ops.dispatch import use_backend
from sounding.ops.loss import cross_entropy
from sounding.ops.quant import (
    dequantize_fp4,
    dequantize_fp8,
    quantize_fp4,
    quantize_fp8,
    simulate_weight,
)
from sounding.posttrain.open_runs import open_sft
from sounding.posttrain.run_configs import SftRun
from sounding.posttrain.sampler import Sampler, deployed
from sounding.simulation import DEPLOYED, QUANTIZATION_AWARE
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.quantize import convert
from sounding.weights.state_dict import read_state
from tests.posttrain.conftest import masters, rows, small, write_rows

TOKENS = torch.tensor([0, *range(60, 180, 3)])


def loss(model: Transformer) -> Tensor:
    hidden = model.hidden(model(TOKENS).streams)
    return cross_entropy(hidden[:-1], model.head.weight, TOKENS[1:])


@contextmanager
def weights_seen(model: Transformer) -> Iterator[dict[int, list[Tensor]]]:
    """The expert weights that enter products, by the address of their master."""
    seen: dict[int, list[Tensor]] = {}
    swiglu = expert_ops.swiglu

    def noted(x: Tensor, *weights: object, **how: object) -> Tensor:
        seen.setdefault(len(seen), []).extend(w.values for w in weights)  # type: ignore[attr-defined]
        return swiglu(x, *weights, **how)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_ops, "swiglu", noted)
        yield seen


def test_every_expert_weight_of_a_product_lies_on_its_grid(
    start: Path, config: ModelConfig
) -> None:
    """And the master does not; as many weights are seen as experts were chosen."""
    model = masters(start, config)
    with use_backend("reference"), torch.no_grad(), weights_seen(model) as seen:
        output = model(TOKENS)
    touched = sum(len(routed.chosen.unique()) for routed in output.routing)
    # Of each layer also the shared expert, in FP8.
    products = [weights for weights in seen.values() if len(weights) == 3]
    assert len(products) == touched + len(model.layers)
    on_grid = 0
    for weights in products:
        for weight in weights:
            four = torch.equal(dequantize_fp4(*quantize_fp4(weight)), weight)
            assert four or torch.equal(dequantize_fp8(*quantize_fp8(weight)), weight)
            on_grid += four
    assert on_grid >= 3 * touched
    experts = [m for m in model.modules() if isinstance(m, Linear) and m.format == "fp4"]
    assert len(experts) == 3 * (len(model.layers) + len(model.mtp))
    for linear in experts:
        assert not torch.equal(linear.stored.values, linear.weight)


def test_identity_in_place_of_the_quantiser_changes_the_loss(
    start: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = masters(start, config)
    with use_backend("reference"), torch.no_grad():
        before = float(loss(model))
        monkeypatch.setattr(layers, "simulate_weight", lambda weight, format: weight)
        assert abs(float(loss(model)) - before) > 1e-3


def test_the_exported_network_computes_what_training_does(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """To the bit by the reference; by the kernels to the rounding of bfloat16."""
    model = masters(start, config, torch.bfloat16)
    save_model(model, tmp_path / "masters")
    convert(Checkpoint(tmp_path / "masters"), tmp_path / "fp4", "fp4")
    exported = load_model(Checkpoint(tmp_path / "fp4"), simulation=DEPLOYED, dtype=torch.bfloat16)
    with use_backend("reference"), torch.no_grad():
        # What is deployed in bfloat16 without simulation has its rounding in the export.
        rounded = build_model(
            {
                name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
                for name, tensor in _plain_in_bf16(model).items()
            },
            model.config, simulation=QUANTIZATION_AWARE, dtype=torch.bfloat16,
        )  # fmt: skip
        ours = rounded.logits(rounded.hidden(rounded(TOKENS).streams))
        theirs = exported.logits(exported.hidden(exported(TOKENS).streams))
    assert torch.equal(ours, theirs)
    sampler = Sampler(model)
    sampler.hand_over()
    network = sampler.network
    tokens = TOKENS.tolist()
    made = network.predict(tokens, range(len(tokens)), [len(tokens)], [network.new_state()])
    sampler.close()
    difference = np.abs(made.logits - theirs.float().numpy())
    assert difference.mean() < 0.1 * float(theirs.std())


def _plain_in_bf16(model: Transformer) -> dict[str, Tensor]:
    """Masters, with those that are deployed in bfloat16 rounded to it."""
    kinds = dict(deployed(model))
    found = {}
    for name, tensor in model.named_parameters():
        stored = kinds.get(name)
        plain = stored is not None and stored.dtype == torch.bfloat16
        found[name] = tensor.detach().bfloat16() if plain else tensor.detach()
    return found


def test_what_is_handed_over_is_what_conversion_writes(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    model = masters(start, config, torch.bfloat16)
    save_model(model, tmp_path / "masters")
    convert(Checkpoint(tmp_path / "masters"), tmp_path / "fp4", "fp4")
    written = Checkpoint(tmp_path / "fp4")
    handed = dict(deployed(model))
    assert set(handed) == set(written.sources)
    for name, tensor in handed.items():
        stored = written.read(name)
        assert stored.dtype == tensor.dtype, name
        assert torch.equal(stored.view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def test_an_export_that_is_loaded_and_exported_again_has_the_same_numbers(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """Loaded as float32 masters, as a run begins, and trained for no step."""
    convert(Checkpoint(start), tmp_path / "once", "fp4")
    save_model(masters(tmp_path / "once", config), tmp_path / "masters")
    convert(Checkpoint(tmp_path / "masters"), tmp_path / "twice", "fp4")
    # Where the largest value of a block was rounded down to a half, the scale is halved and all
    # codes are the next ones: other bytes, the same numbers.
    once = read_state(Checkpoint(tmp_path / "once"), torch.float32)
    twice = read_state(Checkpoint(tmp_path / "twice"), torch.float32)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_the_gradient_of_a_rounded_weight_is_that_of_what_it_rounds_to(kind: str) -> None:
    torch.manual_seed(3)
    weight = torch.randn(128, 128, requires_grad=True)
    x, outer = torch.randn(7, 128), torch.randn(7, 128)
    rounded = simulate_weight(weight, kind)  # type: ignore[arg-type]
    (ours,) = torch.autograd.grad((x @ rounded.T * outer).sum(), weight)
    fixed = rounded.detach().requires_grad_(True)
    (theirs,) = torch.autograd.grad((x @ fixed.T * outer).sum(), fixed)
    assert torch.equal(ours, theirs)


def test_experts_that_no_token_chose_have_no_gradient(start: Path, config: ModelConfig) -> None:
    model = masters(start, config)
    chosen = [torch.tensor([[1, 3]] * len(TOKENS)) for _ in model.layers]
    hidden = model.hidden(model(TOKENS, replayed=chosen).streams)
    cross_entropy(hidden[:-1], model.head.weight, TOKENS[1:]).backward()
    gradient = model.layers[1].get_parameter("ffn.experts.w1.weight").grad
    assert gradient is not None
    touched = gradient.abs().amax((1, 2)) > 0
    assert touched.nonzero()[:, 0].tolist() == [1, 3]


def test_training_moves_codes(tmp_path: Path, start: Path, config: ModelConfig) -> None:
    """Rounded weights of a run change as its masters do: rounding has not cut the gradient off."""
    path = write_rows(tmp_path / "rows.jsonl", rows())
    run = small(SftRun(name="sft", model=config), start, f"conversations.path={path}",
                "train.qat=true")  # fmt: skip
    trainer = open_sft(run, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in deployed(trainer.model)}
    trainer.take_step()
    codes = [name for name, tensor in before.items() if tensor.dtype == torch.int8]
    after = dict(deployed(trainer.model))
    moved = [(after[name] != before[name]).float().mean().item() for name in codes]
    assert 0 < sum(moved) / len(moved) < 0.5
