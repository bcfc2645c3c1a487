"""ctypes structs that describe a network to the C++ kernels and point to its weights in place."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sounding.config import CSA, ModelConfig
from sounding.native.structs import (
    NativeDraftEnds,
    NativeEnds,
    NativeHyperConnection,
    NativeLayer,
    NativeNetwork,
    NativePooling,
    NativeVector,
    NativeWeight,
)
from sounding.rotary import rope_frequencies
from sounding.simulation import Simulation
from sounding.weights.expert_files import PARTS
from sounding.weights.layout import DTYPE_BYTES, FP4_BLOCK, WEIGHT_TILE
from sounding.weights.raw import RawTensor

if TYPE_CHECKING:
    from sounding.native.expert_store import ExpertStore

_FORMATS = {"F32": 0, "BF16": 1, "F8_E4M3": 2, "I8": 3}
_PLAIN = ("F32", "BF16")
# With scales outside this range the exponent of a value may not fit in a bfloat16.
LEAST_SCALE, LARGEST_SCALE = 10, 240


class NotServed(ValueError):
    """The kernels cannot run this network; the message says why. The reference can."""


class DraftDescription(NamedTuple):
    """The structs of an MTP block."""

    layer: NativeLayer
    begins: NativeDraftEnds
    """What its input is made with."""
    ends: NativeEnds
    """What the shared head reads its streams with."""


class DSparkDescription(NamedTuple):
    """The structs of a DSpark drafter."""

    network: NativeNetwork
    """The network, with the experts of a draft block."""
    layers: list[NativeLayer]
    ends: NativeEnds
    main_proj: NativeWeight
    main_norm: NativeVector
    markov_w1: RawTensor
    """Read row by row."""
    markov_w2: NativeWeight
    confidence: NativeWeight


class NetworkDescription:
    """The structs of a network; it keeps the buffers alive that they point to."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, RawTensor],
        simulation: Simulation,
        store: "ExpertStore | None" = None,
    ) -> None:
        """`tensors` by their published names; with `store` the routed experts come from there.
        Raises NotServed."""
        if simulation.weights:
            raise NotServed("the kernels do not round weights at each use")
        self._tensors, self._simulation, self.store = tensors, simulation, store
        self._kept: list[Any] = [tensors]
        self.config = config
        self.tables: list[NDArray[np.int64]] = []
        """Of the hash layers, which come first: token to experts."""
        self.network = _network(config, simulation)
        self.layers = [
            self._layer(f"layers.{index}", ratio, index < config.num_hash_layers)
            for index, ratio in enumerate(config.ratios)
        ]
        self.ends = self._ends("")
        self.drafts = [self._draft(f"mtp.{index}.") for index in range(config.num_mtp_layers)]
        self.dspark = None if config.dspark is None else self._dspark()

    # ----------------------------------------------------------------------------------------------

    def _draft(self, prefix: str) -> DraftDescription:
        begins = NativeDraftEnds(
            embedding=self._weight("embed.weight"),
            e_proj=self._linear(f"{prefix}e_proj"),
            h_proj=self._linear(f"{prefix}h_proj"),
            enorm=self._vector(f"{prefix}enorm.weight"),
            hnorm=self._vector(f"{prefix}hnorm.weight"),
        )
        layer = self._layer(prefix.rstrip("."), 0, False)
        return DraftDescription(layer, begins, self._ends(prefix))

    def _dspark(self) -> DSparkDescription:
        config, count = self.config, self.config.num_dspark_blocks
        prefix = config.dspark_prefix
        last = f"{prefix}{count - 1}."
        pairs = self._tensors[f"{last}markov_head.markov_w1.weight"]
        if pairs.dtype != "BF16":
            raise NotServed(f"{last}markov_head.* are {pairs.dtype}; the kernels read bfloat16")
        experts = config.draft_experts
        return DSparkDescription(
            _network(config.draft_block, self._simulation),
            [self._layer(f"{prefix}{stage}", 0, False, experts) for stage in range(count)],
            self._ends(last),
            self._linear(f"{prefix}0.main_proj"),
            self._vector(f"{prefix}0.main_norm.weight"),
            pairs,
            self._exact(f"{last}markov_head.markov_w2.weight"),
            self._exact(f"{last}confidence_head.proj.weight"),
        )

    def _ends(self, prefix: str) -> NativeEnds:
        return NativeEnds(
            embedding=self._weight("embed.weight"),
            head=self._exact("head.weight"),
            hc=self._hyper_connection(f"{prefix}hc_head"),
            norm=self._vector(f"{prefix}norm.weight"),
        )

    def _layer(
        self, name: str, ratio: int, hashed: bool, experts: int | None = None
    ) -> NativeLayer:
        """A layer with as many experts as those of the network have, or `experts`."""
        config = self.config
        experts = experts or config.n_routed_experts
        yarn = config.rope_scaling if ratio else None
        theta = config.compress_rope_theta if ratio else config.rope_theta
        frequencies = np.ascontiguousarray(rope_frequencies(config.qk_rope_head_dim, theta, yarn))
        self._kept.append(frequencies)
        layer = NativeLayer(
            ratio=ratio,
            frequencies=frequencies.ctypes.data,
            attn_norm=self._vector(f"{name}.attn_norm.weight"),
            ffn_norm=self._vector(f"{name}.ffn_norm.weight"),
            q_norm=self._vector(f"{name}.attn.q_norm.weight"),
            kv_norm=self._vector(f"{name}.attn.kv_norm.weight"),
            sink=self._vector(f"{name}.attn.attn_sink"),
            attn_hc=self._hyper_connection(f"{name}.hc_attn"),
            ffn_hc=self._hyper_connection(f"{name}.hc_ffn"),
            gate=self._exact(f"{name}.ffn.gate.weight"),
        )
        for part in ("wq_a", "wq_b", "wkv", "wo_b"):
            setattr(layer, part, self._linear(f"{name}.attn.{part}"))
        # The inputs of the grouped output projection are not rounded. docs/architecture.md 5.6
        layer.wo_a = self._linear(f"{name}.attn.wo_a", simulate=False)
        for part in ("w1", "w2", "w3"):
            setattr(layer, f"shared_{part}", self._linear(f"{name}.ffn.shared_experts.{part}"))
        self._set_experts(layer, name, experts)
        if ratio:
            layer.compressor = self._pooling(f"{name}.attn.compressor", config.head_dim)
        if ratio == CSA:
            indexer = f"{name}.attn.indexer"
            layer.index_compressor = self._pooling(f"{indexer}.compressor", config.index_head_dim)
            layer.index_wq_b = self._linear(f"{indexer}.wq_b")
            layer.index_weights = self._weight(f"{indexer}.weights_proj.weight")
        if hashed:
            layer.table = self._table(f"{name}.ffn.gate.tid2eid")
        else:
            layer.bias = self._vector(f"{name}.ffn.gate.bias")
        return layer

    def _set_experts(self, layer: NativeLayer, name: str, count: int) -> None:
        """One weight per expert; they need not be contiguous, nor in memory with a store."""
        store = self.store
        number = 0 if store is None else store.files.names.index(name)
        arrays = []
        for part in PARTS:
            if store is None:
                described = [
                    self._linear(f"{name}.ffn.experts.{expert}.{part}") for expert in range(count)
                ]
            else:
                described = [self._stored_expert(store, number, part)] * count
            arrays.append((NativeWeight * count)(*described))
            setattr(layer, part, ctypes.cast(arrays[-1], ctypes.c_void_p))
        self._kept += arrays
        if store is not None:
            store.attach(number, arrays)
            layer.source, layer.number = ctypes.addressof(store.source), number

    def _stored_expert(self, store: "ExpertStore", layer: int, part: str) -> NativeWeight:
        """An expert's weight without its addresses, which the store sets."""
        sources = store.files.sources[layer]
        values, scale = sources[f"{part}.weight"], sources.get(f"{part}.scale")
        return describe_matrix(
            values.where,
            (values.dtype, values.shape),
            None if scale is None else scale.dtype,
            simulate=self._rounded(f".ffn.experts.{part}"),
        )

    def _pooling(self, name: str, width: int) -> NativePooling:
        return NativePooling(
            self._exact(f"{name}.wkv.weight"),
            self._exact(f"{name}.wgate.weight"),
            self._vector(f"{name}.ape"),
            self._vector(f"{name}.norm.weight"),
            width,
        )

    def _hyper_connection(self, name: str) -> NativeHyperConnection:
        parts = [self._tensors[f"{name}_{leaf}"] for leaf in ("fn", "base", "scale")]
        if any(part.dtype != "F32" for part in parts):
            raise NotServed(f"{name}_* are {parts[0].dtype}; the kernels read float32")
        return NativeHyperConnection(*(part.address for part in parts))

    def _linear(self, name: str, *, simulate: bool = True) -> NativeWeight:
        """A linear layer that is deployed in FP8 or FP4; with `simulate` False its inputs are never
        rounded."""
        return self._weight(f"{name}.weight", simulate=simulate and self._rounded(name))

    def _rounded(self, name: str) -> bool:
        """True if the inputs of a linear layer are rounded."""
        experts = ".ffn.experts." in name
        deployed = self.config.expert_format if experts else self.config.linear_format
        return deployed is not None and self._simulation.linear_inputs

    def _weight(self, name: str, *, simulate: bool = False) -> NativeWeight:
        scale = self._tensors.get(name.removesuffix("weight") + "scale")
        return describe_weight(name, self._tensors[name], scale, simulate=simulate)

    def _exact(self, name: str) -> NativeWeight:
        """A weight that the reference uses in float32, so that only bfloat16 is served."""
        if self._tensors[name].dtype != "BF16":
            raise NotServed(f"{name} is {self._tensors[name].dtype}; the kernels read bfloat16")
        return self._weight(name)

    def _vector(self, name: str) -> NativeVector:
        values = self._tensors[name]
        if values.dtype not in _PLAIN:
            raise NotServed(f"{name} is {values.dtype}; the kernels read float32 and bfloat16")
        return NativeVector(values.address, values.dtype == "BF16")

    def _table(self, name: str) -> int:
        table = np.ascontiguousarray(self._tensors[name].array, dtype=np.int64)
        self.tables.append(table)
        return table.ctypes.data


