"""The parts of a model and their sizes, from its config or from the headers of its files.

The numbers behind `inspect` and `plan`. Describing a preset needs no weights and no torch.
Source: docs/architecture.md 8.1 and 13.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sounding.config import ModelConfig
from sounding.state.row_layout import ListLayout, entries_read, layer_layouts, packed_row_bytes
from sounding.state.rows import Retention
from sounding.weights.layout import (
    DRAFTERS,
    FORMATS,
    Component,
    Kind,
    Parameter,
    parameters,
    storage_of,
    stored_as,
)

if TYPE_CHECKING:
    from sounding.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Description:
    """A network and the bytes its weights take."""

    config: ModelConfig
    num_tensors: int
    bytes_by_part: dict[tuple[Component, str], int]
    """Sizes by component and format; scales count with their weights."""
    streamed_bytes: int
    """Weights that may stay on disk: routed experts, those of a drafter included."""

    @property
    def total_bytes(self) -> int:
        """All weights, those of a drafter included."""
        return sum(self.bytes_by_part.values())

    def component_bytes(self, component: Component) -> int:
        """The weights of one component, whatever their format."""
        return sum(size for (part, _), size in self.bytes_by_part.items() if part is component)

    @property
    def num_experts(self) -> int:
        """Routed experts of all layers, those of a drafter included."""
        config = self.config
        layers = len(config.ratios) + config.num_mtp_layers
        return layers * config.n_routed_experts + config.num_dspark_blocks * config.draft_experts

    @property
    def active_expert_bytes(self) -> int:
        """Weights of the routed experts that one token visits."""
        config = self.config
        routed = self.component_bytes(Component.ROUTED)
        return routed * config.num_experts_per_tok // config.n_routed_experts

    @property
    def active_dense_bytes(self) -> int:
        """Weights that every token reads: no routed experts, drafters or rows of other tokens."""
        absent = (Component.ROUTED, *DRAFTERS, Component.EMBEDDING)
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
    num_tensors = streamed = 0
    for parameter, dtype, count, num_bytes in sizes:
        part = (parameter.component, FORMATS[dtype])
        by_part[part] = by_part.get(part, 0) + num_bytes
        num_tensors += count
        streamed += num_bytes if parameter.kind is Kind.EXPERT else 0
    return Description(config, num_tensors, by_part, streamed)


# --------------------------------------------------------------------------------------------------
# State of a sequence


@dataclass(frozen=True)
class StateSize:
    """Bytes of one sequence's state in the packed deploy format, drafters left out.

    See `packed_row_bytes` for the formats.
    """

    config: ModelConfig

    @property
    def entry_bytes(self) -> int:
        """One window or compressed entry; 584 for the published models."""
        return self._row_bytes(ListLayout("entries", self.config.head_dim, Retention(None)))

    @property
    def index_entry_bytes(self) -> int:
        """One entry of the indexer; 68 for the published models."""
        width = self.config.index_head_dim
        return self._row_bytes(ListLayout("index_entries", width, Retention(None)))

    @property
    def bytes_per_token(self) -> float:
        """Growth of the state, averaged over a long sequence."""
        growing = (rows for rows in self._lists() if rows.retention.kept is None)
        return sum(self._row_bytes(rows) / rows.tokens_per_row for rows in growing)

    @property
    def constant_bytes(self) -> int:
        """Windows, and the float32 projections of unfinished groups."""
        return self.bytes_at(0)

    def bytes_at(self, num_tokens: int) -> int:
        """The whole state after this many tokens."""
        return sum(rows.slots(num_tokens) * self._row_bytes(rows) for rows in self._lists())

    def bytes_read_at(self, num_tokens: int) -> int:
        """Bytes of state read for the last of so many tokens: entries attended to, and index
        entries scored."""
        entries, index_entries = entries_read(self.config, num_tokens)
        return entries * self.entry_bytes + index_entries * self.index_entry_bytes

    def _lists(self) -> Iterator[ListLayout]:
        for layer in layer_layouts(self.config):
            yield from layer.lists()

    def _row_bytes(self, rows: ListLayout) -> int:
        return packed_row_bytes(self.config, rows)
