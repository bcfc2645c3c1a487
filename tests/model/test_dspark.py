"""The DSpark drafter beside scalar loops, and what its state must be."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sounding.config import ModelConfig
from sounding.model.dspark import DSpark
from sounding.model.state import TensorState, growing_state, packed_state
from sounding.model.transformer import Transformer
from tests.networks import DSPARK, NetworkMaker
from tests.oracles import Array
from tests.oracles import dspark as oracle
from tests.oracles.compare import array, assert_matches

CONFIG, BLOCK = DSPARK, 4
LENGTHS = (37, 5, 16)


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG, dtype=torch.float64)


def tokens_of(length: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(1))


def drafter_of(network: Transformer) -> DSpark:
    assert network.dspark is not None
    return network.dspark


def read(network: Transformer, tokens: Tensor, state: TensorState) -> None:
    """Append tokens to a sequence, which the drafter reads too."""
    taps = network(tokens, None, [state]).taps
    assert taps is not None
    drafter_of(network).read(taps, [len(tokens)], [state.blocks])


def draft(
    network: Transformer, anchors: Sequence[int], states: Sequence[TensorState]
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens [n, b], their logits and survival probabilities."""
    made = network.draft_block(torch.tensor(anchors), states)
    previous, drafts, logits, survival = torch.tensor(anchors), [], [], []
    for row in range(BLOCK):
        correction = drafter_of(network).correct(made.hidden[:, row], previous)
        logits.append(made.logits[:, row] + correction.bias)
        survival.append(correction.confidence.sigmoid())
        previous = logits[-1].argmax(-1)
        drafts.append(previous)
    return torch.stack(drafts, 1), torch.stack(logits, 1), torch.stack(survival, 1)


def dense_weights(network: Transformer) -> dict[str, Array]:
    """Under the published names, each expert by itself."""
    weights = {}
    for name, parameter in network.named_parameters():
        before, stacked, leaf = name.partition(".ffn.experts.")
        if not stacked:
            weights[name] = array(parameter)
            continue
        for expert, each in enumerate(parameter):
            weights[f"{before}.ffn.experts.{expert}.{leaf}"] = array(each)
    return weights


def shape_of(config: ModelConfig) -> oracle.Shape:
    assert config.dspark is not None
    return oracle.Shape(
        stages=3,
        block=BLOCK,
        noise=config.dspark.noise_token_id,
        window=config.sliding_window,
        heads=config.num_attention_heads,
        rotary=config.qk_rope_head_dim,
        rope_base=config.rope_theta,
        groups=config.o_groups,
        picks=2,
        route_scale=config.routed_scaling_factor,
        swiglu_limit=config.swiglu_limit,
        sinkhorn=config.hc_sinkhorn_iters,
    )


def streams_after(network: Transformer, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The streams [t, m, c] behind some layers."""
    found: dict[int, Tensor] = {}
    hooks = [
        network.blocks[layer].register_forward_hook(
            lambda _, given, made, layer=layer: found.update({layer: made[0]})
        )
        for layer in layers
    ]
    network(tokens)
    for hook in hooks:
        hook.remove()
    return [found[layer] for layer in layers]


@torch.no_grad()
def test_scalar_loops_agree_past_the_window_and_in_company(network: Transformer) -> None:
    """Catches: rows read one too far, a causal mask, a window that moves on within the block, the
    pair of a wrong token, layers in another order, the confidence of a normed row."""
    states = [growing_state(CONFIG) for _ in LENGTHS]
    for length, state in zip(LENGTHS, states, strict=True):
        read(network, tokens_of(length), state)
    anchors = [3, 8, 1]
    found = draft(network, anchors, states)
    weights = dense_weights(network)
    for i, length in enumerate(LENGTHS):
        after = streams_after(network, tokens_of(length), (2, 0))
        mains = [oracle.main_hidden([array(x[t]) for x in after]) for t in range(length)]
        tokens, logits, survival = oracle.draft(weights, shape_of(CONFIG), mains, anchors[i])
        assert found[0][i].tolist() == tokens
        for row in range(BLOCK):
            # Rotary angles are float32 products, whatever the network computes in.
            assert_matches(found[1][i, row], logits[row], precision=torch.float32)
            assert float(found[2][i, row]) == pytest.approx(survival[row], rel=2e-6)


@torch.no_grad()
def test_any_split_and_rejected_tokens_leave_the_same_state(network: Transformer) -> None:
    tokens = tokens_of(45)
    whole, parts = growing_state(CONFIG), growing_state(CONFIG, rewind_tokens=6)
    read(network, tokens, whole)
    low = 0
    for high in (20, 21, 40, 45):
        output = network(torch.cat((tokens[low:high], tokens[:6])), None, [parts])
        parts.rewind(high)  # the last six were drafts, which the drafter never reads
        assert output.taps is not None
        drafter_of(network).read(output.taps[: high - low], [high - low], [parts.blocks])
        low = high
    expected, found = draft(network, [9], [whole]), draft(network, [9], [parts])
    assert torch.equal(expected[0], found[0])
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_block_leaves_no_trace(network: Transformer) -> None:
    state = growing_state(CONFIG)
    read(network, tokens_of(30), state)
    before = state.serialize()
    first = draft(network, [5], [state])
    assert state.serialize() == before
    assert torch.equal(first[1], draft(network, [5], [state])[1])


@torch.no_grad()
def test_a_window_is_all_that_a_block_sees(network: Transformer) -> None:
    """So a drafter that reads no more of a prompt than its end drafts the same."""
    tokens = tokens_of(50)
    whole, end = growing_state(CONFIG), growing_state(CONFIG)
    taps = network(tokens, None, [whole]).taps
    assert taps is not None
    drafter = drafter_of(network)
    drafter.read(taps, [50], [whole.blocks])
    drafter.read(taps[-16:], [16], [end.blocks])
    expected, found = draft(network, [2], [whole]), draft(network, [2], [end])
    # Positions differ, whose angles are float32 products.
    assert torch.allclose(expected[1], found[1], rtol=1e-5, atol=1e-5)
    drafter.read(taps[-17:-16] + 1, [1], [end.blocks])  # one more moves the window
    assert not torch.allclose(draft(network, [2], [end])[1], found[1], rtol=1e-3)


@torch.no_grad()
def test_going_back_keeps_what_the_drafter_has_read(network: Transformer) -> None:
    """Its rows belong to the tokens themselves, so it is not one behind like an MTP block."""
    state, shorter = growing_state(CONFIG, rewind_tokens=4), growing_state(CONFIG)
    read(network, tokens_of(40), state)
    read(network, tokens_of(40)[:37], shorter)
    state.rewind(37)
    assert [each.length for each in state.blocks] == [37] * 3
    assert torch.allclose(
        draft(network, [2], [state])[1], draft(network, [2], [shorter])[1], rtol=1e-9
    )


@torch.no_grad()
def test_a_packed_state_serves_the_drafter(network: Transformer) -> None:
    state = packed_state(CONFIG, max_tokens=64)
    read(network, tokens_of(40), state)
    twin = packed_state(CONFIG, max_tokens=64)
    twin.restore(state.serialize())
    assert torch.equal(draft(network, [2], [state])[1], draft(network, [2], [twin])[1])
