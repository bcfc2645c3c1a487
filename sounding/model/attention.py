"""Attention of one layer: low-rank queries, one shared key/value head, compressed entries beside
the window, grouped output. Source: docs/architecture.md 5.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sounding.config import CSA, ModelConfig
from sounding.model.chunk import Chunk
from sounding.model.compressor import Compressor, Index, Indexer, simulate_kv
from sounding.model.layers import Linear, RMSNorm
from sounding.model.rows import append_each
from sounding.model.state import TensorCompressorState, TensorLayerState
from sounding.ops.attention import attend
from sounding.ops.index_loss import index_loss
from sounding.ops.index_recall import index_recall
from sounding.ops.matmul import grouped_linear
from sounding.ops.norm import rms_norm
from sounding.ops.rope import Rotation, rope_frequencies, rotate, rotation
from sounding.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How CSA layers select entries. Values other than the default are for training and measuring:
    a dense chunk without an indexer loss does not update the indexer's state."""

    dense: bool = False
    """Attend to every visible entry instead of the indexer's choice."""
    learn: bool = False
    """Also measure how far the indexer's scores are from the attention paid."""
    recall: tuple[int, ...] = ()
    """Also measure the share of that attention on this many top entries of the indexer."""


SPARSE = Selection()


class IndexReport(NamedTuple):
    """An indexer's measurements, where the selection requests them and the layer has one."""

    loss: Float[Tensor, ""] | None = None
    """Summed over tokens; see `ops/index_loss.py`."""
    recall: Float[Tensor, "k fields"] | None = None
    """A row per requested size; fields as in `ops/index_recall.py`."""


