"""Scheduling: which requests are admitted, and how many tokens of each are in the next step.

A step takes every running sequence one token further, and spends what is left of its budget on
prompts. Urgent requests go first; waiting raises urgency, so no request starves. No
tensors here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sounding.engine.memory_budget import StatePool
from sounding.engine.prefix.cache import common_prefix
from sounding.engine.requests import Priority
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings

_TYPING_SHARE = 8  # one part in so many of memory is for KEYSTROKE requests
_WORTH_WAITING = 16  # tokens that need not be read twice
_LEAST_PIECE = 16  # tokens of a prompt; fewer would not be worth a step


class Move(NamedTuple):
    """One sequence's part of a step: tokens of its prompt, or its last token and its drafts."""

    generation: ActiveSequence
    num_tokens: int


class Scheduler:
    """The queue and the running sequences."""

    def __init__(self, settings: EngineSettings, pool: StatePool) -> None:
        self._settings, self._pool = settings, pool
        self.waiting: list[ActiveSequence] = []
        self.running: list[ActiveSequence] = []
        """Admitted and not finished; some may be paused."""

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, generation: ActiveSequence) -> None:
        """Put a request into the queue."""
        self.waiting.append(generation)

    def remove(self, generation: ActiveSequence) -> None:
        """Remove a request, waiting or running, and release its memory."""
        if generation in self.running:
            self.running.remove(generation)
            self._pool.release(generation.state_bytes)
        else:
            self.waiting.remove(generation)

    def admit(self) -> list[ActiveSequence]:
        """Start the most urgent requests, or resume paused ones, as far as there is room.

        No request overtakes a more urgent one that lacks room, or large requests would starve.
        """
        admitted = []
        paused = [generation for generation in self.running if generation.paused]
        for generation in sorted([*paused, *self.waiting], key=self._rank):
            if not generation.paused:
                generation.following = self._must_follow(generation)
                if generation.following:
                    continue
                if not self._fits(generation):
                    break
            if not self._make_place(generation):
                break
            if not generation.paused:
                self._pool.reserve(generation.state_bytes)
                self.waiting.remove(generation)
                self.running.append(generation)
                admitted.append(generation)
            generation.paused = False
        return admitted

    def plan(self) -> list[Move]:
        """Plan the next step; counts a waited step for all other requests."""
        active = [generation for generation in self.running if not generation.paused]
        moves = [Move(g, 1 + len(g.drafts)) for g in active if not g.prefilling and g.answered]
        # The whole prompt hit the cache: nothing is fed, and the first token is chosen.
        moves += [Move(g, 0) for g in active if not g.prefilling and not g.answered]
        budget = self._settings.step_tokens * (1 + self._typing(active))
        budget -= sum(move.num_tokens for move in moves)
        for number, generation in enumerate(self._prefills(active)):
            count = self._piece(generation, budget)
            # One prompt always moves on, whatever decoding takes.
            if number and count > budget:
                break
            budget -= count
            moves.append(Move(generation, count))
        moved = {move.generation.serial for move in moves}
        for generation in (*self.running, *self.waiting):
            generation.waited_steps += not generation.following
            if generation.serial in moved:
                generation.waited_steps = 0
        return moves

    def _prefills(self, active: Sequence[ActiveSequence]) -> list[ActiveSequence]:
        """Prompts to prefill now, the most urgent first, then the shortest.

        During a KEYSTROKE request, other prompts would make every step longer.
        """
        typing = self._typing(active)
        return [
            generation
            for generation in sorted(active, key=self._rank)
            if generation.prefilling
            and (not typing or self._urgency(generation) <= Priority.KEYSTROKE)
        ]

    def _typing(self, active: Sequence[ActiveSequence]) -> bool:
        return any(g.request.priority == Priority.KEYSTROKE for g in active)

    def _piece(self, generation: ActiveSequence, budget: int) -> int:
        """Number of tokens of a prompt in the next step."""
        at, end = generation.fed, generation.prompt_length
        size = self._settings.piece_tokens
        if not self._settings.exact_splits:
            return min(end, at - at % size + size) - at
        ahead = [length for length in generation.checkpoints if length > at]
        return min([end - at, max(budget, _LEAST_PIECE), *(length - at for length in ahead)])

    def _fits(self, generation: ActiveSequence) -> bool:
        """True if memory suffices; a share of it is reserved for KEYSTROKE requests."""
        spare = 0
        if self.running and generation.request.priority != Priority.KEYSTROKE:
            spare = self._pool.limit_bytes // _TYPING_SHARE
        return self._pool.fits(generation.state_bytes + spare)

    def _make_place(self, generation: ActiveSequence) -> bool:
        """True if one more may run; pauses a less urgent sequence if needed."""
        active = [other for other in self.running if not other.paused]
        if len(active) < self._settings.width:
            return True
        last = max(active, key=self._rank)
        if self._urgency(last) <= self._urgency(generation):
            return False
        last.paused = True
        return True

    def _must_follow(self, generation: ActiveSequence) -> bool:
        """True if a prompt with a common prefix is being prefilled: this one then waits for it, and
        hits the cache for their common prefix."""
        if not self._settings.prefix_limit_bytes:
            return False
        for leader in self.running:
            if leader.paused or not leader.prefilling or leader.finished:
                continue
            if self._urgency(leader) > self._urgency(generation):
                continue
            if leader.adapter_identity != generation.adapter_identity:
                continue
            common = self._settings.keepable(
                common_prefix(leader.tokens, generation.tokens),
                leader.prompt_length,
                generation.prompt_length,
            )
            if common >= leader.fed + _WORTH_WAITING:
                leader.checkpoints.add(common)
                return True
        return False

    def _urgency(self, generation: ActiveSequence) -> int:
        return generation.urgency(self._settings.patience_steps)

    def _rank(self, generation: ActiveSequence) -> tuple[int, int, int]:
        left = generation.prompt_length - generation.fed
        return self._urgency(generation), max(0, left), generation.serial
