"""The network beside the V4 of `transformers`, a second implementation from the published code.

Logits, loss and the gradient of every parameter, on random networks. It would catch any error in
the mathematics that short prompts hide: past the window, at group boundaries, past the top-k.

Differences of the other implementation (docs/architecture.md 14) that matter in float32 are handled
where they occur: it breaks ties of index scores in another way, so inputs are chosen without ties
at the edge of a selection, and that is asserted. It has no MTP block.

Both run in float32, where gradients of the hyper-connections' scales are sums whose terms cancel
(`hc_attn_scale` of layer 0 most of all, whose streams are still equal): either may be 5e-4 off its
float64 value, so they may be twice that apart. How far they are depends on the order in which the
processor's matrix products add up. What is compared is the reference; native kernels are held
against the reference by their own tests.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.deepseek_v4 import DeepseekV4Config

from sounding.config import ModelConfig
from sounding.config_file import to_transformers
from sounding.model import compressor
from sounding.model.from_checkpoint import load_model
from sounding.model.transformer import Transformer
from sounding.ops import attention, experts
from sounding.ops.dispatch import use_backend
from sounding.ops.loss import cross_entropy
from sounding.ops.matmul import Weight, linear
from sounding.presets import tiny
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.names import fused_experts, published_name

BASE = dataclasses.replace(
    tiny(), num_nextn_predict_layers=0, quantization_config=None, expert_dtype=None
)

# (config, tokens): each crosses the window and the 4- and 128-groups; the top-k is far exceeded.
CASES = {
    "tiny": (dataclasses.replace(BASE, index_n_heads=16), 300),
    "csa-first": (
        dataclasses.replace(
            BASE,
            compress_ratios=(4, 0, 128, 4),
            num_hidden_layers=4,
            num_hash_layers=2,
            index_n_heads=24,
            index_topk=7,
        ),
        131,
    ),
    "wide-heads": (
        dataclasses.replace(
            BASE,
            hidden_size=96,
            head_dim=192,
            num_attention_heads=6,
            o_groups=3,
            o_lora_rank=32,
            q_lora_rank=64,
            index_n_heads=16,
            index_topk=20,
            compress_ratios=(128, 4, 4),
            num_hidden_layers=3,
            num_hash_layers=0,
        ),
        257,
    ),
    "narrow-window": (
        dataclasses.replace(
            BASE,
            sliding_window=32,
            hc_mult=2,
            hc_sinkhorn_iters=5,
            qk_rope_head_dim=32,
            num_experts_per_tok=3,
            n_routed_experts=6,
            moe_intermediate_size=96,
            routed_scaling_factor=2.5,
            swiglu_limit=3.0,  # exceeded, with few inputs close to it
            index_n_heads=16,
            index_topk=24,
            rope_scaling=None,
        ),
        390,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Transformer, torch.nn.Module, Tensor]:
    """The same random network twice: theirs, saved by them and read by us."""
    config, length = CASES[request.param]
    folder: Path = tmp_path_factory.mktemp(request.param)
    generator = torch.Generator().manual_seed(len(request.param))
    theirs = AutoModelForCausalLM.from_config(
        DeepseekV4Config(**to_transformers(config)), dtype=torch.float32
    )
    _randomise(theirs, config, generator)
    theirs.save_pretrained(folder)
    ours = load_model(Checkpoint(folder))
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    return ours, theirs, tokens


def _randomise(model: torch.nn.Module, config: ModelConfig, generator: torch.Generator) -> None:
    """Weights large enough that every mechanism shows in the logits."""
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("tid2eid"):
            order = torch.rand(len(tensor), config.n_routed_experts, generator=generator)
            tensor.copy_(order.argsort(-1)[:, : tensor.shape[1]])
        elif tensor.is_floating_point() and "inv_freq" not in name:
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.1 * noise)
            elif tensor.ndim < 2 or "position_bias" in name:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


CANCELLING = ("hc_attn_scale", "hc_ffn_scale", "hc_head_scale")


def _logits(model: Transformer, tokens: Tensor) -> Tensor:
    output = model(tokens.flatten(), [tokens.shape[1]] * len(tokens))
    return model.logits(model.hidden(output.streams)).unflatten(0, tokens.shape)


def test_logits_equal_those_of_transformers(
    pair: tuple[Transformer, torch.nn.Module, Tensor],
) -> None:
    ours, theirs, tokens = pair
    with torch.no_grad():
        expected = theirs(input_ids=tokens, use_cache=False).logits
        difference = (_logits(ours, tokens) - expected).abs().max()
    assert expected.std() > 0.1
    assert difference < 1e-4


def test_loss_and_every_gradient(pair: tuple[Transformer, torch.nn.Module, Tensor]) -> None:
    ours, theirs, tokens = pair
    theirs.zero_grad()
    expected = theirs(input_ids=tokens, labels=tokens, use_cache=False).loss
    expected.backward()

    for parameter in ours.parameters():
        parameter.grad = None
    with use_backend("reference"):
        output = ours(tokens.flatten(), [tokens.shape[1]] * len(tokens))
    targets = torch.cat((tokens[:, 1:], torch.full((len(tokens), 1), -100)), 1).flatten()
    total = cross_entropy(ours.hidden(output.streams), ours.head.weight, targets)
    loss = total / (targets >= 0).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)

    gradients = dict(_published_gradients(theirs))
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            continue
        theirs_gradient = gradients.pop(name)
        if ".indexer." in name:  # a choice of entries has no gradient; its own loss trains it
            assert parameter.grad is None and theirs_gradient is None
            continue
        assert parameter.grad is not None and theirs_gradient is not None, name
        scale = theirs_gradient.abs().max()
        assert scale > 0, name
        bound = 1e-3 if name.endswith(CANCELLING) else 1e-4
        assert (parameter.grad - theirs_gradient).abs().max() < bound * scale, name
    assert not gradients


def _published_gradients(model: torch.nn.Module) -> list[tuple[str, Tensor | None]]:
    """Gradients under the names of our parameters; fused gate and up projections come apart."""
    named = []
    for name, parameter in model.named_parameters():
        fused = fused_experts(name)
        if fused is None:
            named.append((published_name(name), parameter.grad))
            continue
        prefix, weights, _ = fused
        assert parameter.grad is not None
        for weight, part in zip(weights, parameter.grad.chunk(len(weights), 1), strict=True):
            named.append((f"{prefix}.{weight}.weight", part))
    return named


def test_nothing_hangs_on_a_tie(
    pair: tuple[Transformer, torch.nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparisons above rest on: the last entry chosen is clearly ahead of the next, the
    last expert too, and no input of SwiGLU is so close to its limit that it may have a gradient in
    one implementation and none in the other."""
    ours, _, tokens = pair
    margins, from_limit = [], []

    def spy(q: Tensor, weights: Tensor, keys: Tensor, **where: int) -> Tensor:
        limit = where.pop("limit")
        scores = attention.index_scores(q, weights, keys, **where)
        best = scores.sort(-1, descending=True).values
        if best.shape[1] > limit:
            full = best[:, limit] > -torch.inf
            margins.append((best[full, limit - 1] - best[full, limit]).min())
        return attention.select_entries(q, weights, keys, limit=limit, **where)

    def spy_linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Tensor:
        result = linear(x, weight, simulate=simulate)
        if len(weight.values) == ours.config.moe_intermediate_size:
            from_limit.append((result.abs() - ours.config.swiglu_limit).abs().min())
        return result

    monkeypatch.setattr(compressor, "select_entries", spy)
    monkeypatch.setattr(experts, "linear", spy_linear)
    with torch.no_grad(), use_backend("reference"):
        routing = ours(tokens.flatten(), [tokens.shape[1]] * len(tokens)).routing
    assert margins and from_limit
    for block, routed in zip(ours.blocks, routing, strict=True):
        gate = block.ffn.gate
        if gate.bias is not None:
            best = (routed.scores + gate.bias).sort(-1, descending=True).values
            margins.append((best[:, gate.picks - 1] - best[:, gate.picks]).min())
    assert min(margins) > 2e-6
    assert min(from_limit) > 5e-6
