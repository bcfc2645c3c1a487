"""The objective: who predicts what, balance, steering, the schedule of attention, rounding."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sounding.config import ModelConfig
from sounding.data.token_batch import TokenBatch
from sounding.model.attention import Selection
from sounding.model.layers import Linear
from sounding.model.moe import Routing
from sounding.model.transformer import MTPBlock, Transformer
from sounding.ops import cpu
from sounding.ops.dispatch import Backend, use_backend
from sounding.ops.loss import IGNORED
from sounding.ops.quant import quantize_fp4, quantize_fp8
from sounding.simulation import QUANTIZATION_AWARE
from sounding.train import losses
from sounding.train.expert_load import gates, load_entropy, steer
from sounding.train.initialise import hash_table, initialise
from sounding.train.losses import (
    balance_loss,
    count_targets,
    sum_losses,
    token_after,
    weighted_loss,
)
from sounding.train.phases import Phase, phase_of
from sounding.train.run_config import SparsityConfig
from sounding.train.runs import copying

CONFIG = copying().model
LENGTHS = [7, 1, 150, 12]  # one long enough for every kind of entry


def network(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    initialise(model, dataclasses.replace(config, initializer_range=0.2), seed=1)
    return model


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(CONFIG.vocab_size, (n,), generator=generator) for n in LENGTHS]
    targets = [functional.pad(tokens[1:], (0, 1), value=IGNORED) for tokens in sequences]
    targets[2][5:9] = IGNORED  # as for a prompt
    return TokenBatch(torch.cat(sequences), torch.cat(targets), LENGTHS)


def test_the_target_after_a_target_stays_in_its_sequence() -> None:
    targets = torch.tensor([1, 2, IGNORED, 4, IGNORED, IGNORED, 7, 8, 9])
    after = token_after(targets, [3, 0, 2, 1, 3])
    none = IGNORED
    assert after.tolist() == [2, none, none, none, none, none, 8, 9, none]


def test_losses_are_those_of_each_sequence_alone() -> None:
    """Next-token and MTP losses, position by position, from logits of single sequences."""
    model, given = network(), batch()
    next_token = mtp = 0.0
    count = [0, 0]
    for tokens, targets in zip(
        given.tokens.split(LENGTHS), given.targets.split(LENGTHS), strict=True
    ):
        output = model(tokens, selection=Selection(dense=True))
        logits = model.logits(model.hidden(output.streams)).log_softmax(-1)
        block = model.mtp[0]
        assert isinstance(block, MTPBlock)
        if len(tokens) > 1:
            drafted = model.draft(output.streams[:-1], tokens[1:])
            ahead = model.logits(block.hidden(drafted.streams)).log_softmax(-1)
        for t in range(len(tokens)):
            if targets[t] != IGNORED:
                next_token -= float(logits[t, targets[t]].detach())
                count[0] += 1
            if t + 1 < len(tokens) and targets[t + 1] != IGNORED:
                mtp -= float(ahead[t, targets[t + 1]].detach())
                count[1] += 1
    sums = sum_losses(model, given, "dense")
    assert sums["next_token"].item() == pytest.approx(next_token, rel=1e-5)
    assert sums["mtp"].item() == pytest.approx(mtp, rel=1e-5)
    assert count_targets(given, 1) == {
        "targets": count[0],
        "mtp_targets": count[1],
        "tokens": sum(LENGTHS),
        "middles": 0,
    }


def test_middles_weigh_more_as_if_they_had_come_more_often() -> None:
    model, given = network(), batch()
    given = dataclasses.replace(given, middles=[3, 0, 40, 0])
    rows, wanted = losses.middle_rows(given)
    ends = list(itertools.accumulate(LENGTHS))
    expected = [*range(ends[0] - 4, ends[0] - 1), *range(ends[2] - 41, ends[2] - 1)]
    assert rows[:43].tolist() == expected
    assert torch.equal(wanted[:43], given.targets[rows[:43]])
    assert len(rows) == 256 and (wanted[43:] == IGNORED).all()

    counts = count_targets(given, 1)
    assert counts["middles"] == 43
    sums = sum_losses(model, given, "dense", middles=True)
    hidden = model.hidden(model(given.tokens, LENGTHS, selection=Selection(dense=True)).streams)
    loss = functional.cross_entropy(
        model.logits(hidden[expected]), given.targets[expected], reduction="sum"
    )
    assert sums["middles"].item() == pytest.approx(loss.item(), rel=1e-5)
    one, four = (
        weighted_loss(sums, counts, mtp_weight=0.0, balance_weight=0.0, middle_weight=weight)
        for weight in (1.0, 4.0)
    )
    assert (four - one).item() == pytest.approx(3 * loss.item() / counts["targets"], rel=1e-4)
    assert sum_losses(model, given, "dense")["middles"] == 0
    more = given.padded(sum(LENGTHS) + 5)
    assert torch.equal(losses.middle_rows(more)[0], rows)


@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_filling_a_batch_up_changes_no_loss(phase: Phase) -> None:
    model, given = network(), batch()
    more = given.padded(200)
    assert len(more.tokens) == 200 and sum(more.lengths) == 200
    assert more.padded(150) is more
    assert count_targets(given, 1)["targets"] == count_targets(more, 1)["targets"]
    before, after = (sum_losses(model, one, phase) for one in (given, more))
    for name in ("next_token", "mtp"):
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")
@pytest.mark.parametrize(
    # Not both rounded and sparse: FP4 index scores tie so often that last bits decide.
    ("phase", "qat"),
    [("dense", False), ("sparse", False), ("dense", True)],
)
def test_twins_for_training_give_the_same_losses_and_gradients(phase: Phase, qat: bool) -> None:
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    backends: tuple[Backend, ...] = ("reference", "training")
    for backend in backends:
        model = network()
        if qat:
            model = Transformer(CONFIG, QUANTIZATION_AWARE)
            initialise(model, dataclasses.replace(CONFIG, initializer_range=0.2), seed=1)
        with use_backend(backend):
            sums = sum_losses(model, batch(), phase)
            loss = weighted_loss(
                sums, count_targets(batch(), 1), mtp_weight=0.3, balance_weight=0.01
            )
            loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    (loss, gradients), (twin_loss, twin_gradients) = found
    torch.testing.assert_close(twin_loss, loss)
    assert gradients.keys() == twin_gradients.keys()
    # Rounding to FP8 moves where float32 sums differ in their last bit. The coefficients of
    # hyper-connections are sums that nearly cancel: held to the network's largest gradient.
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        size = largest if "hc_" in name else float(gradient.abs().max())
        error = float((twin_gradients[name] - gradient).abs().max())
        assert error <= (2e-2 if qat else 1e-4) * size, name


def test_balance_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens, experts, picks, lengths = 11, 5, 2, [4, 0, 6, 1]
    layers = []
    for _ in range(3):
        scores = torch.rand(tokens, experts, generator=generator)
        layers.append(Routing(scores.topk(picks).indices, scores))
    expected = 0.0
    for routing in layers:
        first = 0
        for length in lengths:
            rows = range(first, first + length)
            for e in range(experts):
                chosen = sum(int(e in routing.chosen[t].tolist()) for t in rows)
                share = sum(float(routing.scores[t, e] / routing.scores[t].sum()) for t in rows)
                if length:
                    f, p = experts / (picks * length) * chosen, share / length
                    expected += length * f * p
            first += length
    assert balance_loss(layers, lengths).item() == pytest.approx(expected, rel=1e-5)


def test_balance_pushes_against_overload() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2]] * 4, requires_grad=True)
    loss = balance_loss([Routing(torch.tensor([[0]] * 4), scores)], [4])
    loss.backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] > 0).all() and (scores.grad[:, 1:] < 0).all()


def test_biases_are_steered_towards_an_even_load() -> None:
    model = network()
    loads = torch.tensor([[4, 0, 0, 0], [3, 1, 2, 2], [2, 2, 2, 2], [0, 0, 8, 0], [1, 3, 2, 2]])
    steer(model, loads, 0.25)
    found = gates(model)
    assert found[0].bias is None  # hash-routed
    assert found[1].bias.tolist() == [-0.25, 0.25, 0, 0]
    assert found[2].bias.tolist() == [0, 0, 0, 0]
    assert found[3].bias.tolist() == [0.25, 0.25, -0.25, 0.25]
    assert found[4].bias.tolist() == [0.25, -0.25, 0, 0]  # of the MTP block


def test_load_entropy_tells_even_from_collapsed() -> None:
    loads = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]])
    assert load_entropy(loads) == pytest.approx([1.0, 0.0, 0.5])


def test_phases_follow_each_other() -> None:
    config = SparsityConfig(dense_steps=2, indexer_steps=1)
    found = [phase_of(step, config) for step in range(5)]
    assert found == ["dense", "dense", "indexer", "sparse", "sparse"]
    assert phase_of(0, SparsityConfig()) == "sparse"


def gradients(model: Transformer, phase: Phase) -> dict[str, Tensor | None]:
    model.zero_grad()
    given = batch()
    counts = count_targets(given, 1)
    sums = sum_losses(model, given, phase)
    weighted_loss(sums, counts, mtp_weight=0.3, balance_weight=1e-4).backward()
    return {name: param.grad for name, param in model.named_parameters() if param.requires_grad}


def test_the_indexer_learns_from_its_own_loss_and_nobody_else_does() -> None:
    model = network()
    dense, indexer = gradients(model, "dense"), gradients(model, "indexer")
    sparse = gradients(model, "sparse")
    for name in dense:
        mine = ".indexer." in name
        assert (dense[name] is None) == mine, name
        assert (indexer[name] is None) != mine, name
        assert sparse[name] is not None, name
    # With as many picks as entries sparse attention is dense, so the network's gradients agree.
    plenty = network(dataclasses.replace(CONFIG, index_topk=64))
    wide = gradients(plenty, "sparse")
    for name, gradient in gradients(plenty, "dense").items():
        if gradient is not None:
            torch.testing.assert_close(wide[name], gradient, rtol=1e-4, atol=1e-6)


def test_hash_tables_are_balanced_and_distinct() -> None:
    for vocab, experts, picks in ((640, 16, 2), (500, 16, 6), (64, 4, 2), (7, 5, 5)):
        table = hash_table(vocab, experts, picks, torch.Generator().manual_seed(0))
        assert table.shape == (vocab, picks)
        assert all(len(set(row)) == picks for row in table.tolist())
        counts = table.flatten().bincount(minlength=experts)
        assert counts.sum() == vocab * picks
        assert counts.max() - counts.min() <= math.lcm(picks, experts) // experts
        pairs = {tuple(sorted(row)) for row in table.tolist()}
        assert len(pairs) > min(vocab, math.comb(experts, picks)) // 3  # not always the same ones


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    first, again = network(), network()
    for (name, one), (_, two) in zip(
        first.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    other = Transformer(CONFIG)
    initialise(other, CONFIG, seed=2)
    assert not torch.equal(first.head.weight, other.head.weight)
    weights = [p.flatten()[:64] for n, p in other.named_parameters() if n.endswith("_fn")]
    assert all(not torch.equal(one, two) for one, two in itertools.combinations(weights, 2))


def test_the_network_starts_as_a_plain_residual() -> None:
    """With gating factors at exactly 0 the streams stay equal, each the sum of all outputs."""
    model = network()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("_scale"):
                param.zero_()
        streams = model(batch().tokens, LENGTHS).streams
    torch.testing.assert_close(streams, streams[:, :1].expand_as(streams), rtol=1e-3, atol=1e-4)


def test_quantization_aware_weights_are_those_of_the_packed_format() -> None:
    for format, quantize in (("fp8", quantize_fp8), ("fp4", quantize_fp4)):
        layer = Linear(64, 40, format=format, simulation=QUANTIZATION_AWARE)  # type: ignore[arg-type]
        torch.nn.init.normal_(layer.weight, std=0.05)
        plain = Linear(64, 40, format=format)  # type: ignore[arg-type]
        values, scale = quantize(layer.weight.detach())
        plain.weight = torch.nn.Parameter(values, requires_grad=False)
        plain.scale = torch.nn.Parameter(scale, requires_grad=False)
        x = torch.randn(3, 64)
        packed = functional.linear(x, plain.stored.dense(torch.float32))
        assert torch.equal(functional.linear(x, layer.stored.dense(torch.float32)), packed)
        layer.stored.dense(torch.float32).sum().backward()
        assert layer.weight.grad is not None
        assert torch.equal(layer.weight.grad, torch.ones(40, 64))
