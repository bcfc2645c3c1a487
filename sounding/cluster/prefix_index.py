"""Which replica has seen the prefix of a prompt, and which one a request goes to.

A replica's prefix cache is not asked: where requests went before says what it holds, nearly. Blocks
of tokens are known by a hash of everything up to their end, so that equal hashes mean equal
prefixes.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

_BLOCK_TOKENS = 32
_MOST_BLOCKS = 1 << 18  # some 8 million tokens of different prefixes
_LEAST_LOAD = 4  # requests that a replica may have before others are looked at
_LOAD_FACTOR = 1.5


def prefix_blocks(tokens: Sequence[int], adapter: str | None = None) -> list[bytes]:
    """The hashes of the whole blocks that a prompt begins with; states depend on the adapter."""
    data = np.asarray(tokens, np.int32)
    whole = hashlib.blake2b(digest_size=8)
    whole.update(repr(adapter).encode())
    blocks = []
    for start in range(0, len(data) - _BLOCK_TOKENS + 1, _BLOCK_TOKENS):
        whole.update(data[start : start + _BLOCK_TOKENS].tobytes())
        blocks.append(whole.digest())
    return blocks


class PrefixIndex:
    """The blocks that each replica has been sent, the most recently used ones."""

    def __init__(self, most_blocks: int = _MOST_BLOCKS) -> None:
        self._most = most_blocks
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def record(self, replica: str, blocks: Sequence[bytes]) -> None:
        """Note that a prompt went to a replica."""
        for block in reversed(blocks):  # so that the beginning is forgotten last
            self._holders.setdefault(block, set()).add(replica)
            self._holders.move_to_end(block)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forget replicas that are gone."""
        for block, holders in list(self._holders.items()):
            holders.intersection_update(replicas)
            if not holders:
                del self._holders[block]

    def matched(self, replica: str, blocks: Sequence[bytes]) -> int:
        """Number of leading blocks that a replica has been sent."""
        for count, block in enumerate(blocks):
            if replica not in self._holders.get(block, ()):
                return count
        return len(blocks)

    def order(self, loads: Mapping[str, int], blocks: Sequence[bytes]) -> list[str]:
        """The replicas of `loads` (requests in progress of each), the best one first.

        The longest prefix wins, then the smallest load. A replica with more than its share of the
        load comes behind the others, whatever it holds (consistent hashing with bounded loads).
        """
        most = max(_LEAST_LOAD, math.ceil(_LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads)))

        def rank(replica: str) -> tuple[bool, int, int, str]:
            load = loads[replica]
            return load >= most, -self.matched(replica, blocks), load, replica

        return sorted(loads, key=rank)
