"""The network: blocks on four residual streams, the head, and the multi-token prediction block.

`forward` appends a chunk to sequences and returns their streams; that is training (states start
empty and are dropped), prefill (a long chunk), decode (a chunk of one) and the verification of
drafts (a chunk of k + 1). There is no other mode.
Source: docs/architecture.md 2, 3 and 11.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.config import ModelConfig
from sounding.model.attention import SPARSE, Attention, IndexReport, Selection
from sounding.model.chunk import Chunk, make_chunk
from sounding.model.layers import Embedding, Linear, RMSNorm
from sounding.model.moe import MoE, Routing
from sounding.model.state import TensorLayerState, TensorState, growing_state
from sounding.ops import hyper_connection, matmul
from sounding.ops.vector_math import settle_vector_math
from sounding.simulation import EXACT, Simulation


class BlockReport(NamedTuple):
    """One block's routing, and the measurements of its indexer."""

    routing: Routing
    indexer: IndexReport


class Output(NamedTuple):
    """The result of a chunk."""

    streams: Float[Tensor, "t m c"]
    """Residual streams after the last block: `hidden` reads them, the MTP block extends them."""
    reports: Sequence[BlockReport]
    """One per layer."""

    @property
    def routing(self) -> list[Routing]:
        """The routing of every layer."""
        return [report.routing for report in self.reports]


class Prediction(NamedTuple):
    """The result of a chunk, and the logits of some of its rows."""

    streams: Float[Tensor, "t m c"]
    routing: Sequence[Routing]
    logits: Float[Tensor, "r v"]


class Block(nn.Module):
    """Attention, then experts, each reading from and writing to the streams through mHC."""

    def __init__(
        self, config: ModelConfig, ratio: int, simulation: Simulation, *, hashed: bool
    ) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, ratio, simulation)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = MoE(config, simulation, hashed=hashed)
        m, width = config.hc_mult, config.hc_mult * config.hidden_size
        outputs = (2 + m) * m  # pre, post and mix
        for name in ("attn", "ffn"):
            self.register_parameter(f"hc_{name}_fn", nn.Parameter(torch.empty(outputs, width)))
            self.register_parameter(f"hc_{name}_base", nn.Parameter(torch.zeros(outputs)))
            self.register_parameter(f"hc_{name}_scale", nn.Parameter(torch.ones(3)))
        self.config = config

    def forward(
        self,
        streams: Float[Tensor, "t m c"],
        chunk: Chunk,
        states: list[TensorLayerState],
        selection: Selection = SPARSE,
        replayed: Int[Tensor, "t k"] | None = None,
    ) -> tuple[Float[Tensor, "t m c"], BlockReport]:
        x, post, mix, streams = self._connect("attn", streams)
        output, indexer = self.attn(self.attn_norm(x), chunk, states, selection)
        streams = hyper_connection.write(streams, output, post, mix)
        x, post, mix, streams = self._connect("ffn", streams)
        output, routing = self.ffn(self.ffn_norm(x), chunk.tokens, replayed)
        streams = hyper_connection.write(streams, output, post, mix)
        return streams, BlockReport(routing, indexer)

    def _connect(self, name: str, streams: Tensor) -> hyper_connection.Connection:
        return hyper_connection.connect(
            streams,
            self.get_parameter(f"hc_{name}_fn"),
            self.get_parameter(f"hc_{name}_base"),
            self.get_parameter(f"hc_{name}_scale"),
            iterations=self.config.hc_sinkhorn_iters,
            norm_eps=self.config.rms_norm_eps,
            hc_eps=self.config.hc_eps,
        )


def _run_blocks(
    streams: Float[Tensor, "t m c"],
    blocks: Sequence[Block],
    chunk: Chunk,
    states: Sequence[Sequence[TensorLayerState]],
    selection: Selection,
    replayed: Sequence[Int[Tensor, "t k"]] | None = None,
) -> tuple[Float[Tensor, "t m c"], Sequence[BlockReport]]:
    """Take a chunk through blocks, one after the other; states[i] are those of sequence i, one
    per block, and replayed[i] the experts that block i must take."""
    reports = []
    for index, block in enumerate(blocks):
        layer_states = [layers[index] for layers in states]
        choices = None if replayed is None else replayed[index]
        streams, report = block(streams, chunk, layer_states, selection, choices)
        reports.append(report)
    return streams, reports


def _register_head(module: nn.Module, config: ModelConfig) -> None:
    """The parameters that collapse the streams to one vector, and its norm."""
    width = config.hc_mult * config.hidden_size
    module.hc_head_fn = nn.Parameter(torch.empty(config.hc_mult, width))
    module.hc_head_base = nn.Parameter(torch.zeros(config.hc_mult))
    module.hc_head_scale = nn.Parameter(torch.ones(1))
    module.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def _collapse(module: nn.Module, config: ModelConfig, streams: Tensor) -> Tensor:
    assert isinstance(module.norm, RMSNorm)
    return hyper_connection.read_out(
        streams,
        module.get_parameter("hc_head_fn"),
        module.get_parameter("hc_head_base"),
        module.get_parameter("hc_head_scale"),
        module.norm.weight,
        norm_eps=config.rms_norm_eps,
        hc_eps=config.hc_eps,
    )


