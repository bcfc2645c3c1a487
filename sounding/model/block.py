"""A decoder block on the residual streams, and the parameters that read the streams out.

Source: docs/architecture.md 2 and 3.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.config import ModelConfig
from sounding.model.attention import SPARSE, Attention, IndexReport, Selection
from sounding.model.chunk import Chunk
from sounding.model.layers import RMSNorm
from sounding.model.moe import MoE, Routing
from sounding.model.state import TensorLayerState
from sounding.ops import hyper_connection
from sounding.simulation import Simulation


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
    taps: Float[Tensor, "t l c"] | None = None
    """What a DSpark drafter reads: of each of its layers, the mean of the streams behind it."""

    @property
    def routing(self) -> list[Routing]:
        """The routing of every layer."""
        return [report.routing for report in self.reports]


class Block(nn.Module):
    """Attention, then experts, each reading from and writing to the streams through mHC."""

    attention: ClassVar[type[Attention]] = Attention

    def __init__(
        self, config: ModelConfig, ratio: int, simulation: Simulation, *, hashed: bool
    ) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = self.attention(config, ratio, simulation)
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


def run_blocks(
    streams: Float[Tensor, "t m c"],
    blocks: Sequence[Block],
    chunk: Chunk,
    states: Sequence[Sequence[TensorLayerState]],
    selection: Selection = SPARSE,
    tapped: Sequence[int] = (),
    replayed: Sequence[Int[Tensor, "t k"]] | None = None,
) -> Output:
    """Take a chunk through blocks, one after the other; states[i] are those of sequence i, one
    per block, and replayed[i] the experts that block i must take. Of the `tapped` blocks the
    result has the mean of the streams, in their order."""
    reports = []
    means: dict[int, Tensor] = {}
    for index, block in enumerate(blocks):
        layer_states = [layers[index] for layers in states]
        choices = None if replayed is None else replayed[index]
        streams, report = block(streams, chunk, layer_states, selection, choices)
        reports.append(report)
        if index in tapped:
            means[index] = streams.mean(1)
    taps = torch.stack([means[index] for index in tapped], 1) if tapped else None
    return Output(streams, reports, taps)


def register_head(module: nn.Module, config: ModelConfig) -> None:
    """The parameters that collapse the streams to one vector, and its norm."""
    width = config.hc_mult * config.hidden_size
    module.hc_head_fn = nn.Parameter(torch.empty(config.hc_mult, width))
    module.hc_head_base = nn.Parameter(torch.zeros(config.hc_mult))
    module.hc_head_scale = nn.Parameter(torch.ones(1))
    module.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def collapse(
    module: nn.Module, config: ModelConfig, streams: Float[Tensor, "t m c"]
) -> Float[Tensor, "t c"]:
    """One vector from the streams, before the norm of the head."""
    return hyper_connection.collapse(
        streams,
        module.get_parameter("hc_head_fn"),
        module.get_parameter("hc_head_base"),
        module.get_parameter("hc_head_scale"),
        norm_eps=config.rms_norm_eps,
        hc_eps=config.hc_eps,
    )


def read_out(
    module: nn.Module, config: ModelConfig, streams: Float[Tensor, "t m c"]
) -> Float[Tensor, "t c"]:
    """`collapse`, and the norm of the head."""
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
