"""Guessing ahead: several tokens are proposed, one forward verifies them all.

Two ways to guess. Prompt lookup: what followed the last time the same few tokens stood here. The
MTP block: its prediction of the token after next, and called again on its own output for tokens
further ahead. Where a grammar leaves one way to go on, that is taken instead.

A guess only ever costs time: the token at every place is chosen from the network's logits with the
request's generator, exactly as without guessing, and guesses count as far as they are what was
chosen. Source: docs/architecture.md 11.
"""

import time
from collections.abc import Sequence

import numpy as np

from sounding.engine.drafting.cost_model import Clock, Noted
from sounding.engine.network import Network, State, Streams
from sounding.engine.sequence import ActiveSequence


class Drafter:
    """Makes guesses for all sequences of a step together."""

    def __init__(self, model: Network, draft_tokens: int, num_tokens: int) -> None:
        """At most `draft_tokens` each, of ids below `num_tokens`."""
        self._model, self._most, self._num_tokens = model, draft_tokens, num_tokens
        self._has_block = model.num_drafters > 0
        self.clock = Clock(1 / model.config.num_hidden_layers)

    @property
    def reads_along(self) -> bool:
        """Whether there is a block that must see what the network sees."""
        return self._has_block and self._most > 0

    def note(self, generation: ActiveSequence, streams: Streams) -> None:
        """Remember streams of the tokens a sequence was just fed.

        The block reads them when it is asked, and of a prompt only the last window.
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
        if len(noted) > 2 * window:  # it was not asked for long
            self._forget(generation)
            noted.keep(window)

    def catch_up(self, generations: Sequence[ActiveSequence]) -> None:
        """Let the block read all noted rows but the last, whose next token may change."""
        behind = [g for g in generations if _noted(g) > 1]
        if behind:
            self._read(behind, [_noted(g) - 1 for g in behind])

    def draft(self, generations: Sequence[ActiveSequence]) -> None:
        """Set the drafts of sequences that go on."""
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
        own = generation.speculation
        found = own.lookup.find(generation.tokens, self._most)
        if not found:
            return []
        count = own.looked_up.best_count(
            len(found), running=running, guess_cost=0.0, row_cost=self.clock.row_cost
        )
        own.source = own.looked_up
        return found[:count]

    def _worth(self, generation: ActiveSequence, running: int) -> int:
        own = generation.speculation
        if own.streams is None:
            return 0
        own.source = own.mtp
        clock = self.clock
        return own.mtp.best_count(
            self._most, running=running, guess_cost=clock.guess_cost, row_cost=clock.row_cost
        )

    def _ask(self, asking: Sequence[tuple[ActiveSequence, int]]) -> None:
        """Let the block read what it has not seen, and go on from there on its own."""
        rows = self._read([g for g, _ in asking], [_noted(g) for g, _ in asking])
        states = [_state_of(generation) for generation, _ in asking]
        for depth in range(max(count for _, count in asking)):
            going = [i for i, (_, count) in enumerate(asking) if count > depth]
            if depth:
                if depth == 1:  # what is guessed must not stay in the block's window
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
        """Give the block the first noted rows of each; the last row of what it made of them."""
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
        """Begin anew: what the block has read does not reach up to here."""
        assert generation.state is not None
        generation.state.drafts = self._model.new_state().drafts


def _noted(generation: ActiveSequence) -> int:
    streams = generation.speculation.streams
    return 0 if streams is None else len(streams)


def _state_of(generation: ActiveSequence) -> State:
    assert generation.state is not None
    return generation.state
