"""Adapters on the C++ kernels beside networks with the same deltas merged.

Catches: a delta that is accepted and not applied, or applied to another expert, group or sequence;
bits that depend on the company of a sequence or on how it is split; a base that changes because
others have adapters.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sounding.model.adapters import adapted
from sounding.model.from_checkpoint import load_model
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.weights.adapters import Adapter, Delta, adaptable
from sounding.weights.checkpoint import Checkpoint
from tests.adapters import random_adapter
from tests.networks import kernel_network

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"
CONFIG = Checkpoint(VECTORS).config
TOKENS = np.random.default_rng(5).integers(512, size=90).tolist()
TARGETS = sorted({module.split(".", 2)[2] for module in adaptable(CONFIG)})


@cache
def network() -> KernelNetwork:
    checkpoint = Checkpoint(VECTORS)
    return KernelNetwork(checkpoint.config, checkpoint.read_all())


def run(
    adapters: list[Adapter | None], pieces: tuple[int, ...] = (90,), of: KernelNetwork | None = None
) -> list[NDArray[np.float32]]:
    """Logits of every position, of sequences with these adapters that share each step."""
    model = of or network()
    states = [model.new_state() for _ in adapters]
    for state, adapter in zip(states, adapters, strict=True):
        state.adapter = None if adapter is None else model.load_adapter(adapter)
    found: list[list[NDArray[np.float32]]] = [[] for _ in adapters]
    first = 0
    for size in pieces:
        tokens = []
        for number in range(len(adapters)):
            tokens += np.roll(TOKENS, number)[first : first + size].tolist()
        rows = range(len(tokens))
        logits = model.predict(tokens, rows, [size] * len(adapters), states).logits
        for number, part in enumerate(np.split(logits, len(adapters))):
            found[number].append(part)
        first += size
    return [np.concatenate(parts) for parts in found]


@pytest.mark.parametrize("target", TARGETS)
def test_an_unmerged_delta_does_what_a_merged_one_does(target: str) -> None:
    adapter = random_adapter(CONFIG, only=[target], rank=5)
    assert adapter.deltas
    # In float32: what is left between both is the rounding of merged weights to bfloat16.
    base = load_model(Checkpoint(VECTORS), dtype=torch.bfloat16, dequantize=torch.bfloat16)
    whole = adapted(base, adapter)
    for module in adapter.deltas:
        linear = whole.get_submodule(module)
        weight = whole.get_parameter(f"{module}.weight").bfloat16()
        linear.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    merged = run([None], of=kernel_network(whole))[0]
    plain, unmerged = run([None])[0], run([adapter])[0]
    # A choice of experts that is nearly even may fall otherwise: a few rows differ by more.
    errors = np.abs(unmerged - merged).mean(-1)
    effects = np.abs(unmerged - plain).mean(-1)
    assert np.median(errors) < np.median(effects) / 4


def test_company_does_not_change_a_bit() -> None:
    one, other = random_adapter(CONFIG, seed=1), random_adapter(CONFIG, seed=2, rank=33)
    together = run([None, one, other, one, None])
    assert np.array_equal(together[0], run([None])[0])
    everyone: list[Adapter | None] = [None, one, other, one, None]
    for number, adapter in enumerate(everyone):
        before: list[Adapter | None] = [None] * number
        alone = run([*before, adapter])[number]
        assert np.array_equal(together[number], alone), number


def test_splits_do_not_change_a_bit() -> None:
    adapter = random_adapter(CONFIG)
    whole = run([adapter, None])
    parts = run([adapter, None], (1, 2, 30, 1, 56))
    for expected, found in zip(whole, parts, strict=True):
        assert np.array_equal(expected, found)


def test_long_chunks_keep_their_adapters() -> None:
    """Those are run in pieces, sequence by sequence."""
    adapter = random_adapter(CONFIG)
    tokens = (TOKENS * 14)[:1200]
    logits = []
    for company in (False, True):
        states = [network().new_state() for _ in range(1 + company)]
        states[0].adapter = network().load_adapter(adapter)
        lengths = [600] * len(states)
        made = network().predict(tokens[: sum(lengths)], [599], lengths, states)
        logits.append(made.logits)
    assert np.array_equal(logits[0], logits[1])


def test_a_fork_keeps_its_adapter() -> None:
    state = network().new_state()
    state.adapter = network().load_adapter(random_adapter(CONFIG))
    network().predict(TOKENS[:20], (), [20], [state])
    twin = state.fork()
    ahead = [network().predict([7], [0], [1], [each]).logits for each in (state, twin)]
    assert np.array_equal(ahead[0], ahead[1])


def test_an_adapter_of_another_shape_is_refused_by_name() -> None:
    adapter = random_adapter(CONFIG)
    name = "layers.1.attn.wq_b"
    low, high = adapter.deltas[name]
    wrong = Adapter({**adapter.deltas, name: Delta(low[:, :-1], high)}, 1.0, "")
    with pytest.raises(ValueError, match=r"layers\.1\.attn\.wq_b\.lora_A"):
        network().load_adapter(wrong)
