"""Drafts of the tokens that a grammar forces."""

from collections.abc import Sequence

from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.sequence import ActiveSequence


class GrammarDrafter(Drafter):
    """Proposes tokens without an alternative, such as the key after an opening brace."""

    name = "grammar"
    certain = True

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        return [sequence.forced(most) for sequence in sequences]
