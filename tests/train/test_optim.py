"""Muon against an independent float64 computation, AdamW against torch's, and who trains what."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sounding.model.transformer import Transformer
from sounding.ops.muon import newton_schulz
from sounding.presets import tiny
from sounding.train.optim import (
    Muon,
    Optimizers,
    decay_progress,
    is_matrix,
    learning_rate,
)
from sounding.train.run_config import OptimizerConfig, TrainConfig

F64 = NDArray[np.float64]
LR, MU, DECAY, GAMMA = 0.05, 0.95, 0.1, 0.18


def orthogonalised(matrix: F64) -> F64:
    """The report's iteration on one matrix, written on the singular values: every step maps each
    of them by the same odd polynomial and leaves the vectors alone."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2:
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s) @ vt, np.float64)


def muon_step(weight: F64, momentum: F64, gradient: F64) -> tuple[F64, F64]:
    momentum = MU * momentum + gradient
    update = orthogonalised(MU * momentum + gradient) * math.sqrt(max(weight.shape)) * GAMMA
    return weight * (1 - LR * DECAY) - LR * update, momentum


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (4, 4), (1, 5), (3, 5, 7), (3, 7, 5)])
def test_two_muon_steps_are_the_reports(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    twin = nn.Parameter(start.clone())  # of equal shape: both go through one batch
    param = nn.Parameter(start.clone())
    muon = Muon(
        [twin, param], lr=LR, momentum=MU, weight_decay=DECAY, update_rms=GAMMA, dtype=torch.float64
    )
    for gradient in gradients:
        twin.grad, param.grad = -gradient, gradient
        muon.step()
    matrices = start.numpy().reshape(-1, *shape[-2:])
    for index, expected in enumerate(matrices):
        momentum = np.zeros_like(expected)
        for gradient in gradients:
            matrix = gradient.numpy().reshape(-1, *shape[-2:])[index]
            expected, momentum = muon_step(expected, momentum, matrix)
        got = param.detach().numpy().reshape(-1, *shape[-2:])[index]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_singular_values_settle_at_one_also_in_bfloat16() -> None:
    matrices = torch.randn(5, 48, 64, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float32, 0.05), (torch.bfloat16, 0.1)):
        values = torch.linalg.svdvals(newton_schulz(matrices, dtype))
        assert (values - 1).abs().max() < tolerance


def test_small_batches_change_nothing_and_no_gradient_means_no_change() -> None:
    def run(batch_elements: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        params = [nn.Parameter(torch.randn(2, 8, 8, generator=generator)) for _ in range(4)]
        for param in params[:3]:
            param.grad = torch.randn(2, 8, 8, generator=generator)
        muon = Muon(
            params,
            lr=LR,
            momentum=MU,
            weight_decay=DECAY,
            update_rms=GAMMA,
            batch_elements=batch_elements,
        )
        muon.step()
        return [param.detach() for param in params]

    alone, together = run(1), run(1 << 20)
    for left, right in zip(alone, together, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(2, 8, 8, generator=generator) for _ in range(4)]
    assert torch.equal(together[3], start[3])
    assert not torch.equal(together[0], start[0])


def test_a_zero_gradient_gives_no_nan() -> None:
    assert torch.equal(newton_schulz(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_every_parameter_goes_where_the_report_says() -> None:
    with torch.device("meta"):
        model = Transformer(tiny())
    adamw = {
        name for name, p in model.named_parameters() if p.requires_grad and not is_matrix(name)
    }
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()) for name in adamw}
    assert kinds == {
        "embed.weight",
        "head.weight",
        "norm.weight",
        "hc_head_base",
        "hc_head_scale",
        "mtp.hc_head_base",
        "mtp.hc_head_scale",
        *(
            f"{stack}.{name}"
            for stack in ("layers", "mtp")
            for name in (
                "attn_norm.weight",
                "ffn_norm.weight",
                "attn.q_norm.weight",
                "attn.kv_norm.weight",
                "attn.attn_sink",
                "hc_attn_base",
                "hc_attn_scale",
                "hc_ffn_base",
                "hc_ffn_scale",
            )
        ),
        "mtp.norm.weight",
        "mtp.enorm.weight",
        "mtp.hnorm.weight",
        "layers.attn.compressor.ape",
        "layers.attn.compressor.norm.weight",
        "layers.attn.indexer.compressor.ape",
        "layers.attn.indexer.compressor.norm.weight",
    }
    muon = {name for name, p in model.named_parameters() if p.requires_grad and is_matrix(name)}
    assert all(model.get_parameter(name).ndim >= 2 for name in muon)
    assert {"layers.1.hc_attn_fn", "layers.2.attn.indexer.weights_proj.weight"} <= muon
    assert {"layers.1.ffn.gate.weight", "layers.1.ffn.experts.w1.weight", "hc_head_fn"} <= muon


class Small(nn.Module):
    """A matrix for Muon and two tensors for AdamW, under names that say so."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 3, bias=False)
        self.norm = nn.Linear(4, 1, bias=False)
        self.attn_sink = nn.Parameter(torch.ones(5))


def test_the_rest_moves_as_torchs_adamw_moves_it() -> None:
    torch.manual_seed(0)
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(muon_dtype="float32")
    optimizers = Optimizers(ours, config)
    rest = [theirs.norm.weight, theirs.attn_sink]
    reference = torch.optim.AdamW(
        rest, lr=0.01, betas=(0.9, 0.95), eps=1e-20, weight_decay=0.1, foreach=False, fused=False
    )
    for _ in range(3):
        for name, param in ours.named_parameters():
            param.grad = torch.randn_like(param)
            theirs.get_parameter(name).grad = param.grad.clone()
        optimizers.step(0.01)
        reference.step()
    torch.testing.assert_close(ours.norm.weight, theirs.norm.weight)
    torch.testing.assert_close(ours.attn_sink, theirs.attn_sink)
    assert not torch.equal(ours.proj.weight, theirs.proj.weight)
    assert all(param.grad is None for param in ours.parameters())


def test_state_survives_as_named_tensors() -> None:
    torch.manual_seed(0)
    model = Small()
    optimizers = Optimizers(model, OptimizerConfig())
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizers.step(0.01)
    tensors = optimizers.state_tensors()
    assert set(tensors) == {
        "proj.weight.momentum",
        *(
            f"{n}.{k}"
            for n in ("norm.weight", "attn_sink")
            for k in ("step", "exp_avg", "exp_avg_sq")
        ),
    }
    twin = Optimizers(model, OptimizerConfig())
    twin.load_state_tensors(tensors)
    again = twin.state_tensors()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    with pytest.raises(ValueError, match="belongs to another model"):
        twin.load_state_tensors({"gone.weight.momentum": torch.zeros(1)})


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, lr=1.0, final_lr=0.1, warmup_steps=10, decay_steps=20)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:80] == [1.0] * 70
    assert rates[89] == pytest.approx(0.55)  # half way down
    assert rates[99] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[79:]))
    assert decay_progress(79, config) == 0 < decay_progress(80, config)
    assert learning_rate(99, dataclasses.replace(config, decay_steps=0)) == 1.0
