"""The DSpark drafter: blocks that draft several tokens at once from the network's own streams.

The last token chosen, the anchor, and `noise` in place of the tokens behind it are one block. It
sees the window of the network's tokens before it, and all of itself; row i scores the token i + 1
behind the anchor. What a row cannot know, the token drafted before its own, a table of pairs of
tokens corrects afterwards (`correct`), which also says how likely the draft is to survive.

The keys of a token of the network are made of its taps alone (`read`), so a drafter reads only
tokens that stay, and its state never goes back. Source: docs/architecture.md 11.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.config import DSparkConfig, ModelConfig
from sounding.model.attention import SPARSE, Attention, IndexReport, Selection
from sounding.model.block import Block, collapse, register_head, run_blocks
from sounding.model.chunk import Chunk, make_chunk
from sounding.model.layers import Embedding, Linear, RMSNorm
from sounding.model.state import TensorLayerState
from sounding.ops.attention import attend_to_all
from sounding.ops.matmul import wide_linear
from sounding.ops.rope import rotate, rotation
from sounding.simulation import Simulation


class DraftBlock(NamedTuple):
    """What the drafter says of the tokens behind each anchor, before `DSpark.correct`."""

    hidden: Float[Tensor, "n b c"]
    logits: Float[Tensor, "n b v"]


class Correction(NamedTuple):
    """What the token before a draft adds to its scores."""

    bias: Float[Tensor, "n v"]
    """To be added to the logits of the block's row."""
    confidence: Float[Tensor, " n"]
    """Its sigmoid is the probability that the draft is accepted if all before it were."""


class DSparkAttention(Attention):
    """Attention of a drafted block to the window before it, and to all of itself."""

    def forward(
        self,
        x: Float[Tensor, "t c"],
        chunk: Chunk,
        states: list[TensorLayerState],
        selection: Selection = SPARSE,
    ) -> tuple[Float[Tensor, "t c"], IndexReport]:
        """Attend for every token of the blocks; the states stay as they are."""
        by = rotation(chunk.positions, self.frequencies(x.device))
        _, q = self.queries(x, by)
        keys = self.keys(x, by)
        read = [
            attend_to_all(queries, self._visible(rows, state), self.attn_sink)
            for queries, rows, state in zip(chunk.split(q), chunk.split(keys), states, strict=True)
        ]
        return self.project(rotate(torch.cat(read), by, inverse=True)), IndexReport()

    def _visible(self, rows: Float[Tensor, "b d"], state: TensorLayerState) -> Float[Tensor, "s d"]:
        """The window before the block, which does not move on within it, and the block's rows."""
        seen = state.window.fork().append(rows)
        return seen[-(self.config.sliding_window + len(rows)) :]


class MarkovHead(nn.Module):
    """Scores of pairs of tokens, of a low rank: <w2[next], w1[previous]>."""

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = Embedding(vocab_size, rank)
        self.markov_w2 = Linear(rank, vocab_size)