def describe_weight(
    name: str, values: RawTensor, scale: RawTensor | None, *, simulate: bool = False
) -> NativeWeight:
    """Describe a matrix [o, i], or FP4 codes [o, i / 2]. Raises NotServed."""
    scale_dtype = None if scale is None else scale.dtype
    weight = describe_matrix(name, (values.dtype, values.shape), scale_dtype, simulate=simulate)
    weight.values, weight.row_bytes = values.address, values.array.strides[0]
    if scale is not None:
        low, high = int(scale.array.min()), int(scale.array.max())
        if low < LEAST_SCALE or high > LARGEST_SCALE:
            raise NotServed(
                f"the scales of {name} are {scale.dtype} from code {low} to {high}; the kernels "
                f"read F8_E8M0 from {LEAST_SCALE} to {LARGEST_SCALE}"
            )
        weight.scales = scale.address
    return weight


def describe_matrix(
    name: str,
    stored: tuple[str, tuple[int, ...]],
    scale_dtype: str | None,
    *,
    simulate: bool,
) -> NativeWeight:
    """A weight by its dtype and shape as stored, without addresses. Raises NotServed."""
    dtype, (rows, width) = stored
    if dtype not in _FORMATS or (dtype in ("F8_E4M3", "I8")) != (scale_dtype is not None):
        raise NotServed(f"{name} is {dtype}; the kernels do not read that")
    columns, scale_row = width, 0
    if scale_dtype is not None:
        if scale_dtype != "F8_E8M0":
            raise NotServed(f"the scales of {name} are {scale_dtype}; the kernels read F8_E8M0")
        columns *= 2 if dtype == "I8" else 1
        scale_row = -(-columns // (FP4_BLOCK if dtype == "I8" else WEIGHT_TILE))
    return NativeWeight(
        rows=rows,
        columns=columns,
        row_bytes=width * DTYPE_BYTES[dtype],
        scale_row=scale_row,
        format=_FORMATS[dtype],
        simulate=simulate,
    )


def pointers(layers: Sequence[NativeLayer]) -> "ctypes.Array[ctypes.c_void_p]":
    """The addresses of structs: a list of layers for the kernels."""
    return (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))