class Attention(nn.Module):
    """Attention to the sequence's window, and to its entries compressed by `ratio`."""

    def __init__(self, config: ModelConfig, ratio: int, simulation: Simulation) -> None:
        super().__init__()
        heads, width = config.num_attention_heads, config.head_dim
        groups, rank = config.o_groups, config.o_lora_rank

        def quantized(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, format=config.linear_format, simulation=simulation)

        self.wq_a = quantized(config.hidden_size, config.q_lora_rank)  # queries, down
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = quantized(config.q_lora_rank, heads * width)  # queries, up
        self.wkv = quantized(config.hidden_size, width)  # the one key, which is also the value
        self.kv_norm = RMSNorm(width, config.rms_norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(heads))  # a logit that no value answers
        self.wo_a = quantized(heads * width // groups, groups * rank)  # output, down, per group
        self.wo_b = quantized(groups * rank, config.hidden_size)  # output, up
        self.compressor = Compressor(config, ratio, width, simulation) if ratio else None
        self.indexer = Indexer(config, simulation) if ratio == CSA else None
        self.config = config
        self.ratio = ratio
        self.simulation = simulation

    def forward(
        self,
        x: Float[Tensor, "t c"],
        chunk: Chunk,
        states: list[TensorLayerState],
        selection: Selection = SPARSE,
    ) -> tuple[Float[Tensor, "t c"], IndexReport]:
        """Attend for every token of the chunk, and append the chunk to the states."""
        config = self.config
        frequencies = self.frequencies(x.device)
        by = rotation(chunk.positions, frequencies)
        qr, q = self.queries(x, by)
        kv = self.keys(x, by)
        windows = append_each([state.window for state in states], chunk.split(kv))
        entries, selected, indexes = None, None, None
        if self.compressor is not None:
            parts = [_present(state.compressor) for state in states]
            entries = self.compressor(x, chunk, parts, frequencies)
        if self.indexer is not None and (
            selection.learn or selection.recall or not selection.dense
        ):
            parts = [_present(state.indexer) for state in states]
            # Choosing has no gradient, and what the indexer learns must not reach the network.
            indexes = self.indexer(x.detach(), qr.detach(), chunk, parts, by, frequencies)
            if not selection.dense:
                selected = [self.indexer.select(*pair) for pair in zip(indexes, chunk, strict=True)]
        queries = chunk.split(q)
        read = [
            attend(
                queries[index],
                windows[index],
                entries[index] if entries is not None else None,
                selected[index] if selected is not None else None,
                self.attn_sink,
                start=span.start,
                sliding_window=config.sliding_window,
                ratio=self.ratio,
            )
            for index, span in enumerate(chunk)
        ]
        report = self._measure(selection, q, windows, entries, selected, indexes, chunk)
        # Values carry the rotation of their own position; seen from the query only the distance
        # should remain.
        output = self.project(rotate(torch.cat(read), by, inverse=True))
        return output, report

    def queries(
        self, x: Float[Tensor, "t c"], by: Rotation
    ) -> tuple[Float[Tensor, "t q"], Float[Tensor, "t h d"]]:
        """The low-rank queries, which the indexer reads too, and the rotated ones of all heads."""
        config = self.config
        qr = self.q_norm(self.wq_a(x))
        q = self.wq_b(qr).unflatten(-1, (config.num_attention_heads, config.head_dim))
        return qr, rotate(rms_norm(q, None, config.rms_norm_eps), by)

    def keys(self, x: Float[Tensor, "t c"], by: Rotation) -> Float[Tensor, "t d"]:
        """The rotated keys, which are also the values."""
        kv = rotate(self.kv_norm(self.wkv(x)), by)
        return simulate_kv(kv, self.config.qk_rope_head_dim) if self.simulation.kv else kv

    def _measure(
        self,
        selection: Selection,
        q: Float[Tensor, "t h d"],
        windows: list[Tensor],
        entries: list[Tensor] | None,
        selected: list[Tensor] | None,
        indexes: list[Index] | None,
        chunk: Chunk,
    ) -> IndexReport:
        """What the selection asks about the indexer, in training and evaluation; else nothing."""
        if entries is None or indexes is None:
            return IndexReport()
        loss = recall = None
        if selection.learn:
            loss = self._index_loss(q, windows, entries, selected, indexes, chunk)
        if selection.recall:
            recall = self._index_recall(q, windows, entries, indexes, chunk, selection.recall)
        return IndexReport(loss, recall)

    def _index_loss(
        self,
        q: Float[Tensor, "t h d"],
        windows: list[Tensor],
        entries: list[Tensor],
        selected: list[Tensor] | None,
        indexes: list[Index],
        chunk: Chunk,
    ) -> Float[Tensor, ""]:
        losses = [
            index_loss(
                q[span.rows],
                windows[number],
                entries[number],
                selected[number] if selected is not None else None,
                self.attn_sink,
                *indexes[number],
                start=span.start,
                sliding_window=self.config.sliding_window,
                ratio=self.ratio,
            )
            for number, span in enumerate(chunk)
        ]
        return torch.stack(losses).sum()

    def _index_recall(
        self,
        q: Float[Tensor, "t h d"],
        windows: list[Tensor],
        entries: list[Tensor],
        indexes: list[Index],
        chunk: Chunk,
        sizes: tuple[int, ...],
    ) -> Float[Tensor, "k fields"]:
        sums = [
            index_recall(
                q[span.rows],
                windows[number],
                entries[number],
                self.attn_sink,
                *indexes[number],
                start=span.start,
                sliding_window=self.config.sliding_window,
                ratio=self.ratio,
                sizes=sizes,
            )
            for number, span in enumerate(chunk)
        ]
        return torch.stack(sums).sum(0)

    def project(self, o: Float[Tensor, "t h d"]) -> Float[Tensor, "t c"]:
        """The output of all heads; their rotation is undone."""
        groups = self.config.o_groups
        grouped = o.flatten(1).unflatten(-1, (groups, -1))
        # wo_a is stored in FP8 but its input is never rounded (docs/architecture.md 5.6)
        return self.wo_b(grouped_linear(grouped, self.wo_a.stored, groups).flatten(1))

    def frequencies(self, device: torch.device) -> Float[Tensor, " pairs"]:
        """The rotary frequencies of this kind of layer."""
        config = self.config
        if self.ratio == 0:
            return rope_frequencies(config.qk_rope_head_dim, config.rope_theta, None, device)
        return rope_frequencies(
            config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling, device
        )


def _present(part: TensorCompressorState | None) -> TensorCompressorState:
    assert part is not None, "the state was made for layers of another kind"
    return part
