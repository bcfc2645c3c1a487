"""Teacher forcing: logits of fixed tokens under any split, and the tokens' logprobs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.engine.faults import DamagedModel
from sounding.engine.network import Network
from sounding.engine.sampling import log_softmax
from sounding.state.token_ids import require_tokens

_LOGIT_ROWS = 1024  # logits of this many tokens exist at once


def token_logprobs(
    network: Network, sequences: Sequence[Sequence[int]], adapter: Any = None
) -> list[list[float]]:
    """Natural logarithm of the probability of each token after the first, given those before it.

    `adapter` is what the network's `load_adapter` made; None: the base alone.
    All sequences are one ragged chunk, so their tokens together decide the memory it takes.
    Raises ValueError for an empty sequence or a token outside of the vocabulary, DamagedModel where
    logits are not finite.
    """
    if not all(sequences):
        raise ValueError("a sequence has no tokens; give at least one")
    tokens = [token for sequence in sequences for token in sequence]
    require_tokens(tokens, network.config.vocab_size)
    lengths = [len(sequence) for sequence in sequences]
    states = [network.new_state() for _ in lengths]
    for state in states:
        state.adapter = adapter
    streams = network.predict(tokens, (), lengths, states).streams
    targets = np.roll(np.asarray(tokens, dtype=np.int64), -1)  # of each last token none is read
    found = []
    for low in range(0, len(tokens), _LOGIT_ROWS):
        logits = network.logits(streams[low : low + _LOGIT_ROWS])
        if not np.isfinite(logits).all():
            first = int((~np.isfinite(logits).all(-1)).argmax())
            raise DamagedModel(f"of token {low + first}")
        wanted = targets[low : low + _LOGIT_ROWS]
        found += log_softmax(logits)[np.arange(len(logits)), wanted].tolist()
    scored, first = [], 0
    for length in lengths:
        scored.append(found[first : first + length - 1])
        first += length
    return scored


def split_logits(
    network: Network,
    tokens: Sequence[Sequence[int]],
    splits: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda tokens: None,
) -> NDArray[np.float32]:
    """Logits of every position, [sequences, tokens, vocabulary]; all sequences are of one length.

    splits[i] lists the chunk sizes of sequence i: step k is one ragged chunk of the k-th piece of
    every sequence that has one. `progress` is called with the tokens of each step.
    Raises ValueError for ids outside the vocabulary, DamagedModel for logits that are not finite.
    """
    for sequence in tokens:
        require_tokens(sequence, network.config.vocab_size)
    states = [network.new_state() for _ in tokens]
    logits = np.empty((len(tokens), len(tokens[0]), network.config.vocab_size), dtype=np.float32)
    for step in range(max(map(len, splits), default=0)):
        active = [index for index, sizes in enumerate(splits) if step < len(sizes)]
        sizes = [splits[index][step] for index in active]
        spans = [
            (index, states[index].length, states[index].length + size)
            for index, size in zip(active, sizes, strict=True)
        ]
        chunk = [token for index, low, high in spans for token in tokens[index][low:high]]
        here = [states[index] for index in active]
        made = network.predict(chunk, range(len(chunk)), sizes, here).logits
        row = 0
        for (index, low, high), size in zip(spans, sizes, strict=True):
            if not np.isfinite(made[row : row + size]).all():
                raise DamagedModel(f"of sequence {index} behind token {low}")
            logits[index, low:high] = made[row : row + size]
            row += size
        progress(len(chunk))
    return logits
