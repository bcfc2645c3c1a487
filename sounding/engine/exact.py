"""Whether a network computes a token to the same bits however its sequence is split."""

import torch
from torch import Tensor

from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from sounding.ops.cpu import library

_PIECES = ((1, 2, 5), (1, 3, 20, 16), (16, 1, 128, 3, 12))
_LARGE = 1 << 30  # parameters; more than these and the last trial would take long


@torch.inference_mode()
def splits_are_exact(model: Transformer) -> bool:
    """Try it on a few tokens: at once, and in pieces with another sequence beside them.

    Native kernels are made for this. The reference multiplies matrices with whatever algorithm is
    the fastest for their shape, so there the answer is no without a trial.
    """
    if library() is None or next(model.parameters()).device.type != "cpu":
        return False
    large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
    trials = _PIECES[:-1] if large else _PIECES
    return all(_agrees(model, pieces) for pieces in trials)


def _agrees(model: Transformer, pieces: tuple[int, ...]) -> bool:
    total = sum(pieces)
    tokens = torch.arange(total + 3 * len(pieces)) * 7919 % model.config.vocab_size
    mine, others = tokens[:total], tokens[total:]
    whole = model(mine, states=[growing_state(model.config)]).streams
    states = [growing_state(model.config) for _ in range(2)]
    done = []
    for piece, beside in zip(mine.split(list(pieces)), others.split(3), strict=True):
        chunk = torch.cat((beside, piece))
        streams = model(chunk, [3, len(piece)], states[::-1]).streams
        done.append(streams[3:])
    rows = torch.cat(done)
    return torch.equal(rows, whole) and torch.equal(_logits(model, rows[-1:]), _last(model, whole))


def _logits(model: Transformer, streams: Tensor) -> Tensor:
    return model.logits(model.hidden(streams))


def _last(model: Transformer, streams: Tensor) -> Tensor:
    return _logits(model, streams[-5:])[-1:]
