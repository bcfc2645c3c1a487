"""How an engine is run: widths, limits, budgets."""

from dataclasses import dataclass, fields

BLOCK_TOKENS = 128  # holds whole groups of every compression ratio: prefixes are kept in these

_GRAIN_TOKENS = 16  # where prompts part they are cut at multiples of this
_CHANGING_TOKENS = 8  # at the end of a prompt, such as the one that opens a thought


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Raises ValueError for numbers an engine cannot work with."""

    width: int = 16
    """Sequences that share a step, at most."""
    queue: int = 512
    """Requests that may wait; one more is refused."""
    context_tokens: int | None = None
    """Most tokens of prompt and answer together; None is what the model is made for."""
    step_tokens: int = 64
    """Tokens of a step: what decoding leaves of it goes to prompts, twice as much to one that
    somebody is typing. Longer steps read prompts faster, and let others and cancelling wait."""
    piece_tokens: int = BLOCK_TOKENS
    """Prompts are read in pieces that end at multiples of this, counted from their start."""
    exact_splits: bool = False
    """Whether the network gives a token the same bits however its sequence is split into chunks and
    whatever else is in them. Then prompts may be cut, and states kept, anywhere, and tokens guessed
    ahead. Otherwise only at the ends of pieces, so that a prompt that was found in a cache is still
    computed as one that was not, and nothing is guessed."""
    state_limit_bytes: int = 4 << 30
    """Memory for what running sequences remember."""
    prefix_limit_bytes: int = 2 << 30
    """Memory for states of prompts that may come again; 0 keeps none."""
    checkpoint_tokens: int = 1024
    """A long prompt's state is kept every so many tokens."""
    draft_tokens: int = 4
    """Most tokens guessed ahead; 0 never guesses."""
    patience_steps: int = 50
    """A sequence that waits this many steps rises by one priority."""
    repetition_tokens: int = 256
    """An answer ends when its last so many tokens are one short piece over and over; 64 are enough
    of a single token."""

    def __post_init__(self) -> None:
        allowed_zero = ("queue", "prefix_limit_bytes", "draft_tokens")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, bool):
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
    def guessed_tokens(self) -> int:
        """`draft_tokens`, where verifying several at once rounds like one after the other."""
        return self.draft_tokens if self.exact_splits else 0

    def keepable(self, length: int, *lengths: int) -> int:
        """The greatest length up to `length` at which a state may be kept for other prompts.

        Where all of `lengths`, of whole prompts, are this one, they are equal and it may be kept as
        it is.
        """
        if lengths and all(whole == length for whole in lengths):
            return length
        if self.exact_splits:
            return length - length % _GRAIN_TOKENS
        return length - length % self.piece_tokens

    def checkpoints(self, prompt_length: int, hit: int, matched: int) -> set[int]:
        """Lengths at which the state of a prompt is worth keeping while it is read from `hit` on.

        The end, and a little before, as what follows may put other tokens in place of the last
        ones; every `checkpoint_tokens`; and where other prompts were seen to part from this one.
        """
        size = BLOCK_TOKENS if self.exact_splits else self.piece_tokens
        before = (prompt_length - _CHANGING_TOKENS) // size * size
        wanted = {prompt_length, before, *range(0, prompt_length, self.checkpoint_tokens)}
        if not self.exact_splits:
            wanted.add(prompt_length - prompt_length % size)
        if matched - hit >= size:
            wanted.add(self.keepable(matched))
        return {length for length in wanted if length > hit}
