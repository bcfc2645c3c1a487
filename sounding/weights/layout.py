"""The published layout as data: every parameter of a network and how it is stored.

Validation, reading, writing, conversion and planning all use it; no other module spells a
tensor name. Pure values: no torch, no files, so describing a model of any size costs nothing.
Source: docs/checkpoints.md 2, 3 and 4; docs/architecture.md 9.4 and 13.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from sounding.config import CSA, DSparkConfig, ModelConfig

# Bytes per element, by safetensors dtype name.
DTYPE_BYTES = {
    "U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2,
    "I16": 2, "F8_E8M0": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "BF16", "F16")
# Names of formats for users; I8 holds packed FP4 pairs.
FORMATS = {
    "I8": "fp4", "F8_E4M3": "fp8", "BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64",
    "I64": "int64", "I32": "int32",
}  # fmt: skip

WEIGHT_TILE = 128  # an FP8 weight has one scale per 128 x 128 tile
FP4_BLOCK = 32  # an FP4 weight has one scale per row and 32 inputs


class Kind(StrEnum):
    """The kind of a parameter, which decides its storage format (docs/architecture.md 9.4)."""

    EXPERT = "expert"  # linear of a routed expert: FP4, FP8 or plain
    LINEAR = "linear"  # dense linear: FP8 or plain
    PLAIN = "plain"  # BF16: embedding, head, norms, router, compressor
    PRECISE = "precise"  # F32: hyper-connections, sinks, biases
    TABLE = "table"  # I64: token id to expert ids


class Component(StrEnum):
    """The parts a report is broken down into."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    COMPRESSOR = "compressor"
    INDEXER = "indexer"
    ROUTER = "router"
    ROUTED = "routed experts"
    SHARED = "shared experts"
    HYPER = "hyper-connections"
    NORM = "norms"
    HEAD = "head"
    MTP = "mtp"
    DSPARK = "dspark"


DRAFTERS = (Component.MTP, Component.DSPARK)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the network under its published name, with its unpacked shape."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    component: Component

    @property
    def scale_name(self) -> str:
        """The stored scales of a quantized linear."""
        return self.name.removesuffix("weight") + "scale"

    @property
    def drafts(self) -> bool:
        """True if it belongs to a drafter, without which the network runs as well."""
        return self.component in DRAFTERS


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: shape as stored, dtype by its safetensors name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """The dtype of each kind of weight, and of the FP8 scales (FP4 scales are always e8m0)."""

    experts: str = "I8"
    linears: str = "F8_E4M3"
    plain: str = "BF16"
    scales: str = "F8_E8M0"

    def dtype(self, kind: Kind) -> str:
        """The dtype that weights of this kind are stored in."""
        fixed = {Kind.PRECISE: "F32", Kind.TABLE: "I64"}
        chosen = {Kind.EXPERT: self.experts, Kind.LINEAR: self.linears, Kind.PLAIN: self.plain}
        return fixed.get(kind) or chosen[kind]


FP4 = Storage()  # as V4-Flash and V4-Pro are published
FP8 = Storage(experts="F8_E4M3")
BASE = Storage(experts="F8_E4M3", scales="F32")  # as the Base models are published
BF16 = Storage(experts="BF16", linears="BF16")
FLOAT32 = Storage(experts="F32", linears="F32", plain="F32")


def storage_of(config: ModelConfig) -> Storage:
    """The storage a config promises; where weights are at hand their dtypes decide instead."""
    if config.quantization_config is None:
        return FLOAT32 if config.torch_dtype == "float32" else BF16
    scales = "F8_E8M0" if config.quantization_config.scale_fmt else "F32"
    return Storage(experts="I8" if config.expert_format == "fp4" else "F8_E4M3", scales=scales)


# --------------------------------------------------------------------------------------------------
# Parameters of the network


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """Every parameter of the network, embedding first, the blocks of a drafter last."""
    vocabulary = (config.vocab_size, config.hidden_size)
    yield Parameter("embed.weight", vocabulary, Kind.PLAIN, Component.EMBEDDING)
    for layer, ratio in enumerate(config.ratios):
        yield from _block(config, f"layers.{layer}", ratio, layer < config.num_hash_layers)
    yield Parameter("norm.weight", (config.hidden_size,), Kind.PLAIN, Component.NORM)
    yield from _hyper_head(config, "")
    yield Parameter("head.weight", vocabulary, Kind.PLAIN, Component.HEAD)
    for index in range(config.num_mtp_layers):
        for parameter in _mtp(config, f"mtp.{index}"):
            yield Parameter(parameter.name, parameter.shape, parameter.kind, Component.MTP)
    if config.dspark is not None:
        for parameter in _dspark(config, config.dspark):
            yield Parameter(parameter.name, parameter.shape, parameter.kind, Component.DSPARK)


