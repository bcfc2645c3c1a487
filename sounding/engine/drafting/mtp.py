"""Drafts of the MTP block, which predicts the token after next.

Called again on its own output, it drafts tokens further ahead. The block must read every token that
the network reads, of a prompt the last window: it does so when it drafts, from stored streams.
Source: docs/architecture.md 11.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.pending_streams import PendingStreams
from sounding.engine.network import Network, State, Streams
from sounding.engine.sequence import ActiveSequence


class MTPDrafter(Drafter):
    """Drafts with the first MTP block of a network, for all sequences together."""

    name = "mtp"

    def __init__(self, model: Network, num_tokens: int) -> None:
        """Draft tokens with ids below `num_tokens`."""
        self._model, self._num_tokens = model, num_tokens
        self.assumed_cost = 1 / model.config.num_hidden_layers
        self._pending: WeakKeyDictionary[ActiveSequence, PendingStreams] = WeakKeyDictionary()
        """Streams that the block has not read yet; none of a sequence of which it has missed
        earlier ones."""

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        counts = [worth(each, most) if each in self._pending else 0 for each in sequences]
        drafting = [each for each, count in zip(sequences, counts, strict=True) if count]
        drafts = iter(self._draft(drafting, [count for count in counts if count]))
        return [next(drafts) if count else [] for count in counts]

    def is_ready(self, sequence: ActiveSequence) -> bool:
        return sequence in self._pending

    def extend(self, sequence: ActiveSequence, streams: Streams) -> None:
        window = self._model.config.sliding_window
        if sequence.fed <= sequence.prompt_length - window:
            self._pending.pop(sequence, None)
            return
        pending = self._pending.get(sequence)
        if pending is None:
            self._reset(sequence)
            pending = self._pending[sequence] = PendingStreams(streams)
        else:
            pending.append(streams)
        if len(pending) > 2 * window:  # it has not drafted for long
            self._reset(sequence)
            pending.keep(window)

    def catch_up(self, sequences: Sequence[ActiveSequence]) -> None:
        """Read all stored rows but the last, whose next token may change."""
        behind = [each for each in sequences if self._num_pending(each) > 1]
        if behind:
            self._read(behind, [self._num_pending(each) - 1 for each in behind])

    def is_caught_up(self, sequence: ActiveSequence) -> bool:
        return self._num_pending(sequence) == 1

    def resume(self, sequence: ActiveSequence, streams: Streams) -> None:
        self._pending[sequence] = PendingStreams(streams)

    # ----------------------------------------------------------------------------------------------

    def _draft(self, sequences: Sequence[ActiveSequence], counts: Sequence[int]) -> list[list[int]]:
        """Read the stored rows of each sequence, then draft counts[i] tokens from its output."""
        if not sequences:
            return []
        drafts: list[list[int]] = [[] for _ in sequences]
        rows = self._read(sequences, [self._num_pending(each) for each in sequences])
        states = [_state_of(each) for each in sequences]
        for depth in range(max(counts)):
            going = [i for i, count in enumerate(counts) if count > depth]
            if depth:
                if depth == 1:  # draft tokens must not stay in the block's window
                    states = [state.fork_drafts() for state in states]
                last = [drafts[i][-1] for i in going]
                ahead = [states[i] for i in going]
                streams = np.concatenate([rows[i] for i in going])
                read = self._model.draft(streams, last, [1] * len(going), ahead)
                for number, i in enumerate(going):
                    rows[i] = read[number : number + 1]
            logits = self._model.draft_logits(np.concatenate([rows[i] for i in going]))
            likeliest = logits[:, : self._num_tokens].argmax(-1).tolist()
            for i, token in zip(going, likeliest, strict=True):
                drafts[i].append(token)
        return drafts

    def _read(self, sequences: Sequence[ActiveSequence], counts: Sequence[int]) -> list[Streams]:
        """Feed the block the first stored rows of each sequence; return the last output rows."""
        streams, tokens = [], []
        for sequence, count in zip(sequences, counts, strict=True):
            pending = self._pending[sequence]
            first = sequence.fed - len(pending)
            streams.append(pending.take(count))
            tokens += sequence.tokens[first + 1 : first + 1 + count]
        states = [_state_of(each) for each in sequences]
        read = self._model.draft(np.concatenate(streams), tokens, list(counts), states)
        ends = np.cumsum(counts)
        return [read[end - 1 : end] for end in ends]

    def _num_pending(self, sequence: ActiveSequence) -> int:
        pending = self._pending.get(sequence)
        return 0 if pending is None else len(pending)

    def _reset(self, sequence: ActiveSequence) -> None:
        """Empty the block's state, because it has missed tokens before these."""
        _state_of(sequence).drafts = self._model.new_state().drafts


def _state_of(sequence: ActiveSequence) -> State:
    assert sequence.state is not None
    return sequence.state
