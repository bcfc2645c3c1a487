"""Prefix cache in memory: states of prompts, found by their tokens, bounded in bytes.

A tree of blocks of tokens for each adapter, since states depend on the weights. Each block holds
its compressed entries, once for all prompts that begin alike; at some lengths a tail completes the
state, and there a prompt can be resumed. A state cannot be shortened (its window has dropped older
tokens), so a prompt is computed from the last tail within the common prefix.

Invariants: `nbytes` is the sum over blocks and tails; every block has a tail somewhere below it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sounding.engine.network import State, Streams
from sounding.engine.prefix.snapshot import Entries, Tail, entries_between, take_tail
from sounding.engine.settings import BLOCK_TOKENS

_Tokens = tuple[int, ...]


@dataclass(eq=False)
class _Block:
    """A node of the tree: tokens, their compressed entries, and the nodes that follow."""

    tokens: _Tokens
    parent: "_Block | None"
    entries: Entries
    children: dict[_Tokens, "_Block"] = field(default_factory=dict)
    ends: dict[_Tokens, "_End"] = field(default_factory=dict)
    """Resumable lengths, by the tokens after this block."""

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.entries.values())


@dataclass(eq=False)
class _End:
    """A length at which a prompt can be resumed."""

    block: _Block
    rest: _Tokens
    tail: Tail
    whole: bool
    """True if usable only for a prompt that ends here."""
    saves: int
    """Tokens whose computation a hit here saves."""
    hits: int = 0
    score: float = 0.0


@dataclass(frozen=True)
class Found:
    """The result of a lookup."""

    blocks: Sequence[Entries]
    tail: Tail | None
    matched: int
    """Length of the longest common prefix with a cached prompt."""
    miss_reason: str

    @property
    def length(self) -> int:
        """Number of hit tokens, which are not computed again."""
        return 0 if self.tail is None else self.tail.length


class PrefixCache:
    """Caches the most valuable states within a limit in bytes.

    Evicts the state that saves the fewest tokens per byte; hits raise its value, age lowers it
    (greedy dual-size with frequency).
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._roots: dict[str, _Block] = {}
        self._ends: set[_End] = set()
        self._clock = 0.0

    def __len__(self) -> int:
        """Number of resumable prefixes."""
        return len(self._ends)

    def find(self, tokens: Sequence[int], adapter: str = "") -> Found:
        """Return the longest cached prefix of a prompt; `adapter` is the identity of what its
        states were computed with, "" the base alone."""
        path = list(self._walk(tokens, adapter))
        best: _End | None = None
        for depth, block in enumerate(path):
            start = depth * BLOCK_TOKENS
            for end in block.ends.values():
                longer = best is None or end.tail.length > best.tail.length
                usable = not end.whole or end.tail.length == len(tokens)
                if longer and usable and _continues(tokens, start, end.rest):
                    best = end
        matched, parted = self._matched(tokens, path)
        if best is None:
            return Found((), None, matched, _reason(tokens, 0, matched, parted))
        best.hits += 1
        self._value(best)
        length = best.tail.length
        blocks = [block.entries for block in path[1 : 1 + length // BLOCK_TOKENS]]
        return Found(blocks, best.tail, matched, _reason(tokens, length, matched, parted))

    def has(self, tokens: Sequence[int], *, whole: bool = False, adapter: str = "") -> bool:
        """True if a state of exactly these tokens is cached (for any use, or as `whole`)."""
        block = self._deepest(tokens, adapter)
        end = block.ends.get(_rest(tokens)) if block is not None else None
        return end is not None and (whole or not end.whole)

    def keep(
        self,
        tokens: Sequence[int],
        state: State,
        streams: Streams,
        *,
        drafting: bool = False,
        whole: bool = False,
        adapter: str = "",
    ) -> tuple[list[Entries], Tail] | None:
        """Cache a copy of a state after `tokens`; `whole`: usable only for exactly this prompt.

        For `streams` and `drafting` see `Tail`. Returns the parts of the state, None if it was
        cached already.
        """
        assert state.length == len(tokens)
        if self.limit_bytes == 0 or self.has(tokens, whole=whole, adapter=adapter):
            return None
        known = [block.entries for block in self._walk(tokens, adapter)][1:]
        new = [
            entries_between(state, start, start + BLOCK_TOKENS)
            for start in self.missing_blocks(tokens, adapter)
        ]
        tail = take_tail(state, streams, drafting=drafting)
        self.put(tokens, new, tail, whole=whole, adapter=adapter)
        return [*known, *new], tail

    def known_blocks(self, tokens: Sequence[int], adapter: str = "") -> int:
        """Number of leading whole blocks of `tokens` that are cached."""
        return len(list(self._walk(tokens, adapter))) - 1

    def missing_blocks(self, tokens: Sequence[int], adapter: str = "") -> range:
        """Start positions of the whole blocks of `tokens` that are not cached."""
        known = self.known_blocks(tokens, adapter)
        return range(known * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS)

    def put(
        self,
        tokens: Sequence[int],
        blocks: Iterable[Entries],
        tail: Tail,
        *,
        whole: bool = False,
        adapter: str = "",
    ) -> None:
        """Insert a tail, and the entries of all missing blocks, in order."""
        *_, block = self._walk(tokens, adapter)
        for start, entries in zip(self.missing_blocks(tokens, adapter), blocks, strict=True):
            block_tokens = tuple(tokens[start : start + BLOCK_TOKENS])
            block.children[block_tokens] = child = _Block(block_tokens, block, entries)
            self.nbytes += child.nbytes
            block = child
        rest = _rest(tokens)
        if rest in block.ends:
            self._drop_end(block.ends[rest])
        before = max(
            (end.tail.length for end in self._ends_before(block, rest)),
            default=0,
        )
        end = _End(block, rest, tail, whole, saves=len(tokens) - before)
        block.ends[rest] = end
        self._ends.add(end)
        self.nbytes += tail.nbytes
        self._value(end)
        self._shrink()

    def clear(self) -> None:
        """Evict everything."""
        while self._ends:
            self._remove(next(iter(self._ends)))

    # ----------------------------------------------------------------------------------------------

    def _walk(self, tokens: Sequence[int], adapter: str) -> Iterator[_Block]:
        """The adapter's root, then the blocks that `tokens` begins with."""
        block: _Block | None = self._roots.setdefault(adapter, _Block((), None, {}))
        start = 0
        while block is not None:
            yield block
            block_tokens = tuple(tokens[start : start + BLOCK_TOKENS])
            block = block.children.get(block_tokens)
            start += BLOCK_TOKENS

    def _deepest(self, tokens: Sequence[int], adapter: str) -> _Block | None:
        """The block in which `tokens` end, if all of their blocks are cached."""
        path = list(self._walk(tokens, adapter))
        return path[-1] if len(path) - 1 == len(tokens) // BLOCK_TOKENS else None

    def _ends_before(self, block: _Block, rest: _Tokens) -> Iterator[_End]:
        """Resumable lengths on the path to a place."""
        for end in block.ends.values():
            if len(end.rest) < len(rest) and _continues(rest, 0, end.rest):
                yield end
        while block.parent is not None:
            tokens, block = block.tokens, block.parent
            for end in block.ends.values():
                if _continues(tokens, 0, end.rest):
                    yield end

    def _matched(self, tokens: Sequence[int], path: Sequence[_Block]) -> tuple[int, bool]:
        """Longest common prefix with a cached prompt, and True if they differ after it."""
        block, start = path[-1], (len(path) - 1) * BLOCK_TOKENS
        ahead = tuple(tokens[start : start + BLOCK_TOKENS])
        longest, parted = 0, False
        for other in (*block.children, *block.ends):
            common = common_prefix(ahead, other)
            if common > longest:
                longest, parted = common, False
            parted = parted or (common == longest and common < min(len(other), len(ahead)))
        return start + longest, parted

    def _value(self, end: _End) -> None:
        """Set the eviction score of an end."""
        per_byte = end.saves * (1 + end.hits) / max(1, end.tail.nbytes)
        end.score = self._clock + per_byte

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes and self._ends:
            worst = min(self._ends, key=lambda end: end.score)
            self._clock = worst.score
            self._remove(worst)

    def _remove(self, end: _End) -> None:
        """Evict an end, and the blocks that no other end uses."""
        self._drop_end(end)
        block = end.block
        while block.parent is not None and not block.children and not block.ends:
            del block.parent.children[block.tokens]
            self.nbytes -= block.nbytes
            block = block.parent

    def _drop_end(self, end: _End) -> None:
        del end.block.ends[end.rest]
        self._ends.remove(end)
        self.nbytes -= end.tail.nbytes


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared much faster than items
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _rest(tokens: Sequence[int]) -> _Tokens:
    return tuple(tokens[len(tokens) - len(tokens) % BLOCK_TOKENS :])


def _continues(tokens: Sequence[int], start: int, rest: _Tokens) -> bool:
    return tuple(tokens[start : start + len(rest)]) == rest


def _reason(tokens: Sequence[int], hit: int, matched: int, parted: bool) -> str:
    """Explain in words why the hit was not longer."""
    if hit >= len(tokens) - 1:
        return ""
    if not matched:
        return "no kept prompt begins like this"
    if matched - hit > BLOCK_TOKENS:
        return f"known up to token {matched}, but its state is kept only at {hit}"
    if parted:
        return f"differs from kept prompts from token {matched} on"
    return f"new from token {matched} on"
