"""Runs a step: one forward over every sequence in it, then sampling for each sequence with new
logits.

Nothing here depends on which sequences share a step, except how the network rounds.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sounding.engine.drafting.selection import DraftSelection, allowed, drafters_for
from sounding.engine.network import Network, Streams
from sounding.engine.prefix.cache import Found, PrefixCache
from sounding.engine.prefix.snapshot import put_together
from sounding.engine.requests import Priority
from sounding.engine.scheduler import Move
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import BLOCK_TOKENS, EngineSettings

if TYPE_CHECKING:
    from sounding.engine.prefix.store import PrefixStore


@dataclass
class Counters:
    """Counters since the start."""

    expert_load: "np.ndarray[tuple[int, int], np.dtype[np.int64]]"
    """Choices of each expert: layers by experts."""
    steps: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Runner:
    """Runs the steps of a network and owns its prefix cache and drafters."""

    def __init__(
        self,
        model: Network,
        settings: EngineSettings,
        num_tokens: int,
        store: "PrefixStore | None" = None,
    ) -> None:
        """Token ids from `num_tokens` on are never chosen."""
        config = model.config
        self._model, self._settings, self._num_tokens = model, settings, num_tokens
        self.drafting = DraftSelection(
            allowed(drafters_for(model, num_tokens), settings.drafters),
            settings.effective_draft_tokens,
            always=settings.always_draft,
            streamed=model.store is not None,
        )
        self.store = store
        self.prefixes = PrefixCache(settings.prefix_limit_bytes)
        layers, experts = len(config.ratios), config.n_routed_experts
        self.counters = Counters(expert_load=np.zeros((layers, experts), dtype=np.int64))
        self._first_experts = experts * np.arange(layers)[:, None]

    def start(self, generation: ActiveSequence) -> None:
        """Set a sequence's state: the longest cached prefix, or an empty state."""
        settings = self._settings
        state = self._model.new_state(rewind_tokens=settings.effective_draft_tokens)
        if generation.adapter is not None:
            state.adapter = generation.adapter.weights
        found = self._find(generation)
        if found.tail is not None:
            put_together(state, found.blocks, found.tail)
            generation.streams = found.tail.streams
            if found.tail.drafting:
                self.drafting.resume(generation, found.tail.streams)
        generation.state = state
        if settings.prefix_limit_bytes:
            generation.checkpoints = settings.checkpoints(
                generation.prompt_length, found.length, found.matched
            )
        generation.started(found.length, found.miss_reason)
        generation.stream.prefilled = found.length
        self.counters.prompt_tokens += generation.prompt_length
        self.counters.hit_tokens += found.length

    def keep(self, generation: ActiveSequence) -> None:
        """Cache the current state of a sequence, if later prompts may resume from it."""
        state, settings = generation.state, self._settings
        if state is None or not state.length or not settings.prefix_limit_bytes:
            return
        if state.length > len(generation.unscored) and generation.request.scored_from is not None:
            return
        cut = not settings.exact_splits and (
            state.length > generation.prompt_length or state.length % settings.piece_tokens > 0
        )
        if not cut or state.length == generation.prompt_length:
            drafting = self.drafting.catch_up(generation)
            tokens = generation.tokens[: state.length]
            kept = self.prefixes.keep(
                tokens,
                state,
                generation.streams,
                drafting=drafting,
                whole=cut,
                adapter=generation.adapter_identity,
            )
            # A prompt that is being typed changes with every key, and is prefilled quickly.
            lasting = generation.request.priority != Priority.KEYSTROKE
            # The store is named after the base's weights: states of adapters are not written.
            lasting = lasting and generation.adapter is None
            if self.store is not None and kept and lasting and len(tokens) >= BLOCK_TOKENS:
                self.store.put(tokens, *kept, whole=cut)

    def step(self, moves: Sequence[Move]) -> None:
        """Run one step; sequences that end have `finished` set."""
        before, answering = time.perf_counter(), all(move.generation.answered for move in moves)
        choosing, wanted, logits = [], [], []
        for move, streams, row_logits in self._feed([move for move in moves if move.num_tokens]):
            generation = move.generation
            if not generation.answered:
                generation.score(row_logits)
                generation.stream.prefilled = generation.fed
                generation.streams = streams[-1:]
                self.drafting.extend(generation, streams)
                if generation.fed in generation.checkpoints:
                    self.keep(generation)
            if not generation.prefilling and generation.finished is None:
                choosing.append(generation)
                wanted.append(streams[-len(row_logits) :])
                logits.append(row_logits)
        found = [move.generation for move in moves if not move.num_tokens]  # with the whole prompt
        if found:
            last = np.concatenate([generation.streams for generation in found])
            choosing += found
            known = self._known(self._model.logits(last))
            wanted += [last[i : i + 1] for i in range(len(found))]
            logits += [known[i : i + 1] for i in range(len(found))]
        if choosing:
            for generation, streams, row_logits in zip(choosing, wanted, logits, strict=True):
                self._choose(generation, streams, row_logits)
            if answering:
                self.drafting.costs.record_step(
                    time.perf_counter() - before,
                    len(moves),
                    sum(move.num_tokens for move in moves),
                )
            self.drafting.propose([g for g in choosing if g.finished is None])
        self.counters.steps += 1

    def _find(self, generation: ActiveSequence) -> Found:
        """Look a prompt up in the prefix cache, after loading a longer prefix from disk."""
        prompt = generation.unscored
        found = self.prefixes.find(prompt, generation.adapter_identity)
        stored_at_all = self.store is not None and generation.adapter is None
        if not stored_at_all or len(prompt) - found.length < BLOCK_TOKENS:
            return found
        assert self.store is not None
        stored = self.store.find(
            prompt,
            beyond=found.length + BLOCK_TOKENS // 2,
            known_blocks=self.prefixes.known_blocks(prompt),
        )
        if stored is None:
            return found
        self.prefixes.put(stored.tokens, stored.blocks, stored.tail, whole=stored.whole)
        return self.prefixes.find(prompt)

    def _feed(self, moves: Sequence[Move]) -> Iterator[tuple[Move, Streams, NDArray[np.float32]]]:
        """Append each sequence's next tokens; yield its streams and the requested logits: those of
        an answer's tokens, and of a prompt's last one and those before scored ones."""
        if not moves:
            return
        tokens, states, row_counts = [], [], []
        rows: list[int] = []
        for generation, count in moves:
            assert generation.state is not None
            ahead = [*generation.tokens[generation.fed :], *generation.drafts]
            tokens += ahead[:count]
            states.append(generation.state)
            row_counts.append(generation.count_rows(count))
            rows += range(len(tokens) - row_counts[-1], len(tokens))
        lengths = [move.num_tokens for move in moves]
        made = self._model.predict(tokens, rows, lengths, states)
        self._count_experts(made.chosen)
        streams = _split(made.streams, lengths)
        yield from zip(moves, streams, _split(self._known(made.logits), row_counts), strict=True)

    def _known(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the tokens that may be chosen."""
        return logits[:, : self._num_tokens]

    def _choose(
        self, generation: ActiveSequence, streams: Streams, logits: NDArray[np.float32]
    ) -> None:
        """Choose tokens while drafts are accepted; rewind the rejected ones."""
        if not generation.answered:
            generation.prefilled()
        if generation.request.max_tokens == 0:
            generation.finished = "length"
            return
        answered = generation.answered > 0
        drafts, accepted = generation.drafts, 0
        generation.drafts = []
        for row, draft in zip(logits, [*drafts, None], strict=True):
            token = generation.choose(row)
            self.counters.completion_tokens += token is not None
            if generation.finished or token != draft:
                break
            accepted += 1
        if answered:
            generation.streams = streams[accepted : accepted + 1]
            self._verified(generation, streams[: accepted + 1], len(drafts))

    def _verified(self, generation: ActiveSequence, streams: Streams, drafted: int) -> None:
        """Take back the rejected drafts; `streams` are those of the other tokens."""
        assert generation.state is not None
        accepted = len(streams) - 1
        if drafted:
            generation.state.rewind(generation.fed - drafted + accepted)
            generation.count_drafts(drafted, accepted)
            self.drafting.verified(generation, drafted, accepted)
            self.counters.drafted_tokens += drafted
            self.counters.accepted_tokens += accepted
        self.drafting.extend(generation, streams)

    def _count_experts(self, chosen: NDArray[np.int64]) -> None:
        load = self.counters.expert_load
        numbers = chosen.reshape(len(load), -1) + self._first_experts  # all layers at once
        load += np.bincount(numbers.ravel(), minlength=load.size).reshape(load.shape)


def _split(rows: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
    """The first counts[0] rows, the next counts[1], and so on."""
    parts, low = [], 0
    for count in counts:
        parts.append(rows[low : low + count])
        low += count
    return parts
