"""The drafters of an engine: which there are, and whose drafts each sequence verifies."""

import time
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from sounding.engine.drafting.cost_model import (
    STREAMED_ROW,
    AcceptanceRate,
    BlockGain,
    CostModel,
    best_prefix,
)
from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.dspark import DSparkDrafter
from sounding.engine.drafting.grammar_drafter import GrammarDrafter
from sounding.engine.drafting.mtp import MTPDrafter
from sounding.engine.drafting.prompt_lookup import PromptLookup
from sounding.engine.network import Network, Streams
from sounding.engine.sequence import ActiveSequence


def drafters_for(model: Network, num_tokens: int) -> list[Drafter]:
    """The drafters that a network allows, in the order in which they are asked."""
    drafters: list[Drafter] = [GrammarDrafter(), PromptLookup()]
    if model.num_mtp_blocks:
        drafters.append(MTPDrafter(model, num_tokens))
    if model.block_drafter is not None:
        drafters.append(DSparkDrafter(model, model.block_drafter, num_tokens))
    return drafters


class DraftSelection:
    """Sets the drafts of sequences: those of the first drafter with any worth verifying."""

    def __init__(self, drafters: Sequence[Drafter], most: int, *, streamed: bool = False) -> None:
        """At most `most` drafts per sequence and step; 0 turns drafting off. `streamed`: experts
        are on disk, where a wider verification reads more of them."""
        self._drafters = list(drafters) if most else []
        self._most = most
        assumed = {each.name: each.assumed_cost for each in self._drafters}
        self.costs = CostModel(assumed, STREAMED_ROW) if streamed else CostModel(assumed)
        self._rates: dict[str, WeakKeyDictionary[ActiveSequence, AcceptanceRate]]
        self._rates = {each.name: WeakKeyDictionary() for each in self._drafters}
        self._gains: dict[str, WeakKeyDictionary[ActiveSequence, BlockGain]]
        self._gains = {each.name: WeakKeyDictionary() for each in self._drafters}
        self._proposed: WeakKeyDictionary[ActiveSequence, Drafter] = WeakKeyDictionary()
        """Whose drafts are being verified."""

    def propose(self, sequences: Sequence[ActiveSequence]) -> None:
        """Set the drafts of sequences that have not ended."""
        allowed = [each for each in sequences if each.request.speculate]
        without = allowed
        for drafter in self._drafters:
            if without and (drafter.certain or not self.costs.baseline_due):
                self._ask(drafter, without, running=len(allowed))
                without = [each for each in without if not each.drafts]
        for sequence in allowed:
            if sequence.drafts:
                sequence.cut_drafts()

    def verified(self, sequence: ActiveSequence, drafted: int, accepted: int) -> None:
        """Record how many of the drafts of a sequence were accepted."""
        drafter = self._proposed.pop(sequence)
        if drafter.in_blocks:
            self.gain(drafter.name, sequence).observe(drafted, accepted)
        else:
            self.rate(drafter.name, sequence).observe(drafted, accepted)

    def extend(self, sequence: ActiveSequence, streams: Streams) -> None:
        """Show the drafters the streams of tokens that were fed and accepted."""
        if sequence.request.speculate:
            for drafter in self._drafters:
                drafter.extend(sequence, streams)

    def catch_up(self, sequence: ActiveSequence) -> bool:
        """Bring the drafters' part of a state up to date; return False if it is incomplete."""
        for drafter in self._drafters:
            drafter.catch_up([sequence])
        return bool(self._drafters) and all(each.is_caught_up(sequence) for each in self._drafters)

    def resume(self, sequence: ActiveSequence, streams: Streams) -> None:
        """Continue from a cached state that was complete."""
        if sequence.request.speculate:
            for drafter in self._drafters:
                drafter.resume(sequence, streams)

    # ----------------------------------------------------------------------------------------------

    def rate(self, name: str, sequence: ActiveSequence) -> AcceptanceRate:
        """The acceptance rate of a drafter's drafts in a sequence."""
        return self._rates[name].setdefault(sequence, AcceptanceRate())

    def gain(self, name: str, sequence: ActiveSequence) -> BlockGain:
        """What a drafter's blocks have brought in a sequence."""
        return self._gains[name].setdefault(sequence, BlockGain())

    def _ask(self, drafter: Drafter, sequences: Sequence[ActiveSequence], running: int) -> None:
        before = time.perf_counter()
        worth = _Worth(self, drafter, running)
        proposals = drafter.propose(sequences, self._most, worth)
        for sequence, drafts in zip(sequences, proposals, strict=True):
            sequence.drafts = drafts
            if drafts:
                self._proposed[sequence] = drafter
        count = worth.blocks if drafter.in_blocks else sum(map(len, proposals))
        if count:
            self.costs.record_drafting(drafter.name, time.perf_counter() - before, count)


class _Worth(CountDrafts):
    """What is worth drafting and verifying in one step, by the drafts of one source so far."""

    def __init__(self, selection: DraftSelection, drafter: Drafter, running: int) -> None:
        self._selection, self._drafter, self._running = selection, drafter, running
        self.blocks = 0
        """Blocks that were found worth making."""

    def __call__(self, sequence: ActiveSequence, available: int) -> int:
        name, costs = self._drafter.name, self._selection.costs
        if not self._drafter.in_blocks:
            return self._selection.rate(name, sequence).best_count(
                available,
                running=self._running,
                draft_cost=costs.draft_costs[name],
                row_cost=costs.row_cost,
            )
        pays = self._selection.gain(name, sequence).pays(
            running=self._running, block_cost=costs.draft_costs[name], row_cost=costs.row_cost
        )
        self.blocks += pays
        return available if pays else 0

    def to_verify(self, sequence: ActiveSequence, survival: Sequence[float]) -> int:
        name, costs = self._drafter.name, self._selection.costs
        count = best_prefix(
            survival,
            running=self._running,
            block_cost=costs.draft_costs[name],
            row_cost=costs.row_cost,
        )
        if not count:  # the block was made for nothing
            self._selection.gain(name, sequence).observe(0, 0)
        return count
