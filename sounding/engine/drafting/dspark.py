"""Drafts of a DSpark drafter: a block of several tokens in one run of its blocks.

The block does not depend on the tokens drafted; they are chosen afterwards from left to right, each
from scores that are corrected by the token before it. They are chosen as the network's own tokens
will be, at the request's temperature and with the same random numbers, so that a draft is accepted
the more often the closer both distributions are, and never changes what is chosen.
Source: docs/architecture.md 11.1.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.pending_streams import PendingStreams
from sounding.engine.network import BlockDrafter, Network, State, Streams
from sounding.engine.sequence import ActiveSequence


class DSparkDrafter(Drafter):
    """Drafts with the DSpark drafter of a network, for all sequences together."""

    name = "dspark"
    in_blocks = True

    def __init__(self, model: Network, drafter: BlockDrafter, num_tokens: int) -> None:
        """Draft tokens with ids below `num_tokens`."""
        self._model, self._drafter, self._num_tokens = model, drafter, num_tokens
        config = model.config
        self.assumed_cost = config.num_dspark_blocks / config.num_hidden_layers
        self._pending: WeakKeyDictionary[ActiveSequence, PendingStreams] = WeakKeyDictionary()
        """Streams that the drafter has not read yet; none of a sequence of which it has missed
        some of the last window."""

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        size = min(most, self._drafter.block_size)
        drafting = [each for each in sequences if each in self._pending and worth(each, size)]
        drafts = dict(zip(drafting, self._draft(drafting, size, worth), strict=True))
        return [drafts.get(each, []) for each in sequences]

    def is_ready(self, sequence: ActiveSequence) -> bool:
        return sequence in self._pending

    def extend(self, sequence: ActiveSequence, streams: Streams) -> None:
        window = self._model.config.sliding_window
        if sequence.fed <= sequence.prompt_length - window:
            self._pending.pop(sequence, None)
            return
        pending = self._pending.get(sequence)
        if pending is None:  # it has read nothing of these tokens' window, or not all of it
            _state_of(sequence).blocks = self._model.new_state().blocks
            self._pending[sequence] = PendingStreams(streams[-window:])
            return
        pending.append(streams)
        if len(pending) > window:  # it has not drafted for long
            self._read([sequence])

    def catch_up(self, sequences: Sequence[ActiveSequence]) -> None:
        self._read([each for each in sequences if each in self._pending])

    def is_caught_up(self, sequence: ActiveSequence) -> bool:
        pending = self._pending.get(sequence)
        return pending is not None and len(pending) == 0

    def resume(self, sequence: ActiveSequence, streams: Streams) -> None:
        self._pending[sequence] = PendingStreams(streams[:0])  # it has read the last token too

    # ----------------------------------------------------------------------------------------------

    def _draft(
        self, sequences: Sequence[ActiveSequence], size: int, worth: CountDrafts
    ) -> list[list[int]]:
        """The first drafts of a block for each sequence, up to `size`, that are worth verifying."""
        if not sequences:
            return []
        self._read(sequences)
        previous = [each.tokens[-1] for each in sequences]
        block = self._drafter.draft(previous, [_state_of(each) for each in sequences])
        choosers = [each.preview() for each in sequences]
        drafts: list[list[int]] = [[] for _ in sequences]
        survival = np.empty((len(sequences), size))
        for row in range(size):
            correction = self._drafter.correct(block.hidden[:, row], previous)
            logits = (block.logits[:, row] + correction.bias)[:, : self._num_tokens]
            previous = [choose(scores) for choose, scores in zip(choosers, logits, strict=True)]
            survival[:, row] = _sigmoid(correction.confidence)
            for tokens, token in zip(drafts, previous, strict=True):
                tokens.append(token)
        counts = [
            worth.to_verify(each, expected)
            for each, expected in zip(sequences, survival.tolist(), strict=True)
        ]
        return [tokens[:count] for tokens, count in zip(drafts, counts, strict=True)]

    def _read(self, sequences: Sequence[ActiveSequence]) -> None:
        """Let the drafter read the stored streams of sequences."""
        behind = [each for each in sequences if len(self._pending[each])]
        if behind:
            counts = [len(self._pending[each]) for each in behind]
            rows = [self._pending[each].take(n) for each, n in zip(behind, counts, strict=True)]
            self._drafter.read(np.concatenate(rows), counts, [_state_of(each) for each in behind])


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    made: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return made


def _state_of(sequence: ActiveSequence) -> State:
    assert sequence.state is not None
    return sequence.state
