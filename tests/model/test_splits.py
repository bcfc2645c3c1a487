"""Any split of a sequence gives the same result: the sentence the design stands on.

However tokens arrive (one by one, in chunks across window, group and top-k boundaries, among other
sequences, after rejected drafts, on a fork, after save and restore), logits of the network and of
its MTP block are those of one chunk over the whole sequence. That catches state that is kept a
token too short or too long, entries made from the wrong group, positions counted from the chunk,
ties broken by the length of a list, and anything that leaks between sequences.

Two results may differ where a choice is nearly a tie or a value lies where rounding turns. In
float64 that is out of reach. In float32 the sequences are ones whose every choice has a margin far
above the noise, which `test_choices_are_clear` measures. With rounding of activations in float32 a
whole network is chaotic, so there each layer is compared alone, and a difference must be explained
by a stored number that was rounded to its neighbour.
"""

import copy
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.config import CSA
from sounding.model.block import Block
from sounding.model.chunk import make_chunk
from sounding.model.state import TensorState, growing_state, packed_state
from sounding.model.transformer import Transformer
from sounding.ops import attention
from sounding.presets import tiny
from sounding.simulation import EXACT, Simulation
from tests.networks import make_network

CONFIG = tiny()
REWIND = 6  # as many tokens as a draft may bring
ROUNDED = Simulation(kv=True, indexer=True)


@dataclass(frozen=True)
class Case:
    """A network, a storage, and how far two splits may be apart in logits of about 1."""

    dtype: torch.dtype
    simulation: Simulation
    packed: bool
    tolerance: float

    def new_state(self) -> TensorState:
        if self.packed:
            return packed_state(CONFIG, max_tokens=320, rewind_tokens=REWIND)
        return growing_state(CONFIG, rewind_tokens=REWIND)


CASES = {
    "growing-float64": Case(torch.float64, EXACT, False, 1e-9),
    "growing-rounded-float64": Case(torch.float64, ROUNDED, False, 1e-9),
    "packed-float64": Case(torch.float64, ROUNDED, True, 1e-9),
    "growing-float32": Case(torch.float32, EXACT, False, 1e-4),
}

# (length, seed): sequences on which no choice is close, see test_choices_are_clear.
SEQUENCES = ((300, 300003), (170, 170012), (90, 90008))

NETWORKS: dict[tuple[torch.dtype, Simulation], Transformer] = {}
WHOLE: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}


def tokens_of(sequence: int) -> Tensor:
    """One token more than is fed to the network: the last one's next."""
    length, seed = SEQUENCES[sequence]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(CONFIG.vocab_size, (length,), generator=generator)
    return torch.cat((tokens, torch.tensor([7])))


def network_of(case: Case) -> Transformer:
    key = case.dtype, case.simulation
    if key not in NETWORKS:
        NETWORKS[key] = make_network(CONFIG, dtype=case.dtype, simulation=case.simulation)
    return NETWORKS[key]


