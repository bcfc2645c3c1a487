"""The DSpark drafter on the C++ kernels, a `BlockDrafter` of the engine.

Reading tokens and running a block are one call each; the correction of a row is two products.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.native.describe import DSparkDescription, NetworkDescription, pointers
from sounding.native.kernels import INT, STEP_ENDED, address, kernels, multiply, threads_argument
from sounding.native.state import KernelState, join_addresses, lists_of
from sounding.state.token_ids import require_tokens


class DraftBlock(NamedTuple):
    """Drafts of several tokens at once, before their correction."""

    hidden: NDArray[np.uint16]
    """[n, b, c], bfloat16 as bits."""
    logits: NDArray[np.float32]


class Correction(NamedTuple):
    """What the token before a draft adds to its scores."""

    bias: NDArray[np.float32]
    confidence: NDArray[np.float32]


class KernelDrafter:
    """A drafter whose every operation runs in C++."""

    def __init__(
        self, config: ModelConfig, network: NetworkDescription, drafter: DSparkDescription
    ) -> None:
        """`network` keeps the buffers alive that the structs of `drafter` point to."""
        assert config.dspark is not None
        self.block_size = config.dspark.block_size
        self._config, self._noise = config, config.dspark.noise_token_id
        self._network, self._drafter = network, drafter
        self._layers = pointers(drafter.layers)

    def read(
        self, streams: NDArray[np.uint16], lengths: Sequence[int], states: Sequence[KernelState]
    ) -> None:
        """See `BlockDrafter`."""
        taps = np.ascontiguousarray(streams[:, self._config.hc_mult :])
        lists = [lists_of(state.blocks) for state in states]
        given = (
            ctypes.byref(self._drafter.network),
            self._layers,
            INT(len(self._layers)),
            ctypes.byref(self._drafter.main_proj),
            ctypes.byref(self._drafter.main_norm),
            address(taps),
            INT(len(taps)),
            (INT * len(lengths))(*lengths),
            INT(len(lengths)),
            join_addresses(lists),
            threads_argument(),
        )
        while (crowded := kernels().network_read_context(*given)) >= 0:
            sequence, number = divmod(crowded, len(lists[0].rows))
            full = lists[sequence].rows[number]
            assert full is not None
            full.make_room(lengths[sequence])

    def draft(self, anchors: Sequence[int], states: Sequence[KernelState]) -> DraftBlock:
        """See `BlockDrafter`. Raises ValueError for a token outside the vocabulary."""
        require_tokens(anchors, self._config.vocab_size)
        tokens = np.full((len(anchors), self.block_size), self._noise, dtype=np.int64)
        tokens[:, 0] = anchors
        made = DraftBlock(
            np.empty((*tokens.shape, self._config.hidden_size), dtype=np.uint16),
            np.empty((*tokens.shape, self._config.vocab_size), dtype=np.float32),
        )
        lists = [lists_of(state.blocks) for state in states]
        ended = kernels().network_draft_block(
            ctypes.byref(self._drafter.network),
            self._layers,
            INT(len(self._layers)),
            ctypes.byref(self._drafter.ends),
            address(tokens),
            INT(tokens.size),
            (INT * len(tokens))(*[self.block_size] * len(tokens)),
            INT(len(tokens)),
            join_addresses(lists),
            address(made.hidden),
            address(made.logits),
            threads_argument(),
        )
        if ended == STEP_ENDED:
            assert self._network.store is not None
            raise self._network.store.take_error()
        return made

    def correct(self, hidden: NDArray[Any], previous: Sequence[int]) -> Correction:
        """See `BlockDrafter`. Raises ValueError for a token outside the vocabulary."""
        require_tokens(previous, self._config.vocab_size)
        table = self._drafter.markov_w1.array.view(np.uint16)
        pairs = np.ascontiguousarray(table[list(previous)])
        both = np.ascontiguousarray(np.concatenate((hidden, pairs), 1))
        bias = multiply(pairs, self._drafter.markov_w2)
        return Correction(bias, multiply(both, self._drafter.confidence)[:, 0])
