"""Experts read from disk when a step needs them, beside the same network in memory.

Catches: a result that depends on what was in memory, on the order of arrival, on the budget, the
policy or the layout of the files; a slot that is written while it is read; a step that waits for a
slot that nobody gives back.
"""

import mmap
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.native.expert_policy import ExpertPolicy, LeastRecentlyUsed, MostFrequentlyUsed
from sounding.native.expert_store import ExpertStore, share_slots
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.simulation import DEPLOYED
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles, ReadCall
from sounding.weights.state_dict import write_state
from tests.native.streamed import LENGTH, NAMES, TOKENS, in_memory, run, streamed, whole
from tests.networks import DSPARK, make_network

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")


class Arbitrary:
    """A policy that keeps any experts."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def use(self, layer: int, experts: Sequence[int]) -> None:
        pass

    def keep(self, layer: int, experts: Collection[int], count: int) -> set[int]:
        count = min(int(self._generator.integers(count + 1)), len(experts))
        return set(self._generator.choice(sorted(experts), count, replace=False).tolist())


# --------------------------------------------------------------------------------------------------
# The same bits


def policies(seed: int) -> ExpertPolicy:
    return (LeastRecentlyUsed(), MostFrequentlyUsed(), Arbitrary(seed))[seed % 3]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**20))
def test_any_budget_policy_split_company_and_draft_gives_the_bits_of_memory(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def draw(high: int) -> int:
        return int(generator.integers(high))

    def slow_read(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        time.sleep(0.002 * float(generator.random()))
        return os.preadv(file, buffers, offset)

    slots = 1 + draw((2, 12, 60)[draw(3)])
    network = streamed(
        slots=slots,
        policy=policies(seed),
        readers=1 + draw(4),
        read=slow_read if draw(2) else os.preadv,
    )
    assert network.store is not None
    try:
        states = [network.new_state(rewind_tokens=6) for _ in range(2)]
        while min(state.length for state in states) < LENGTH:
            lengths = [min(LENGTH - s.length, draw((3, 20, 80)[draw(3)])) for s in states]
            starts = [state.length for state in states]
            chunk = [t for s, n in zip(starts, lengths, strict=True) for t in TOKENS[s : s + n]]
            streams = network.predict(chunk, (), lengths, states).streams
            for start, own in zip(starts, np.split(streams, lengths[:1]), strict=True):
                assert np.array_equal(own, whole()[start : start + len(own)])
            other = states[draw(2)]
            if draw(2) and other.length > 3:
                state = other.fork()
                run(network, TOKENS[-4:], state)  # drafts, which are taken back
                state.rewind(other.length)
        following = [*TOKENS[1:9], 0]
        drafts, expected = (
            each.draft(whole()[:9], following, [9], [each.new_state()])
            for each in (network, in_memory())
        )
        assert np.array_equal(drafts, expected)
    finally:
        network.store.close()


def test_logits_are_those_of_memory(make: Callable[..., KernelNetwork]) -> None:
    network = make(slots=5)
    rows = list(range(0, LENGTH, 7))
    mine, expected = (
        each.predict(TOKENS, rows, [LENGTH], [each.new_state()]) for each in (network, in_memory())
    )
    assert np.array_equal(mine.logits, expected.logits)
    assert np.array_equal(mine.chosen, expected.chosen)
    assert network.fingerprint() == in_memory().fingerprint()
    assert network.nbytes == in_memory().nbytes
    assert network.parameter_sizes() == in_memory().parameter_sizes()


# --------------------------------------------------------------------------------------------------
# What is read, and when


def counted(reads: list[int]) -> ReadCall:
    def call(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        reads.append(offset)
        return os.preadv(file, buffers, offset)

    return call


def test_a_prompt_reads_each_expert_once_whatever_the_budget(
    make: Callable[..., KernelNetwork],
) -> None:
    network = make(slots=3, quotas=[0] * len(NAMES))
    made = network.predict(TOKENS, (), [LENGTH], [network.new_state()])
    assert network.store is not None
    needed = [(layer, e) for layer, row in enumerate(made.chosen) for e in np.unique(row).tolist()]
    stats = network.store.stats()
    assert stats.hits + stats.ahead + stats.misses == len(needed)
    assert stats.bytes_read == sum(network.store.files.nbytes(*key) for key in needed)


def test_what_is_kept_is_not_read_again(make: Callable[..., KernelNetwork]) -> None:
    reads: list[int] = []
    network = make(slots=8 * len(NAMES) + 1, quotas=[8] * len(NAMES), read=counted(reads))
    first = run(network, TOKENS)
    before = len(reads)
    assert np.array_equal(run(network, TOKENS), first)
    assert len(reads) == before > 0


def test_a_prompt_at_once_leaves_the_experts_that_it_leaves_token_by_token(
    make: Callable[..., KernelNetwork],
) -> None:
    """Then a decode step after a long prompt finds what it would after a conversation."""
    networks = [make(slots=30, quotas=[3] * len(NAMES)) for _ in range(2)]
    run(networks[0], TOKENS)
    state = networks[1].new_state()
    for token in TOKENS:
        run(networks[1], [token], state)
    # The last layer holds what the step computed last until the next step.
    once, slowly = (net.store.kept()[:4] for net in networks if net.store is not None)
    assert once == slowly
    assert [len(experts) for experts in once] == [3, 3, 3, 3]


def test_experts_of_hash_layers_are_read_before_their_layer_asks(
    make: Callable[..., KernelNetwork],
) -> None:
    network = make(slots=40, quotas=[0] * len(NAMES))
    run(network, [5])
    assert network.store is not None
    assert network.store.stats().ahead == network.config.num_experts_per_tok


def test_slots_are_shared_by_layers_and_some_left_for_reads() -> None:
    assert share_slots([256] * 43, 300, 4) == [7] * 18 + [6] * 25
    assert share_slots([8, 4], 100, 4) == [8, 4]
    assert share_slots([8, 8], 1, 4) == [0, 0]
    for slots in range(1, 200):
        quotas = share_slots([16, 16, 4], slots, 4)
        assert sum(quotas) < slots
        assert max(quotas[:2]) <= 16 and quotas[2] <= 4


# --------------------------------------------------------------------------------------------------
# Other networks


@pytest.fixture(scope="module")
def dspark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in bfloat16 with a DSpark drafter, whose blocks have fewer experts."""
    model = make_network(DSPARK, dtype=torch.bfloat16)
    folder = tmp_path_factory.mktemp("dspark") / "model"
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_state(state, DSPARK, folder)
    return folder


