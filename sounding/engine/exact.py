"""Test whether a network computes the same bits however a sequence is split into chunks."""

import numpy as np

from sounding.engine.network import Network

_PIECES = ((1, 2, 5), (1, 3, 20, 16), (16, 1, 128, 3, 12))
_LARGE = 1 << 30  # parameters; with more than these the last trial would take long


def splits_are_exact(network: Network) -> bool:
    """Run a few tokens at once, and in chunks beside another sequence; True if they agree.

    The C++ kernels are made for this. The reference is not, so it returns False without a
    trial.
    """
    if not network.tries_exact_splits:
        return False
    if network.store is not None:  # each token takes many reads
        return _agrees(network, _PIECES[0][:2])
    trials = _PIECES[:-1] if network.num_parameters > _LARGE else _PIECES
    return all(_agrees(network, pieces) for pieces in trials)


def _agrees(network: Network, pieces: tuple[int, ...]) -> bool:
    total = sum(pieces)
    vocabulary = network.config.vocab_size
    tokens = [number * 7919 % vocabulary for number in range(total + 3 * len(pieces))]
    sequence, others = tokens[:total], tokens[total:]
    whole = network.predict(sequence, (), [total], [network.new_state()]).streams
    states = [network.new_state() for _ in range(2)]
    done, first = [], 0
    for number, size in enumerate(pieces):
        beside = others[3 * number : 3 * number + 3]
        chunk = [*beside, *sequence[first : first + size]]
        done.append(network.predict(chunk, (), [3, size], states[::-1]).streams[3:])
        first += size
    rows = np.concatenate(done)
    return np.array_equal(rows, whole) and np.array_equal(
        network.logits(rows[-1:])[0], network.logits(whole[-3:])[-1]
    )