def _mtp(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    hidden = config.hidden_size
    yield from _block(config, prefix, 0, hashed=False)
    for name in ("e_proj", "h_proj"):
        yield _linear(f"{prefix}.{name}", hidden, hidden, Component.MTP)
    for name in ("enorm", "hnorm", "norm"):
        yield _norm(f"{prefix}.{name}", hidden)
    yield from _hyper_head(config, f"{prefix}.")


def _dspark(config: ModelConfig, dspark: DSparkConfig) -> Iterator[Parameter]:
    """What reads the network is in the first block, what predicts tokens in the last."""
    prefix, hidden = config.dspark_prefix, config.hidden_size
    last = config.num_dspark_blocks - 1
    table = (config.vocab_size, dspark.markov_rank)
    for stage in range(config.num_dspark_blocks):
        yield from _block(config.draft_block, f"{prefix}{stage}", 0, hashed=False)
        if stage == 0:
            taps = len(dspark.target_layer_ids)
            yield _linear(f"{prefix}0.main_proj", hidden, taps * hidden, Component.DSPARK)
            yield _norm(f"{prefix}0.main_norm", hidden)
        if stage == last:
            yield _norm(f"{prefix}{last}.norm", hidden)
            yield from _hyper_head(config, f"{prefix}{last}.")
            for name in ("markov_w1", "markov_w2"):
                yield _plain(f"{prefix}{last}.markov_head.{name}.weight", table, Component.DSPARK)
            confidence = (1, hidden + dspark.markov_rank)
            name = f"{prefix}{last}.confidence_head.proj.weight"
            yield _plain(name, confidence, Component.DSPARK)


def _block(config: ModelConfig, prefix: str, ratio: int, hashed: bool) -> Iterator[Parameter]:
    yield from _hyper_connections(config, prefix)
    yield _norm(f"{prefix}.attn_norm", config.hidden_size)
    yield _norm(f"{prefix}.ffn_norm", config.hidden_size)
    yield from _attention(config, f"{prefix}.attn", ratio)
    yield from _experts(config, f"{prefix}.ffn", hashed)


def _hyper_connections(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    streams = config.hc_mult
    mixes = (2 + streams) * streams  # read, write and the stream-to-stream matrix
    for site in ("attn", "ffn"):
        name = f"{prefix}.hc_{site}"
        yield _precise(f"{name}_fn", (mixes, streams * config.hidden_size), Component.HYPER)
        yield _precise(f"{name}_base", (mixes,), Component.HYPER)
        yield _precise(f"{name}_scale", (3,), Component.HYPER)


def _hyper_head(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    streams = config.hc_mult
    wide = (streams, streams * config.hidden_size)
    yield _precise(f"{prefix}hc_head_fn", wide, Component.HYPER)
    yield _precise(f"{prefix}hc_head_base", (streams,), Component.HYPER)
    yield _precise(f"{prefix}hc_head_scale", (1,), Component.HYPER)


def _attention(config: ModelConfig, prefix: str, ratio: int) -> Iterator[Parameter]:
    hidden, rank, heads = config.hidden_size, config.q_lora_rank, config.num_attention_heads
    group_outputs = config.o_groups * config.o_lora_rank
    group_inputs = heads * config.head_dim // config.o_groups
    attention = Component.ATTENTION
    yield _precise(f"{prefix}.attn_sink", (heads,), attention)
    yield _linear(f"{prefix}.wq_a", rank, hidden, attention)
    yield _norm(f"{prefix}.q_norm", rank)
    yield _linear(f"{prefix}.wq_b", heads * config.head_dim, rank, attention)
    yield _linear(f"{prefix}.wkv", config.head_dim, hidden, attention)
    yield _norm(f"{prefix}.kv_norm", config.head_dim)
    yield _linear(f"{prefix}.wo_a", group_outputs, group_inputs, attention)
    yield _linear(f"{prefix}.wo_b", hidden, group_outputs, attention)
    if ratio:
        name = f"{prefix}.compressor"
        yield from _compressor(config, name, ratio, config.head_dim, Component.COMPRESSOR)
    if ratio == CSA:
        name, inner = f"{prefix}.indexer", config.index_head_dim
        heads = config.index_n_heads
        yield _linear(f"{name}.wq_b", heads * inner, rank, Component.INDEXER)
        yield _plain(f"{name}.weights_proj.weight", (heads, hidden), Component.INDEXER)
        yield from _compressor(config, f"{name}.compressor", ratio, inner, Component.INDEXER)


def _compressor(
    config: ModelConfig, prefix: str, ratio: int, width: int, component: Component
) -> Iterator[Parameter]:
    channels = 2 * width if ratio == CSA else width  # CSA groups overlap: two halves per token
    yield _precise(f"{prefix}.ape", (ratio, channels), component)
    yield _plain(f"{prefix}.wkv.weight", (channels, config.hidden_size), component)
    yield _plain(f"{prefix}.wgate.weight", (channels, config.hidden_size), component)
    yield Parameter(f"{prefix}.norm.weight", (width,), Kind.PLAIN, component)


def _experts(config: ModelConfig, prefix: str, hashed: bool) -> Iterator[Parameter]:
    hidden, inner, experts = (
        config.hidden_size,
        config.moe_intermediate_size,
        config.n_routed_experts,
    )
    yield _plain(f"{prefix}.gate.weight", (experts, hidden), Component.ROUTER)
    if hashed:
        table = (config.vocab_size, config.num_experts_per_tok)
        yield Parameter(f"{prefix}.gate.tid2eid", table, Kind.TABLE, Component.ROUTER)
    else:
        yield _precise(f"{prefix}.gate.bias", (experts,), Component.ROUTER)
    widths = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
    for expert in range(experts):
        for name, shape in widths.items():
            full = f"{prefix}.experts.{expert}.{name}.weight"
            yield Parameter(full, shape, Kind.EXPERT, Component.ROUTED)
    for name, (outputs, inputs) in widths.items():
        yield _linear(f"{prefix}.shared_experts.{name}", outputs, inputs, Component.SHARED)


def _linear(module: str, outputs: int, inputs: int, component: Component) -> Parameter:
    return Parameter(f"{module}.weight", (outputs, inputs), Kind.LINEAR, component)


def _norm(module: str, width: int) -> Parameter:
    return Parameter(f"{module}.weight", (width,), Kind.PLAIN, Component.NORM)


def _plain(name: str, shape: tuple[int, ...], component: Component) -> Parameter:
    return Parameter(name, shape, Kind.PLAIN, component)


def _precise(name: str, shape: tuple[int, ...], component: Component) -> Parameter:
    return Parameter(name, shape, Kind.PRECISE, component)


# --------------------------------------------------------------------------------------------------
# Tensors of the files


def stored_as(parameter: Parameter, dtype: str, scales: str) -> tuple[StoredTensor, ...]:
    """The tensors that hold a parameter whose weight has this dtype: itself, then its scales.

    `scales` is the dtype of FP8 scales. Raises ValueError for a width that FP4 cannot have.
    """
    if dtype not in ("I8", "F8_E4M3"):
        return (StoredTensor(parameter.name, parameter.shape, dtype),)
    rows, columns = parameter.shape
    if dtype == "F8_E4M3":
        grid = (-(-rows // WEIGHT_TILE), -(-columns // WEIGHT_TILE))
        weight = StoredTensor(parameter.name, (rows, columns), dtype)
        return weight, StoredTensor(parameter.scale_name, grid, scales)
    if columns % FP4_BLOCK:
        raise ValueError(
            f"{parameter.name} has {columns} inputs and cannot be FP4: one scale covers "
            f"{FP4_BLOCK} inputs, so the width must be a multiple of that; choose fp8 or bf16"
        )
    weight = StoredTensor(parameter.name, (rows, columns // 2), dtype)
    scale = StoredTensor(parameter.scale_name, (rows, columns // FP4_BLOCK), "F8_E8M0")
    return weight, scale


def tensors(config: ModelConfig, storage: Storage) -> Iterator[StoredTensor]:
    """Every tensor of a checkpoint in this storage, in the order of `parameters`."""
    for parameter in parameters(config):
        yield from stored_as(parameter, storage.dtype(parameter.kind), storage.scales)


def shard_groups(names: Iterable[str]) -> list[list[str]]:
    """Names as the published shards hold them: embedding, layers, head group, draft blocks."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name in names:
        groups.setdefault(_shard_key(name), []).append(name)
    return [groups[key] for key in sorted(groups)]


def _shard_key(name: str) -> tuple[int, int]:
    first, _, rest = name.partition(".")
    numbered = {"layers": 1, "mtp": 3, "drafter": 4}
    if first in numbered:
        return numbered[first], int(rest.partition(".")[0])
    return (0 if first == "embed" else 2), 0


# --------------------------------------------------------------------------------------------------
# Counts


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of parameters, counted unpacked. Source: docs/architecture.md 13."""

    main: int
    mtp: int
    dspark: int
    active: int
    """Used for one token: its experts, everything shared, the vocabulary head; no embedding."""


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Sizes of the network; tables of token ids are not parameters."""
    main = mtp = dspark = active = routed = 0
    for parameter in parameters(config):
        size = prod(parameter.shape)
        if parameter.kind is Kind.TABLE:
            continue
        if parameter.component is Component.MTP:
            mtp += size
            continue
        if parameter.component is Component.DSPARK:
            dspark += size
            continue
        main += size
        if parameter.component is Component.ROUTED:
            routed += size
        elif parameter.component is not Component.EMBEDDING:
            active += size
    visited = routed * config.num_experts_per_tok // config.n_routed_experts
    return ParameterCount(main, mtp, dspark, active + visited)