def test_blocks_of_a_drafter_are_those_of_memory(dspark_folder: Path) -> None:
    """Its experts are on disk too, here unquantized."""
    checkpoint = Checkpoint(dspark_folder)
    config = checkpoint.config
    names = [f"layers.{n}" for n in range(config.num_hidden_layers)]
    blocks = [f"mtp.{n}" for n in range(config.num_dspark_blocks)]
    counts = [config.n_routed_experts] * len(names) + [config.draft_experts] * len(blocks)
    store = ExpertStore(ExpertFiles(checkpoint, names + blocks, counts), slots=3)
    mine = KernelNetwork(config, checkpoint.read_all(), DEPLOYED, store=store)
    theirs = KernelNetwork(config, checkpoint.read_all(), DEPLOYED)
    made = []
    for network in (mine, theirs):
        drafter, state = network.block_drafter, network.new_state()
        assert drafter is not None
        streams = network.predict(list(range(30)), [], [30], [state]).streams
        drafter.read(streams, [30], [state])
        made.append((streams, *drafter.draft([7], [state])))
    store.close()
    for one, other in zip(*made, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("odd", range(4))
def test_numbers_that_lie_unaligned_in_a_file_are_read_aligned(
    odd: int, dspark_folder: Path, tmp_path: Path
) -> None:
    """A header may end anywhere."""
    for path in dspark_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].rstrip(b" ")
        header += b" " * ((odd - 8 - len(header)) % 4)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    found = []
    for folder in (tmp_path, dspark_folder):
        files = ExpertFiles(Checkpoint(folder), ["layers.1"], [DSPARK.n_routed_experts])
        slot = memoryview(mmap.mmap(-1, files.slot_bytes))
        files.read(0, 2, slot)
        place, sources = files.place(0, 2), files.sources[0]
        assert all(offset % 2 == 0 for offset in place.values)
        size = sources["w1.weight"].num_bytes
        found.append([bytes(slot[offset : offset + size]) for offset in place.values])
        files.close()
    assert found[0] == found[1]