class Timeline:
    """One sequence as a server runs it: its state, and the streams of its tokens so far."""

    def __init__(self, case: Case, sequence: int = 0) -> None:
        self.case = case
        self.network = network_of(case)
        self.state = case.new_state()
        self.truth = tokens_of(sequence)
        self.streams: list[Tensor] = []  # one per token
        self.drafted: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.streams)

    @property
    def total(self) -> int:
        return len(self.truth) - 1

    def feed(self, tokens: Tensor) -> None:
        self.streams += self.network(tokens, None, [self.state]).streams

    def accept(self, count: int) -> None:
        self.feed(self.truth[len(self) : min(len(self) + count, self.total)])

    def reject(self, kept: int, wrong: int) -> None:
        """A chunk of right and wrong tokens, of which only the right ones stay."""
        kept = min(kept, self.total - len(self))
        start = len(self)
        right = self.truth[start : start + kept]
        guessed = (self.truth[start : start + wrong] + 1) % CONFIG.vocab_size
        chunk = torch.cat((right, guessed))
        self.feed(chunk)
        if wrong % 2:  # drafting may go on from what is about to be rejected
            self.draft_with(torch.cat((self.truth[:start], chunk, chunk.new_tensor([3]))))
        self.state.rewind(start + kept)
        del self.streams[start + kept :]
        del self.drafted[max(0, start + kept - 1) :]

    def draft(self) -> None:
        self.draft_with(self.truth)

    def draft_with(self, tokens: Tensor) -> None:
        """Run the MTP block on every position it has not seen yet."""
        done = len(self.drafted)
        if done < len(self):
            streams = torch.stack(self.streams[done:])
            following = tokens[done + 1 : len(self) + 1]
            self.drafted += self.network.draft(streams, following, None, [self.state]).streams

    def save_and_restore(self) -> None:
        restored = self.case.new_state()
        restored.restore(self.state.serialize())
        self.state = restored

    def fork(self) -> "Timeline":
        twin = copy.copy(self)
        twin.state = self.state.fork()
        twin.streams, twin.drafted = list(self.streams), list(self.drafted)
        return twin

    def finish(self) -> None:
        self.accept(self.total)
        self.draft()

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of the network and of its MTP block, for every token."""
        network = self.network
        hidden = network.hidden(torch.stack(self.streams))
        block: Any = network.mtp[0]
        drafted = block.hidden(torch.stack(self.drafted))
        return network.logits(hidden), network.logits(drafted)


def whole(name: str, sequence: int) -> tuple[Tensor, Tensor]:
    """The logits of one chunk over the whole sequence."""
    if (name, sequence) not in WHOLE:
        timeline = Timeline(CASES[name], sequence)
        timeline.finish()
        WHOLE[name, sequence] = timeline.logits()
    return WHOLE[name, sequence]


def assert_same(timeline: Timeline, name: str, sequence: int = 0) -> None:
    for actual, expected in zip(timeline.logits(), whole(name, sequence), strict=True):
        apart = (actual - expected).abs().amax(-1)
        worst = int(apart.argmax())
        assert apart[worst] <= CASES[name].tolerance, (
            f"position {worst} is off by {apart[worst]:.2e}"
        )


CASE = pytest.mark.parametrize("name", CASES)
SOME = pytest.mark.parametrize("name", ["growing-float64", "packed-float64", "growing-float32"])
# Often a few tokens, often a length at which something is full or complete.
COUNTS = st.one_of(
    st.integers(0, 6), st.integers(1, 140), st.sampled_from([4, 64, 124, 127, 128, 129])
)


@SOME
@settings(max_examples=5)
@given(pieces=st.lists(COUNTS, max_size=12))
def test_results_do_not_depend_on_how_a_sequence_is_split(name: str, pieces: list[int]) -> None:
    timeline = Timeline(CASES[name])
    for count in pieces:
        timeline.accept(count)
    timeline.finish()
    assert_same(timeline, name)


@CASE
def test_token_by_token(name: str) -> None:
    """Through the first group boundaries, across the window and into its second group."""
    timeline = Timeline(CASES[name])
    for count in (*[1] * 10, 114, *[1] * 12, 117, *[1] * 8):
        timeline.accept(count)
        timeline.draft()
    timeline.finish()
    assert_same(timeline, name)


EVENTS = st.one_of(
    st.tuples(st.just("accept"), COUNTS),
    st.tuples(st.just("reject"), st.integers(0, 9), st.integers(1, REWIND)),
    st.tuples(st.just("draft")),
    st.tuples(st.just("save")),
    st.tuples(st.just("fork"), st.booleans()),
)


@SOME
@settings(max_examples=8)
@given(events=st.lists(EVENTS, max_size=12))
def test_rejected_drafts_forks_and_restores_leave_no_trace(
    name: str, events: list[tuple[Any, ...]]
) -> None:
    """Rejected drafts, forks that go another way, saving and restoring: none leaves a trace."""
    timeline = Timeline(CASES[name])
    for kind, *how in events:
        if kind == "accept":
            timeline.accept(*how)
        elif kind == "reject":
            timeline.reject(*how)
        elif kind == "draft":
            timeline.draft()
        elif kind == "save":
            timeline.save_and_restore()
        else:
            twin = timeline.fork()
            other, timeline = (timeline, twin) if how[0] else (twin, timeline)
            other.feed(torch.tensor([5, 9, 2]))
            other.draft_with(torch.cat((timeline.truth[: len(timeline)], other.truth[:4])))
    timeline.finish()
    assert_same(timeline, name)


@SOME
@settings(max_examples=3)
@given(rounds=st.lists(st.tuples(COUNTS, COUNTS, COUNTS), max_size=6))
def test_results_do_not_depend_on_other_sequences_in_the_chunk(
    name: str, rounds: list[tuple[int, int, int]]
) -> None:
    """Three sequences share chunks, each at its own pace; each is what it is alone."""
    case = CASES[name]
    network = network_of(case)
    timelines = [Timeline(case, sequence) for sequence in range(3)]
    for counts in (*rounds, (300, 300, 300)):
        ends = [
            min(len(timeline) + count, timeline.total)
            for timeline, count in zip(timelines, counts, strict=True)
        ]
        pairs = list(zip(timelines, ends, strict=True))
        lengths = [end - len(timeline) for timeline, end in pairs]
        states = [timeline.state for timeline in timelines]
        tokens = torch.cat([timeline.truth[len(timeline) : end] for timeline, end in pairs])
        following = torch.cat(
            [timeline.truth[len(timeline) + 1 : end + 1] for timeline, end in pairs]
        )
        streams = network(tokens, lengths, states).streams
        drafted = network.draft(streams, following, lengths, states).streams
        for timeline, own, drafts in zip(
            timelines, streams.split(lengths), drafted.split(lengths), strict=True
        ):
            timeline.streams += own
            timeline.drafted += drafts
    for sequence, timeline in enumerate(timelines):
        assert_same(timeline, name, sequence)


@settings(max_examples=3)
@given(pieces=st.lists(COUNTS, max_size=10), packed=st.booleans())
def test_any_split_among_ties(pieces: list[int], packed: bool) -> None:
    """With every index score the same, the choice is all tie rule: the lowest indices."""
    case = CASES["packed-float64" if packed else "growing-float64"]
    network = copy.deepcopy(network_of(case))
    for block in network.layers:
        indexer: Any = block.get_submodule("attn").indexer
        if indexer is not None:
            indexer.weights_proj.weight.zero_()
    tokens = tokens_of(0)[:-1]
    expected = network(tokens, None, [case.new_state()]).streams
    state, streams, done = case.new_state(), [], 0
    for count in (*pieces, len(tokens)):
        streams.append(network(tokens[done : done + count], None, [state]).streams)
        done = min(done + count, len(tokens))
    assert torch.allclose(torch.cat(streams), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sequence", range(len(SEQUENCES)))
def test_choices_are_clear(sequence: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin of every choice on the float32 sequences, beside the noise of float32 scores.

    Margins are of the last chosen over the first not chosen, in standard deviations of the scores;
    the noise is what computing in float32 instead of float64 changes.
    """
    tokens = tokens_of(sequence)[:-1]
    seen: list[list[Tensor]] = []
    original = attention.index_scores

    def spy(*args: Any, **how: Any) -> Tensor:
        scores = original(*args, **how)
        seen[-1].append(scores.double())
        return scores

    monkeypatch.setattr(attention, "index_scores", spy)
    for name in ("growing-float64", "growing-float32"):
        network = network_of(CASES[name])
        seen.append([])
        for layer, routing in zip(network.layers, network(tokens).routing, strict=True):
            gate: Any = layer.get_submodule("ffn").gate
            if gate.bias is not None:
                seen[-1].append((routing.scores + gate.bias).double())
    for exact, noisy in zip(*seen, strict=True):
        visible = exact > -torch.inf
        spread = exact[visible].std()
        noise = (exact - noisy)[visible].abs().max() / spread
        picks = CONFIG.num_experts_per_tok if exact.shape[1] == 8 else CONFIG.index_topk
        if exact.shape[1] <= picks:
            continue
        best = exact.topk(picks + 1, -1).values
        margin = (best[:, -2] - best[:, -1])[best[:, -1] > -torch.inf].min() / spread
        assert noise < 1e-5 < 5e-5 < margin