class ConfidenceHead(nn.Module):
    """The logit of a draft's survival, from its row and the token before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Linear(width, 1)


class DSparkBlock(Block):
    """A window block with learned routing; the first and the last have parameters of their own."""

    attention = DSparkAttention

    def __init__(
        self,
        config: ModelConfig,
        dspark: DSparkConfig,
        simulation: Simulation,
        *,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__(config.draft_block, 0, simulation, hashed=False)
        width, rank = config.hidden_size, dspark.markov_rank
        self.main_proj: Linear | None = None
        self.main_norm: RMSNorm | None = None
        self.markov_head: MarkovHead | None = None
        self.confidence_head: ConfidenceHead | None = None
        if first:  # reads the network
            self.main_proj = Linear(
                len(dspark.target_layer_ids) * width,
                width,
                format=config.linear_format,
                simulation=simulation,
            )
            self.main_norm = RMSNorm(width, config.rms_norm_eps)
        if last:  # predicts tokens
            register_head(self, config)
            self.markov_head = MarkovHead(config.vocab_size, rank)
            self.confidence_head = ConfidenceHead(width + rank)


class DSpark(nn.ModuleList):
    """The blocks of a drafter, under the names that MTP blocks have in other checkpoints."""

    def __init__(self, config: ModelConfig, dspark: DSparkConfig, simulation: Simulation) -> None:
        last = config.num_dspark_blocks - 1
        super().__init__(
            DSparkBlock(config, dspark, simulation, first=stage == 0, last=stage == last)
            for stage in range(config.num_dspark_blocks)
        )
        self.config = config
        self.block_size = dspark.block_size
        self.noise = dspark.noise_token_id

    @property
    def blocks(self) -> list[DSparkBlock]:
        """The blocks, by their type."""
        return [block for block in self if isinstance(block, DSparkBlock)]

    def read(
        self,
        taps: Float[Tensor, "t l c"],
        lengths: Sequence[int],
        states: Sequence[Sequence[TensorLayerState]],
    ) -> None:
        """Append tokens of the network: lengths[i] to the sequence of states[i].

        The vector made of a token's taps passes through no block: each makes its keys of it.
        """
        starts = [layers[0].length for layers in states]
        for stage, keys in enumerate(self.keys(taps, lengths, starts)):
            for rows, layers in zip(keys.split(list(lengths)), states, strict=True):
                layers[stage].window.append(rows)

    def keys(
        self, taps: Float[Tensor, "t l c"], lengths: Sequence[int], starts: Sequence[int]
    ) -> list[Float[Tensor, "t d"]]:
        """The keys that each block makes of tokens from position starts[i] on."""
        first = self.blocks[0]
        assert first.main_proj is not None and first.main_norm is not None
        x = first.main_norm(first.main_proj(taps.flatten(1)))
        no_tokens = torch.zeros(len(x), dtype=torch.long, device=x.device)
        by = rotation(
            make_chunk(no_tokens, lengths, starts).positions, first.attn.frequencies(x.device)
        )
        return [block.attn.keys(x, by) for block in self.blocks]

    def tokens_of_block(self, anchors: Int[Tensor, " n"]) -> Int[Tensor, "n b"]:
        """The tokens that the blocks read: anchors, then noise."""
        tokens = anchors.new_full((len(anchors), self.block_size), self.noise)
        tokens[:, 0] = anchors
        return tokens

    def forward(
        self,
        embedded: Float[Tensor, "t c"],
        anchors: Int[Tensor, " n"],
        states: Sequence[Sequence[TensorLayerState]],
    ) -> Float[Tensor, "n b c"]:
        """Run the blocks of all anchors; `embedded` are the embeddings of their tokens."""
        tokens = self.tokens_of_block(anchors)
        starts = [layers[0].length for layers in states]
        chunk = make_chunk(tokens.flatten(), [self.block_size] * len(tokens), starts)
        streams = embedded[:, None].expand(-1, self.config.hc_mult, -1)
        made = run_blocks(streams, self.blocks, chunk, states)
        return collapse(self.blocks[-1], self.config, made.streams).unflatten(0, tokens.shape)

    def normed(self, hidden: Float[Tensor, "t c"]) -> Float[Tensor, "t c"]:
        """The vocabulary head's input."""
        norm = self.blocks[-1].norm
        assert isinstance(norm, RMSNorm)
        made: Tensor = norm(hidden)
        return made

    def correct(self, hidden: Float[Tensor, "n c"], previous: Int[Tensor, " n"]) -> Correction:
        """For one row of each block, the correction by the token drafted for the row before, or
        for row 0 by the anchor; in float32 at least."""
        last = self.blocks[-1]
        assert last.markov_head is not None and last.confidence_head is not None
        pair = last.markov_head.markov_w1(previous, hidden.dtype)
        bias = wide_linear(pair, last.markov_head.markov_w2.stored)
        both = torch.cat((hidden, pair), -1)
        return Correction(bias, wide_linear(both, last.confidence_head.proj.stored)[:, 0])
