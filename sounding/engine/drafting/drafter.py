"""Speculative decoding: draft several tokens, verify them in one forward.

Two draft sources. Prompt lookup copies the tokens that followed the previous occurrence of the last
few tokens. The MTP block predicts the token after next, and is called again on its own output for
tokens further ahead. Where a grammar forces the next tokens, those are the draft.

A draft changes the speed, never the text: the token at every place is chosen from the network's
logits with the request's generator, exactly as without drafts, and a draft token is accepted if it
is the chosen one. Source: docs/architecture.md 11.
"""

import time
from collections.abc import Sequence

import numpy as np

from sounding.engine.drafting.cost_model import Clock, Noted
from sounding.engine.network import Network, State, Streams
from sounding.engine.sequence import ActiveSequence


class Drafter:
    """Drafts tokens for all sequences of a step together."""

    def __init__(self, model: Network, draft_tokens: int, num_tokens: int) -> None:
        """Draft at most `draft_tokens` per sequence, with ids below `num_tokens`."""
        self._model, self._most, self._num_tokens = model, draft_tokens, num_tokens
        self._has_block = model.num_drafters > 0
        self.clock = Clock(1 / model.config.num_hidden_layers)

    @property
    def reads_along(self) -> bool:
        """True if there is an MTP block, which must read every token that the network reads."""
        return self._has_block and self._most > 0

    def note(self, generation: ActiveSequence, streams: Streams) -> None:
        """Store the streams of the tokens a sequence was just fed.

        The MTP block reads them when it drafts, and of a prompt only the last window.
        """
        if not self.reads_along or not generation.request.speculate:
            return
        window = self._model.config.sliding_window
        if generation.fed <= generation.prompt_length - window:
            generation.speculation.streams = None
            return
        noted = generation.speculation.streams
        if noted is None:
            self._forget(generation)
            noted = generation.speculation.streams = Noted(streams)
        else:
            noted.append(streams)
        if len(noted) > 2 * window:  # it has not drafted for long
            self._forget(generation)
            noted.keep(window)

    def catch_up(self, generations: Sequence[ActiveSequence]) -> None:
        """Let the MTP block read all stored rows but the last, whose next token may change."""
        behind = [g for g in generations if _noted(g) > 1]
        if behind:
            self._read(behind, [_noted(g) - 1 for g in behind])

    def draft(self, generations: Sequence[ActiveSequence]) -> None:
        """Set the drafts of sequences that have not ended."""
        generations = [g for g in generations if g.request.speculate]
        if self._most == 0 or not generations:
            return
        asking: list[tuple[ActiveSequence, int]] = []
        for generation in generations:
            generation.drafts = generation.forced(self._most)
            if self.clock.waits:
                continue
            if not generation.drafts:
                generation.drafts = self._look_up(generation, len(generations))
            count = 0
            if self._has_block and not generation.drafts:
                count = self._worth(generation, len(generations))
            if count:
                asking.append((generation, count))
        if asking:
            before = time.perf_counter()
            self._ask(asking)
            self.clock.guessed(time.perf_counter() - before, sum(count for _, count in asking))
        for generation in generations:
            generation.cut_drafts()

    # ----------------------------------------------------------------------------------------------

    def _look_up(self, generation: ActiveSequence, running: int) -> list[int]:
        speculation = generation.speculation
        found = speculation.lookup.find(generation.tokens, self._most)
        if not found:
            return []
        count = speculation.looked_up.best_count(
            len(found), running=running, guess_cost=0.0, row_cost=self.clock.row_cost
        )
        speculation.source = speculation.looked_up
        return found[:count]

    def _worth(self, generation: ActiveSequence, running: int) -> int:
        speculation = generation.speculation
        if speculation.streams is None:
            return 0
        speculation.source = speculation.mtp
        clock = self.clock
        return speculation.mtp.best_count(
            self._most, running=running, guess_cost=clock.guess_cost, row_cost=clock.row_cost
        )

    def _ask(self, asking: Sequence[tuple[ActiveSequence, int]]) -> None:
        """Let the MTP block read the rows it has not read, then draft from its own output."""
        rows = self._read([g for g, _ in asking], [_noted(g) for g, _ in asking])
        states = [_state_of(generation) for generation, _ in asking]
        for depth in range(max(count for _, count in asking)):
            going = [i for i, (_, count) in enumerate(asking) if count > depth]
            if depth:
                if depth == 1:  # draft tokens must not stay in the block's window
                    states = [state.fork_drafts() for state in states]
                last = [asking[i][0].drafts[-1] for i in going]
                ahead = [states[i] for i in going]
                streams = np.concatenate([rows[i] for i in going])
                read = self._model.draft(streams, last, [1] * len(going), ahead)
                for number, i in enumerate(going):
                    rows[i] = read[number : number + 1]
            logits = self._model.draft_logits(np.concatenate([rows[i] for i in going]))
            likeliest = logits[:, : self._num_tokens].argmax(-1).tolist()
            for i, token in zip(going, likeliest, strict=True):
                asking[i][0].drafts.append(token)

    def _read(self, generations: Sequence[ActiveSequence], counts: Sequence[int]) -> list[Streams]:
        """Feed the block the first stored rows of each sequence; return the last output rows."""
        streams, tokens = [], []
        for generation, count in zip(generations, counts, strict=True):
            noted = generation.speculation.streams
            assert noted is not None
            first = generation.fed - len(noted)
            streams.append(noted.take(count))
            tokens += generation.tokens[first + 1 : first + 1 + count]
        states = [_state_of(generation) for generation in generations]
        read = self._model.draft(np.concatenate(streams), tokens, list(counts), states)
        ends = np.cumsum(counts)
        return [read[end - 1 : end] for end in ends]

    def _forget(self, generation: ActiveSequence) -> None:
        """Reset the block's state, because it has missed tokens before these."""
        assert generation.state is not None
        generation.state.drafts = self._model.new_state().drafts


def _noted(generation: ActiveSequence) -> int:
    streams = generation.speculation.streams
    return 0 if streams is None else len(streams)


def _state_of(generation: ActiveSequence) -> State:
    assert generation.state is not None
    return generation.state