@pytest.mark.parametrize("layer", range(CONFIG.num_hidden_layers))
@pytest.mark.parametrize("seed", range(3))
def test_rounding_in_float32_is_explained(layer: int, seed: int) -> None:
    """One layer at a time, packed, in float32: the same input, cut differently.

    Matrix products of other sizes differ in the last bit, and a number on the edge may be stored as
    its neighbour. Positions that see no such number agree to 1e-5; the others stay close.
    """
    case = Case(torch.float32, ROUNDED, True, 0)
    network = network_of(case)
    tokens = tokens_of(0)[:-1]
    total = len(tokens)
    block: Any = network.layers[layer]
    generator = random.Random(seed)
    pieces: list[int] = []
    while sum(pieces) < total:
        pieces.append(min(generator.choice([1, 2, 3, 17, 60, 128]), total - sum(pieces)))
    streams = streams_before(network, tokens, layer)

    def run(pieces: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Output, and everything stored: all window rows are kept for rewinding."""
        state = packed_state(CONFIG, max_tokens=total, rewind_tokens=total).layers[layer]
        outputs, done = [], 0
        for count in pieces:
            rows = slice(done, done + count)
            chunk = make_chunk(tokens[rows], [count], [done])
            outputs.append(block(streams[rows], chunk, [state])[0])
            done += count
        stored = {name: torch.tensor(rows.read()) for name, rows in state.named_rows()}
        return torch.cat(outputs), stored

    (whole, kept), (split, also_kept) = run([total]), run(pieces)
    apart = (split - whole).abs().amax((1, 2)) / whole.abs().amax((1, 2))
    flipped = {
        name: (kept[name] != also_kept[name]).any(-1)
        for name in kept
        if not name.endswith("projections")
    }
    assert sum(int(rows.sum()) for rows in flipped.values()) <= 0.02 * total
    ratio = CONFIG.ratios[layer]
    unexplained = []
    for position in range(total):
        sees = flipped["window"][max(0, position - 127) : position + 1].any()
        for name in ("compressor.entries", "indexer.entries"):
            if name in flipped:
                sees = sees | flipped[name][: (position + 1) // ratio].any()
        if not sees and apart[position] > 1e-5:
            unexplained.append(position)
    # What is rounded and not stored is the index query: it may turn a choice by itself.
    assert len(unexplained) <= (0.01 * total if ratio == CSA else 0)
    assert apart.median() < 1e-5 and apart.quantile(0.98) < 1e-3


def streams_before(network: Transformer, tokens: Tensor, layer: int) -> Tensor:
    """What enters a layer, for a whole sequence."""
    streams = network.embed(tokens, network.dtype)[:, None].expand(-1, CONFIG.hc_mult, -1)
    chunk = make_chunk(tokens, [len(tokens)], [0])
    state = growing_state(CONFIG)
    for index in range(layer):
        block = network.layers[index]
        assert isinstance(block, Block)
        streams = block(streams, chunk, [state.layers[index]])[0]
    return streams
