"""Engine settings: widths, limits, budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from sounding.engine.network import Network

BLOCK_TOKENS = 128  # holds whole groups of every compression ratio: prefixes are kept in these

_DRAFT_TOKENS = 4  # drafts to verify where no drafter says how many it makes at once
_GRAIN_TOKENS = 16  # where prompts part they are cut at multiples of this
_CHANGING_TOKENS = 8  # at the end of a prompt, such as the one that opens a thought


@runtime_checkable  # for the shape checks of the tests
class _InBlocks(Protocol):
    """The part of a `BlockDrafter` that settings depend on."""

    block_size: int


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of an engine. Raises ValueError for numbers out of range."""

    width: int = 16
    """Sequences that share a step, at most."""
    queue: int = 512
    """Requests that may wait; one more is refused."""
    context_tokens: int | None = None
    """Most tokens of prompt and answer together; None is the model's limit."""
    step_tokens: int = 64
    """Token budget of a step: what decoding leaves goes to prefill, twice as much during a
    KEYSTROKE request. Longer steps prefill faster, and delay other requests and cancellation."""
    piece_tokens: int = BLOCK_TOKENS
    """Prompts are read in pieces that end at multiples of this, counted from their start."""
    exact_splits: bool = False
    """True if the network computes the same bits however a sequence is split into chunks and
    whatever else is in them. Then prompts may be cut, and states cached, anywhere, and tokens
    drafted. Otherwise only at the ends of pieces, so that a hit gives the same bits as a miss, and
    nothing is drafted."""
    state_limit_bytes: int = 4 << 30
    """Memory for the states of running sequences."""
    prefix_limit_bytes: int = 2 << 30
    """Memory of the prefix cache; 0 turns it off."""
    checkpoint_tokens: int = 1024
    """A long prompt's state is cached every so many tokens."""
    keep_inner: bool = True
    """Cache states a little before the end of a prompt as well, which takes a step of its own."""
    draft_tokens: int | None = None
    """Most draft tokens that a sequence verifies in a step, whoever drafted them; 0 turns drafting
    off. None: as many as a block of the network's DSpark drafter has, without one 4."""
    drafters: tuple[str, ...] | None = None
    """Names of the drafters to choose among; None: all that the network allows."""
    always_draft: bool = False
    """Verify all drafts of the first drafter that has any, also where they cost more time than they
    bring: to measure them."""
    patience_steps: int = 50
    """A sequence that waits this many steps rises by one priority."""
    repetition_tokens: int = 256
    """An answer ends when its last so many tokens repeat one short piece; 64 are enough of a single
    token."""

    def __post_init__(self) -> None:
        allowed_zero = ("queue", "prefix_limit_bytes", "draft_tokens")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, bool | tuple):
                continue
            least = 0 if field.name in allowed_zero else 1
            if value < least:
                raise ValueError(f"{field.name} = {value} must be at least {least}")
        for name in ("piece_tokens", "checkpoint_tokens"):
            if getattr(self, name) % BLOCK_TOKENS:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be a multiple of {BLOCK_TOKENS}, where "
                    "every group of tokens that is compressed together ends"
                )

    @property
    def effective_draft_tokens(self) -> int:
        """`draft_tokens`, if verifying several tokens at once gives the same bits as one by one."""
        most = _DRAFT_TOKENS if self.draft_tokens is None else self.draft_tokens
        return most if self.exact_splits else 0

    def resolved(self, drafter: "_InBlocks | None") -> "EngineSettings":
        """With the number of draft tokens that suits the network's DSpark drafter, if it has one,
        where none was given."""
        if self.draft_tokens is not None or drafter is None:
            return self
        return replace(self, draft_tokens=drafter.block_size)

    def keepable(self, length: int, *lengths: int) -> int:
        """The greatest length up to `length` at which a state may be cached for other prompts.

        If all `lengths` of whole prompts equal `length`, the prompts are equal and it is returned
        unchanged.
        """
        if lengths and all(whole == length for whole in lengths):
            return length
        if self.exact_splits:
            return length - length % _GRAIN_TOKENS
        return length - length % self.piece_tokens

    def checkpoints(self, prompt_length: int, hit: int, matched: int) -> set[int]:
        """Lengths at which the state of a prompt is cached while it is prefilled from `hit` on.

        The end; a little before it, since the next turn may replace the last tokens; every
        `checkpoint_tokens`; and the end of the common prefix with other prompts.
        """
        size = BLOCK_TOKENS if self.exact_splits else self.piece_tokens
        wanted = {prompt_length, *range(0, prompt_length, self.checkpoint_tokens)}
        if self.keep_inner:
            wanted.add((prompt_length - _CHANGING_TOKENS) // size * size)
        if not self.exact_splits:
            wanted.add(prompt_length - prompt_length % size)
        if matched - hit >= size:
            wanted.add(self.keepable(matched))
        return {length for length in wanted if length > hit}


def within_memory(network: Network, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a network with a memory budget: limits from its plan, and long steps, since
    every step reads nearly all experts of a prompt's layers once. Without a budget unchanged."""
    plan = None if network.store is None else network.store.plan
    if plan is None:
        return dict(settings)
    chosen = {
        "step_tokens": plan.chunk_tokens,
        "checkpoint_tokens": max(plan.chunk_tokens, 8 * BLOCK_TOKENS),
        "keep_inner": False,
        **settings,
    }
    limits = {"state_limit_bytes": plan.state_bytes, "prefix_limit_bytes": plan.prefix_bytes}
    return chosen | {name: min(limit, chosen.get(name, limit)) for name, limit in limits.items()}
