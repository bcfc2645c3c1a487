"""The drafters of an engine: which there are, and whose drafts each sequence verifies.

For each sequence and step it is the source that promises the most tokens per time, by its
acceptance in this sequence and by measured costs; none where plain steps promise more.
"""

import time
from collections.abc import Collection, Sequence
from weakref import WeakKeyDictionary

from sounding.engine.drafting.acceptance import Acceptance, AcceptanceRate, BlockAcceptance
from sounding.engine.drafting.cost_model import STREAMED_ROW, CostModel, Prices, best_prefix
from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.dspark import DSparkDrafter
from sounding.engine.drafting.grammar_drafter import GrammarDrafter
from sounding.engine.drafting.mtp import MTPDrafter
from sounding.engine.drafting.prompt_lookup import PromptLookup
from sounding.engine.network import Network, Streams
from sounding.engine.requests import DraftCounts
from sounding.engine.sequence import ActiveSequence


def drafters_for(model: Network, num_tokens: int) -> list[Drafter]:
    """The drafters that a network allows, in the order in which they are asked."""
    drafters: list[Drafter] = [GrammarDrafter(), PromptLookup()]
    if model.num_mtp_blocks:
        drafters.append(MTPDrafter(model, num_tokens))
    if model.block_drafter is not None:
        drafters.append(DSparkDrafter(model, model.block_drafter, num_tokens))
    return drafters


def allowed(drafters: Sequence[Drafter], names: Collection[str] | None) -> list[Drafter]:
    """The drafters of these names, or all. Raises ValueError for a name that none has."""
    known = [each.name for each in drafters]
    for name in names or ():
        if name not in known:
            raise ValueError(
                f"drafters = {list(names or ())} names {name!r}, which this network does not have; "
                f"it has {', '.join(known)}"
            )
    return [each for each in drafters if names is None or each.name in names]


class DraftSelection:
    """Sets the drafts of sequences: those of the drafter that promises the most."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        most: int,
        *,
        always: bool = False,
        streamed: bool = False,
    ) -> None:
        """At most `most` drafts per sequence and step; 0 turns drafting off. `always` verifies all
        drafts of the first drafter that has any, to measure them. `streamed`: experts are on disk,
        where a wider verification reads more of them."""
        self._drafters = list(drafters) if most else []
        self.most = most
        assumed = {each.name: each.assumed_cost for each in self._drafters}
        self.costs = CostModel(assumed, STREAMED_ROW) if streamed else CostModel(assumed)
        self.common = {each.name: _no_outcomes(each) for each in self._drafters}
        """Outcomes in all sequences, with which a new one begins."""
        self._outcomes: dict[str, WeakKeyDictionary[ActiveSequence, Acceptance]]
        self._outcomes = {each.name: WeakKeyDictionary() for each in self._drafters}
        self.always = always
        self.counts = {each.name: DraftCounts() for each in self._drafters}
        """Drafts that were verified and accepted since the start, by drafter."""
        self._proposed: WeakKeyDictionary[ActiveSequence, Drafter] = WeakKeyDictionary()
        """Whose drafts are being verified."""

    def propose(self, sequences: Sequence[ActiveSequence]) -> None:
        """Set the drafts of sequences that have not ended."""
        allowed = [each for each in sequences if each.request.speculate]
        without = allowed
        for place, drafter in enumerate(self._drafters):
            if without and (drafter.certain or not self.costs.baseline_due):
                rivals = self._drafters[place + 1 :]
                self._ask(drafter, without, _Worth(self, drafter, rivals, len(allowed)))
                without = [each for each in without if not each.drafts]
        for sequence in allowed:
            if sequence.drafts:
                sequence.cut_drafts()

    def verified(self, sequence: ActiveSequence, drafted: int, accepted: int) -> None:
        """Record how many of the drafts of a sequence were accepted."""
        drafter = self._proposed.pop(sequence)
        self.observe(drafter, sequence, drafted, accepted)
        self.counts[drafter.name] = self.counts[drafter.name].plus(drafted, accepted)

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

    def outcomes(self, drafter: Drafter, sequence: ActiveSequence) -> Acceptance:
        """Those of a drafter's drafts in a sequence."""
        known = self._outcomes[drafter.name]
        if sequence not in known:
            known[sequence] = self.common[drafter.name].inherited()
        return known[sequence]

    def observe(
        self, drafter: Drafter, sequence: ActiveSequence, drafted: int, accepted: int
    ) -> None:
        """Record an outcome."""
        self.outcomes(drafter, sequence).observe(drafted, accepted)
        self.common[drafter.name].observe(drafted, accepted)

    def _ask(self, drafter: Drafter, sequences: Sequence[ActiveSequence], worth: "_Worth") -> None:
        before = time.perf_counter()
        proposals = drafter.propose(sequences, self.most, worth)
        for sequence, drafts in zip(sequences, proposals, strict=True):
            sequence.drafts = drafts
            if drafts:
                self._proposed[sequence] = drafter
        count = worth.blocks if drafter.in_blocks else sum(map(len, proposals))
        if count:
            self.costs.record_drafting(drafter.name, time.perf_counter() - before, count)


def _no_outcomes(drafter: Drafter) -> Acceptance:
    return BlockAcceptance() if drafter.in_blocks else AcceptanceRate()


class _Worth(CountDrafts):
    """What of one source is worth drafting and verifying in one step."""

    def __init__(
        self,
        selection: DraftSelection,
        drafter: Drafter,
        rivals: Sequence[Drafter],
        running: int,
    ) -> None:
        """`rivals` are asked afterwards, if it proposes nothing."""
        self._selection, self._drafter, self._running = selection, drafter, running
        self._rivals = rivals
        self.blocks = 0
        """Blocks that were found worth making."""

    def __call__(self, sequence: ActiveSequence, available: int) -> int:
        if not available:
            return 0
        selection, drafter = self._selection, self._drafter
        outcomes = selection.outcomes(drafter, sequence)
        count, speed = outcomes.plan(available, self._prices(drafter))
        if selection.always:
            count = available
        elif outcomes.is_due:
            count = max(1, count)
        elif count and any(self._yields(sequence, speed, rival) for rival in self._rivals):
            count = 0
        if not count:
            outcomes.pass_over()
        else:
            outcomes.take_part()
        selection.common[drafter.name].share_schedule(outcomes)
        if not count:
            return 0
        self.blocks += drafter.in_blocks
        return available if drafter.in_blocks else count

    def to_verify(self, sequence: ActiveSequence, survival: Sequence[float]) -> int:
        if self._selection.always:
            return len(survival)
        count = best_prefix(survival, self._prices(self._drafter))
        if not count:  # the block was made for nothing
            self._selection.observe(self._drafter, sequence, 0, 0)
        return count

    def _yields(self, sequence: ActiveSequence, speed: float, rival: Drafter) -> bool:
        """True if another source, which can draft now, promises more or is to be tried."""
        if rival.certain or not rival.is_ready(sequence):
            return False
        outcomes = self._selection.outcomes(rival, sequence)
        if outcomes.is_due:
            return True
        return outcomes.plan(self._selection.most, self._prices(rival)).speed > speed

    def _prices(self, drafter: Drafter) -> Prices:
        return self._selection.costs.prices(drafter.name, self._running)