class MTPBlock(Block):
    """Predicts the token after next: a window block over the main streams and the next token."""

    def __init__(self, config: ModelConfig, simulation: Simulation) -> None:
        super().__init__(config, 0, simulation, hashed=False)
        width = config.hidden_size
        self.enorm = RMSNorm(width, config.rms_norm_eps)
        self.hnorm = RMSNorm(width, config.rms_norm_eps)
        self.e_proj = Linear(width, width, format=config.linear_format, simulation=simulation)
        self.h_proj = Linear(width, width, format=config.linear_format, simulation=simulation)
        _register_head(self, config)

    def hidden(self, streams: Float[Tensor, "t m c"]) -> Float[Tensor, "t c"]:
        """The block's own reading of its streams, for the shared vocabulary head."""
        return _collapse(self, self.config, streams)


class Transformer(nn.Module):
    """DeepSeek-V4. Parameters carry the published tensor names; routed experts are stacked."""

    def __init__(
        self,
        config: ModelConfig,
        simulation: Simulation = EXACT,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Uninitialised weights; `dtype` is what the network computes in, whatever they are."""
        super().__init__()
        settle_vector_math()
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, ratio, simulation, hashed=layer < config.num_hash_layers)
            for layer, ratio in enumerate(config.ratios)
        )
        _register_head(self, config)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = nn.ModuleList(MTPBlock(config, simulation) for _ in range(config.num_mtp_layers))
        self.config = config
        self.simulation = simulation
        self.dtype = dtype

    @property
    def blocks(self) -> list[Block]:
        """The layers, by their type."""
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(
        self,
        tokens: Int[Tensor, " t"],
        lengths: Sequence[int] | None = None,
        states: Sequence[TensorState] | None = None,
        selection: Selection = SPARSE,
        replayed: Sequence[Int[Tensor, "t k"]] | None = None,
    ) -> Output:
        """Append a chunk: lengths[i] tokens to the sequence that states[i] remembers.

        Without lengths the chunk is one sequence; without states all sequences begin here.
        `replayed` are the experts that every layer's tokens go to, where they were chosen before.
        """
        lengths, states = self._sequences(tokens, lengths, states)
        chunk = make_chunk(tokens, lengths, [state.length for state in states])
        embedded = self.embed(tokens, self.dtype)
        streams = embedded[:, None].expand(-1, self.config.hc_mult, -1)
        layers = [state.layers for state in states]
        return Output(*_run_blocks(streams, self.blocks, chunk, layers, selection, replayed))

    def predict(
        self,
        tokens: Int[Tensor, " t"],
        rows: Sequence[int],
        lengths: Sequence[int] | None = None,
        states: Sequence[TensorState] | None = None,
    ) -> Prediction:
        """`forward`, and the logits of some rows of the chunk."""
        output = self(tokens, lengths, states)
        wanted = output.streams[torch.tensor(rows, dtype=torch.long, device=output.streams.device)]
        return Prediction(output.streams, output.routing, self.logits(self.hidden(wanted)))

    def draft(
        self,
        streams: Float[Tensor, "t m c"],
        next_tokens: Int[Tensor, " t"],
        lengths: Sequence[int] | None = None,
        states: Sequence[TensorState] | None = None,
        *,
        depth: int = 0,
    ) -> Output:
        """Run MTP block `depth` on streams of the network (or of the block before).

        next_tokens[t] follows the token that streams[t] belongs to; the result predicts the one
        after that, through `mtp[depth].hidden` and `logits`.
        """
        block = self.mtp[depth]
        assert isinstance(block, MTPBlock)
        lengths, states = self._sequences(next_tokens, lengths, states)
        drafts = [state.drafts[depth] for state in states]
        chunk = make_chunk(next_tokens, lengths, [draft.length for draft in drafts])
        embedded = block.e_proj(block.enorm(self.embed(next_tokens, self.dtype)))
        combined = embedded[:, None] + block.h_proj(block.hnorm(streams))
        layers = [[draft] for draft in drafts]
        return Output(*_run_blocks(combined, [block], chunk, layers, SPARSE))

    def _sequences(
        self,
        tokens: Int[Tensor, " t"],
        lengths: Sequence[int] | None,
        states: Sequence[TensorState] | None,
    ) -> tuple[Sequence[int], Sequence[TensorState]]:
        """Default `lengths` to one sequence, and `states` to empty ones."""
        lengths = [len(tokens)] if lengths is None else lengths
        if states is None:
            states = [growing_state(self.config) for _ in lengths]
        return lengths, states

    def hidden(self, streams: Float[Tensor, "t m c"]) -> Float[Tensor, "t c"]:
        """The vocabulary head's input, from the streams of the rows that need it."""
        return _collapse(self, self.config, streams)

    def logits(self, hidden: Float[Tensor, "t c"]) -> Float[Tensor, "t v"]:
        """Scores of every next token, in float32."""
        return matmul.wide_linear(hidden, self.head.stored)
