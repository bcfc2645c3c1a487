"""The network: blocks on four residual streams, the head, and the blocks of a drafter.

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
from sounding.model.attention import SPARSE, Selection
from sounding.model.block import Block, Output, read_out, register_head, run_blocks
from sounding.model.chunk import make_chunk
from sounding.model.dspark import DraftBlock, DSpark
from sounding.model.layers import Embedding, Linear, RMSNorm
from sounding.model.moe import Routing
from sounding.model.state import TensorState, growing_state
from sounding.ops import matmul
from sounding.ops.vector_math import settle_vector_math
from sounding.simulation import EXACT, Simulation


class Prediction(NamedTuple):
    """The result of a chunk, and the logits of some of its rows."""

    streams: Float[Tensor, "t m c"]
    routing: Sequence[Routing]
    logits: Float[Tensor, "r v"]
    taps: Float[Tensor, "t l c"] | None = None
    """See `Output`."""


class MTPBlock(Block):
    """Predicts the token after next: a window block over the main streams and the next token."""

    def __init__(self, config: ModelConfig, simulation: Simulation) -> None:
        super().__init__(config, 0, simulation, hashed=False)
        width = config.hidden_size
        self.enorm = RMSNorm(width, config.rms_norm_eps)
        self.hnorm = RMSNorm(width, config.rms_norm_eps)
        self.e_proj = Linear(width, width, format=config.linear_format, simulation=simulation)
        self.h_proj = Linear(width, width, format=config.linear_format, simulation=simulation)
        register_head(self, config)

    def hidden(self, streams: Float[Tensor, "t m c"]) -> Float[Tensor, "t c"]:
        """The block's own reading of its streams, for the shared vocabulary head."""
        return read_out(self, self.config, streams)


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
        register_head(self, config)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = self._mtp(config, simulation)
        beside = config.dspark if config.dspark is not None and config.dspark.beside else None
        self.drafter = None if beside is None else DSpark(config, beside, simulation)
        self.config = config
        self.simulation = simulation
        self.dtype = dtype

    @staticmethod
    def _mtp(config: ModelConfig, simulation: Simulation) -> nn.ModuleList:
        """Either kind of drafter has this one name in checkpoints, unless it lies beside them."""
        if config.dspark is not None and not config.dspark.beside:
            return DSpark(config, config.dspark, simulation)
        return nn.ModuleList(MTPBlock(config, simulation) for _ in range(config.num_mtp_layers))

    @property
    def blocks(self) -> list[Block]:
        """The layers, by their type."""
        return [block for block in self.layers if isinstance(block, Block)]

    @property
    def mtp_blocks(self) -> list[MTPBlock]:
        """The MTP blocks; none where a DSpark drafter has their name."""
        return [block for block in self.mtp if isinstance(block, MTPBlock)]

    @property
    def dspark(self) -> DSpark | None:
        """The DSpark drafter, if the network has one."""
        return self.mtp if isinstance(self.mtp, DSpark) else self.drafter

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
        tapped = () if self.config.dspark is None else self.config.dspark.target_layer_ids
        return run_blocks(streams, self.blocks, chunk, layers, selection, tapped, replayed)

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
        logits = self.logits(self.hidden(wanted))
        return Prediction(output.streams, output.routing, logits, output.taps)

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
        block = self.mtp_blocks[depth]
        lengths, states = self._sequences(next_tokens, lengths, states)
        drafts = [state.drafts[depth] for state in states]
        chunk = make_chunk(next_tokens, lengths, [draft.length for draft in drafts])
        embedded = block.e_proj(block.enorm(self.embed(next_tokens, self.dtype)))
        combined = embedded[:, None] + block.h_proj(block.hnorm(streams))
        layers = [[draft] for draft in drafts]
        return run_blocks(combined, [block], chunk, layers)

    def draft_block(self, anchors: Int[Tensor, " n"], states: Sequence[TensorState]) -> DraftBlock:
        """Run the DSpark drafter once for each sequence; anchors[i] is the last token chosen, which
        the network has not read.

        The drafter must have read the taps of all tokens before it (`DSpark.read`), or of the last
        window of them; the states do not change.
        """
        dspark = self.dspark
        assert dspark is not None, "this network has no DSpark drafter"
        embedded = self.embed(dspark.tokens_of_block(anchors).flatten(), self.dtype)
        hidden = dspark(embedded, anchors, [state.blocks for state in states])
        logits = self.logits(dspark.normed(hidden.flatten(0, 1)))
        return DraftBlock(hidden, logits.unflatten(0, hidden.shape[:2]))

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
        return read_out(self, self.config, streams)

    def logits(self, hidden: Float[Tensor, "t c"]) -> Float[Tensor, "t v"]:
        """Scores of every next token, in float32."""
        return matmul.wide_linear(hidden, self.head.stored)