def _network(config: ModelConfig, simulation: Simulation) -> NativeNetwork:
    _require_shapes(config)
    return NativeNetwork(
        channels=config.hidden_size,
        streams=config.hc_mult,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        rotary=config.qk_rope_head_dim,
        q_rank=config.q_lora_rank,
        groups=config.o_groups,
        o_rank=config.o_lora_rank,
        window=config.sliding_window,
        index_heads=config.index_n_heads,
        index_width=config.index_head_dim,
        index_limit=config.index_topk,
        experts=config.n_routed_experts,
        choices=config.num_experts_per_tok,
        inner=config.moe_intermediate_size,
        vocabulary=config.vocab_size,
        iterations=config.hc_sinkhorn_iters,
        simulate_kv=simulation.kv,
        simulate_index=simulation.indexer,
        norm_eps=config.rms_norm_eps,
        hc_eps=config.hc_eps,
        swiglu_limit=config.swiglu_limit,
        routed_scale=config.routed_scaling_factor,
    )


def _require_shapes(config: ModelConfig) -> None:
    """Raise NotServed for shapes that the kernels are not written for."""
    width = config.index_head_dim
    rules = {
        "hidden_size": config.hidden_size % 32 == 0,
        "head_dim": config.head_dim % 32 == 0,
        "moe_intermediate_size": config.moe_intermediate_size % 32 == 0,
        "index_head_dim": width % 32 == 0 and width & (width - 1) == 0 and width <= 1024,
        "qk_rope_head_dim": config.qk_rope_head_dim <= 1024,
        "hc_mult": config.hc_mult <= 8,
        "compress_ratios": all(ratio in (0, CSA) or CSA < ratio <= 256 for ratio in config.ratios),
    }
    for name, holds in rules.items():
        if not holds:
            raise NotServed(f"the kernels do not support {name} = {getattr(config, name)}")
