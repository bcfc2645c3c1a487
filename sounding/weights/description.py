"""The parts of a model and their sizes, from its config or from the headers of its files.

The numbers behind `inspect` and `plan`. Describing a preset needs no weights and no torch.
Source: docs/architecture.md 8.1 and 13.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sounding.config import CSA, HCA, ModelConfig
from sounding.weights.layout import (
    FORMATS,
    Component,
    Parameter,
    parameters,
    storage_of,
    stored_as,
)

if TYPE_CHECKING:
    from sounding.weights.checkpoint import Checkpoint

_SCALE_ALIGNMENT = 8  # the scales of a main entry are padded to a multiple of this
_KV_BLOCK = 64  # channels of a main entry that share a scale byte
_INDEX_BLOCK = 32  # channels of an indexer entry that share a scale byte


@dataclass(frozen=True)
class Description:
    """A network and the bytes its weights take."""

    config: ModelConfig
    num_tensors: int
    bytes_by_part: dict[tuple[Component, str], int]
    """Sizes by component and format; scales count with their weights."""

    @property
    def total_bytes(self) -> int:
        """All weights, MTP block included."""
        return sum(self.bytes_by_part.values())

    def component_bytes(self, component: Component) -> int:
        """The weights of one component, whatever their format."""
        return sum(size for (part, _), size in self.bytes_by_part.items() if part is component)

    @property
    def active_expert_bytes(self) -> int:
        """Weights of the routed experts that one token visits."""
        config = self.config
        routed = self.component_bytes(Component.ROUTED)
        return routed * config.num_experts_per_tok // config.n_routed_experts

    @property
    def active_dense_bytes(self) -> int:
        """Weights that every token reads: all but routed experts, MTP, and other tokens' rows."""
        absent = (Component.ROUTED, Component.MTP, Component.EMBEDDING)
        dense = self.total_bytes - sum(map(self.component_bytes, absent))
        for (part, name), size in self.bytes_by_part.items():
            if part is Component.ROUTER and name.startswith("int"):  # table of token ids
                dense -= size
        return dense


def describe_config(config: ModelConfig) -> Description:
    """Describe a network stored in the formats of its config."""
    storage = storage_of(config)

    def sizes() -> Iterable[tuple[Parameter, str, int, int]]:
        for parameter in parameters(config):
            dtype = storage.dtype(parameter.kind)
            stored = stored_as(parameter, dtype, storage.scales)
            yield parameter, dtype, len(stored), sum(tensor.num_bytes for tensor in stored)

    return _describe(config, sizes())


def describe_checkpoint(checkpoint: "Checkpoint") -> Description:
    """A network as it lies in a folder."""

    def sizes() -> Iterable[tuple[Parameter, str, int, int]]:
        for parameter in checkpoint.parameters:
            names = (parameter.name, parameter.scale_name)
            found = [checkpoint.sources[name] for name in names if name in checkpoint.sources]
            yield parameter, found[0].dtype, len(found), sum(source.num_bytes for source in found)

    return _describe(checkpoint.config, sizes())


def _describe(config: ModelConfig, sizes: Iterable[tuple[Parameter, str, int, int]]) -> Description:
    by_part: dict[tuple[Component, str], int] = {}
    num_tensors = 0
    for parameter, dtype, count, num_bytes in sizes:
        part = (parameter.component, FORMATS[dtype])
        by_part[part] = by_part.get(part, 0) + num_bytes
        num_tensors += count
    return Description(config, num_tensors, by_part)


# --------------------------------------------------------------------------------------------------
# State of a sequence


@dataclass(frozen=True)
class StateSize:
    """Bytes of one sequence's state in the packed deploy format, MTP block left out.

    A main entry is FP8 with a bf16 rotary slice, an indexer entry is FP4; groups not yet complete
    wait in float32.
    """

    config: ModelConfig

    @property
    def entry_bytes(self) -> int:
        """One window or compressed entry; 584 for the published models."""
        rotary = self.config.qk_rope_head_dim
        plain = self.config.head_dim - rotary
        scales = -(-plain // _KV_BLOCK)
        return plain + 2 * rotary + -(-scales // _SCALE_ALIGNMENT) * _SCALE_ALIGNMENT

    @property
    def index_entry_bytes(self) -> int:
        """One entry of the indexer; 68 for the published models."""
        width = self.config.index_head_dim
        return width // 2 + -(-width // _INDEX_BLOCK)

    @property
    def bytes_per_token(self) -> float:
        """Growth of the state, averaged over a long sequence."""
        csa, hca = self._count(CSA), self._count(HCA)
        both = self.entry_bytes + self.index_entry_bytes
        return csa * both / CSA + hca * self.entry_bytes / HCA

    @property
    def constant_bytes(self) -> int:
        """Windows, and the float32 projections of unfinished groups."""
        config = self.config
        window = config.sliding_window * self.entry_bytes * config.num_hidden_layers
        # CSA keeps two groups of both halves, values and gates; HCA one group of one.
        csa = 2 * CSA * 2 * (config.head_dim + config.index_head_dim) * 2 * 4
        hca = HCA * config.head_dim * 2 * 4
        return window + self._count(CSA) * csa + self._count(HCA) * hca

    def bytes_at(self, num_tokens: int) -> int:
        """The whole state after this many tokens."""
        csa = self._count(CSA) * (num_tokens // CSA) * (self.entry_bytes + self.index_entry_bytes)
        hca = self._count(HCA) * (num_tokens // HCA) * self.entry_bytes
        return self.constant_bytes + csa + hca

    def bytes_read_at(self, num_tokens: int) -> int:
        """Bytes of state read per decoded token: windows, selected entries, and the whole index."""
        config = self.config
        window = min(num_tokens, config.sliding_window) * config.num_hidden_layers
        chosen = min(config.index_topk, num_tokens // CSA) * self._count(CSA)
        pooled = num_tokens // HCA * self._count(HCA)
        index = num_tokens // CSA * self._count(CSA) * self.index_entry_bytes
        return (window + chosen + pooled) * self.entry_bytes + index

    def _count(self, ratio: int) -> int:
        return sum(1 for layer_ratio in self.config.ratios if layer_ratio == ratio)
