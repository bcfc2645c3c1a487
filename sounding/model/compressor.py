"""The compressor of tokens into entries, and the lightning indexer that selects among them.

Source: docs/architecture.md 6 and 7.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.config import CSA, ModelConfig
from sounding.model.chunk import Chunk, Span
from sounding.model.layers import Linear, RMSNorm
from sounding.model.rows import append_each
from sounding.model.state import TensorCompressorState
from sounding.ops.attention import select_entries
from sounding.ops.matmul import wide_linear
from sounding.ops.pool import add_places, pool_groups
from sounding.ops.quant import KV_BLOCK, hadamard, simulate_fp4, simulate_fp8
from sounding.ops.rope import Rotation, rotate, rotation
from sounding.simulation import Simulation


def simulate_kv(x: Float[Tensor, "*t d"], rotary: int) -> Float[Tensor, "*t d"]:
    """Round a key/value entry as it is stored: FP8, except its rotary channels."""
    plain = x.shape[-1] - rotary
    return torch.cat((simulate_fp8(x[..., :plain], KV_BLOCK), x[..., plain:]), -1)


def simulate_index(x: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
    """Round an index query or key as it is stored: rotated by Hadamard, then FP4."""
    return simulate_fp4(hadamard(x))


class Compressor(nn.Module):
    """Gated pooling of each group of `ratio` tokens into one entry of `width` channels.

    In a CSA layer the groups overlap: a token's first half-channels go to the next entry, its
    second half-channels to its own.
    """

    def __init__(
        self,
        config: ModelConfig,
        ratio: int,
        width: int,
        simulation: Simulation,
        *,
        for_index: bool = False,
    ) -> None:
        super().__init__()
        projected = (2 if ratio == CSA else 1) * width
        self.ape = nn.Parameter(torch.empty(ratio, projected))  # gate bias by place in the group
        self.wkv = Linear(config.hidden_size, projected)
        self.wgate = Linear(config.hidden_size, projected)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.ratio = ratio
        self.rotary = config.qk_rope_head_dim
        self.simulate_kv = simulation.kv and not for_index
        self.simulate_index = simulation.indexer and for_index

    def forward(
        self,
        x: Float[Tensor, "t c"],
        chunk: Chunk,
        states: list[TensorCompressorState],
        frequencies: Float[Tensor, " pairs"],
    ) -> list[Float[Tensor, "_ d"]]:
        """Take in the chunk's tokens; return all entries of each sequence so far."""
        projections = wide_linear(x, self.wkv.stored, self.wgate.stored)
        projections = add_places(projections, self.ape, chunk.positions % self.ratio)
        known = append_each([state.projections for state in states], chunk.split(projections))
        made = [
            self._compress(
                rows,
                span.start + span.length,
                done=state.entries.length,
                frequencies=frequencies,
                dtype=x.dtype,
            )
            for span, rows, state in zip(chunk, known, states, strict=True)
        ]
        return append_each([state.entries for state in states], made)

    def _compress(
        self,
        projections: Float[Tensor, "p w"],
        end: int,
        *,
        done: int,
        frequencies: Tensor,
        dtype: torch.dtype,
    ) -> Float[Tensor, "g d"]:
        """The entries of the groups that became complete: from `done` up to position `end`.

        `projections` are values and gates of the tokens before `end`.
        """
        groups = torch.arange(done, end // self.ratio, device=projections.device)
        width = self.norm.weight.shape[0]
        if len(groups) == 0:
            return projections.new_zeros(0, width, dtype=dtype)
        overlapping = self.wkv.weight.shape[0] != width
        first = len(projections) - (end - done * self.ratio)  # row of the first new group
        begin = first - self.ratio if overlapping and done > 0 else first
        rows = projections[begin : first + len(groups) * self.ratio]
        pooled = pool_groups(rows, self.ratio, overlapping=overlapping, leads=done == 0)
        entries: Tensor = self.norm(pooled.to(dtype))
        entries = rotate(entries, rotation(groups * self.ratio, frequencies))
        if self.simulate_kv:
            entries = simulate_kv(entries, self.rotary)
        if self.simulate_index:
            entries = simulate_index(entries)
        return entries


class Index(NamedTuple):
    """The indexer's inputs for one sequence: queries with head weights, and entries' keys."""

    q: Float[Tensor, "t h d"]
    weights: Float[Tensor, "t h"]
    keys: Float[Tensor, "s d"]


class Indexer(nn.Module):
    """Scores compressed entries cheaply, so that attention reads only the best of them."""

    def __init__(self, config: ModelConfig, simulation: Simulation) -> None:
        super().__init__()
        heads, width = config.index_n_heads, config.index_head_dim
        self.wq_b = Linear(
            config.q_lora_rank, heads * width, format=config.linear_format, simulation=simulation
        )
        self.weights_proj = Linear(config.hidden_size, heads)  # how much each head's match counts
        self.compressor = Compressor(config, CSA, width, simulation, for_index=True)
        self.heads = heads
        self.width = width
        self.limit = config.index_topk
        self.simulate = simulation.indexer

    def forward(
        self,
        x: Float[Tensor, "t c"],
        qr: Float[Tensor, "t ql"],
        chunk: Chunk,
        states: list[TensorCompressorState],
        by: Rotation,
        frequencies: Float[Tensor, " pairs"],
    ) -> list[Index]:
        """Take in the chunk's tokens; return what to compare, per sequence."""
        q = rotate(self.wq_b(qr).unflatten(-1, (self.heads, self.width)), by)
        if self.simulate:
            q = simulate_index(q)
        weights = self.weights_proj(x) * (self.width**-0.5 * self.heads**-0.5)
        keys = self.compressor(x, chunk, states, frequencies)
        return [
            Index(q[span.rows], weights[span.rows], sequence_keys)
            for span, sequence_keys in zip(chunk, keys, strict=True)
        ]

    def select(self, index: Index, span: Span) -> Int[Tensor, "t k"]:
        """The entries that each token of a sequence attends to, as indices, -1 for none."""
        return select_entries(*index, start=span.start, ratio=CSA, limit=self.limit)
