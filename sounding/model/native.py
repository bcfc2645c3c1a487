"""The network for native code: all layers of a chunk in one call, straight from packed weights.

Twins of `transformer.run_blocks` and `transformer.predict` for networks that compute in bfloat16,
without gradients. They hand modules and states, as `described.py` describes them, to the kernels in
`ops/cpu` and compute nothing themselves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sounding.model.attention import SPARSE, Selection
from sounding.model.chunk import Chunk
from sounding.model.described import describe
from sounding.model.moe import StackedRouting
from sounding.model.state import LayerState, SequenceState
from sounding.model.transformer import BlockReport, Prediction, Transformer
from sounding.ops import cpu
from sounding.ops.cpu.inference import network as native

_PIECE_TOKENS = 1024  # of a long chunk at once: what lies between the ops then fits the caches


def run_blocks(
    streams: Tensor,
    blocks: Sequence[nn.Module],
    chunk: Chunk,
    states: Sequence[Sequence[LayerState]],
    selection: Selection,
) -> Any:
    """See the reference; NotImplemented for networks, numbers and modes it has to serve itself."""
    if streams.dtype != torch.bfloat16 or torch.is_grad_enabled() or selection != SPARSE:
        return NotImplemented
    described = describe(blocks)
    if described is None:
        return NotImplemented
    streams = streams.clone(memory_format=torch.contiguous_format)
    tokens = chunk.tokens.long().contiguous()
    layers, count = len(blocks), len(tokens)
    chosen = torch.empty(layers, count, described.network.choices, dtype=torch.int64)
    scores = torch.empty(layers, count, described.network.experts)
    if count <= _PIECE_TOKENS:
        lengths = [span.length for span in chunk]
        described.run(streams, tokens, lengths, states, chosen, scores)
    else:
        for number, span in enumerate(chunk):
            for low in range(span.rows.start, span.rows.stop, _PIECE_TOKENS):
                rows = slice(low, min(low + _PIECE_TOKENS, span.rows.stop))
                size = rows.stop - rows.start
                parts = (
                    torch.empty(layers, size, described.network.choices, dtype=torch.int64),
                    torch.empty(layers, size, described.network.experts),
                )
                described.run(streams[rows], tokens[rows], [size], [states[number]], *parts)
                chosen[:, rows], scores[:, rows] = parts
    return streams, [BlockReport(routing) for routing in StackedRouting(chosen, scores)]


def predict(
    embedding: Tensor,
    network: Transformer,
    tokens: Tensor,
    rows: Sequence[int],
    lengths: Sequence[int],
    states: Sequence[SequenceState],
) -> Any:
    """See the reference; NotImplemented for networks and modes it has to serve itself, for chunks
    that go in pieces, and for tokens that are none."""
    count = len(tokens)
    if (
        network.dtype != torch.bfloat16
        or torch.is_grad_enabled()
        or not 0 < count <= _PIECE_TOKENS
        or sum(lengths) != count
        or min(lengths) < 0
        or len(lengths) != len(states)
        or min(rows, default=0) < 0
        or max(rows, default=0) >= count
    ):
        return NotImplemented
    described = describe(network.layers)
    ends = None if described is None else described.ends(network)
    if described is None or ends is None:
        return NotImplemented
    shape, layers = described.network, len(network.layers)
    tokens = tokens.long().contiguous()
    streams = torch.empty(count, shape.streams, shape.channels, dtype=torch.bfloat16)
    chosen = torch.empty(layers, count, shape.choices, dtype=torch.int64)
    scores = torch.empty(layers, count, shape.experts)
    logits = torch.empty(len(rows), shape.vocabulary)
    layer_states = [state.layers for state in states]
    reading = native.Reading(ends, rows, logits)
    if not described.run(streams, tokens, list(lengths), layer_states, chosen, scores, reading):
        return NotImplemented
    return Prediction(streams, StackedRouting(chosen, scores), logits)


def serves(network: Transformer) -> bool:
    """Whether native kernels run this network's blocks where no gradients are wanted."""
    return (
        network.dtype == torch.bfloat16
        and cpu.library() is not None
        and describe(network.blocks) is not None
    )
