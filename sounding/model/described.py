"""Networks and states as native code is told of them: structs of pointers into tensors."""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sounding.config import CSA
from sounding.model.attention import Attention
from sounding.model.compressor import Compressor
from sounding.model.layers import Linear, RMSNorm
from sounding.model.moe import MoE
from sounding.model.state import LayerState
from sounding.model.transformer import Transformer
from sounding.ops.cpu.inference import network as native
from sounding.ops.matmul import Weight
from sounding.ops.rope import rope_frequencies

_LISTS = 5  # of rows per layer: RowsOf in network.h


class Described:
    """Blocks as structs, with the tensors that those point into."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = [id(block) for block in blocks]
        # A module's dict of parameters stays, whatever becomes of them.
        self._watched = [_parts(block)[0].wq_a._parameters for block in (blocks[0], blocks[-1])]
        self._addresses = self._watched_addresses()
        self._kept: list[Any] = []
        layers = [self._layer(block) for block in blocks]
        self._layers = layers
        self._pointers = (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))
        self.network = self._network(blocks[0])
        self._ends: native.NativeEnds | None = None
        self._ends_at = (0, 0)

    def is_of(self, blocks: Sequence[nn.Module]) -> bool:
        """Whether these are the blocks, and still where they were."""
        return (
            self._blocks == [id(block) for block in blocks]
            and self._addresses == self._watched_addresses()
        )

    def _watched_addresses(self) -> list[int]:
        weights = [parameters["weight"] for parameters in self._watched]
        return [0 if weight is None else weight.data_ptr() for weight in weights]

    def run(
        self,
        streams: Tensor,
        tokens: Tensor,
        lengths: list[int],
        states: Sequence[Sequence[LayerState]],
        chosen: Tensor,
        scores: Tensor,
        reading: native.Reading | None = None,
    ) -> bool:
        """Run one piece of a chunk; lists without room for it are given some.

        False if it goes from tokens to logits and one of them is no token; nothing is done then.
        """
        lists = _addresses(states)
        given = (streams, tokens, lengths, lists, chosen, scores, reading)
        while (crowded := native.run(self.network, self._pointers, *given)) >= 0:
            sequence, rest = divmod(crowded, len(self._layers) * _LISTS)
            layer, number = divmod(rest, _LISTS)
            rows = states[sequence][layer].rows()[number]
            assert rows is not None
            rows.make_room(lengths[sequence], torch.float32 if number in (1, 3) else torch.bfloat16)
        return crowded == native.DONE

    def ends(self, network: Transformer) -> native.NativeEnds | None:
        """What stands around the blocks; None where the reference has to serve it."""
        at = network.embed.weight.data_ptr(), network.head.weight.data_ptr()
        if at != self._ends_at:
            self._ends_at = at
            try:
                self._ends = self._describe_ends(network)
            except _NotServed:
                self._ends = None
        return self._ends

    def _describe_ends(self, network: Transformer) -> native.NativeEnds:
        embedding = native.describe_weight(Weight(network.embed.weight))
        norm = network.norm
        if embedding is None or not isinstance(norm, RMSNorm):
            raise _NotServed
        return native.NativeEnds(
            embedding=embedding,
            head=self._exact(network.head.weight),
            hc=self._hyper_connection(network, "head"),
            norm=self._vector(norm.weight),
        )

    def _network(self, block: nn.Module) -> native.NativeNetwork:
        attention, moe, config = _parts(block)
        return native.NativeNetwork(
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
            simulate_kv=attention.simulation.kv,
            simulate_index=attention.simulation.indexer,
            norm_eps=config.rms_norm_eps,
            hc_eps=config.hc_eps,
            swiglu_limit=moe.limit,
            routed_scale=config.routed_scaling_factor,
        )

    def _layer(self, block: nn.Module) -> native.NativeLayer:
        attention, moe, config = _parts(block)
        yarn = config.rope_scaling if attention.ratio else None
        theta = config.compress_rope_theta if attention.ratio else config.rope_theta
        frequencies = rope_frequencies(
            config.qk_rope_head_dim, theta, yarn, attention.wq_a.weight.device
        )
        self._kept.append(frequencies)
        layer = native.NativeLayer(
            ratio=attention.ratio,
            frequencies=frequencies.data_ptr(),
            attn_norm=self._vector(block.get_parameter("attn_norm.weight")),
            ffn_norm=self._vector(block.get_parameter("ffn_norm.weight")),
            q_norm=self._vector(attention.q_norm.weight),
            kv_norm=self._vector(attention.kv_norm.weight),
            sink=self._vector(attention.attn_sink),
            attn_hc=self._hyper_connection(block, "attn"),
            ffn_hc=self._hyper_connection(block, "ffn"),
            gate=self._exact(moe.gate.weight),
            w1=self._weight(moe.experts.w1),
            w2=self._weight(moe.experts.w2),
            w3=self._weight(moe.experts.w3),
            shared_w1=self._weight(moe.shared_experts.w1),
            shared_w2=self._weight(moe.shared_experts.w2),
            shared_w3=self._weight(moe.shared_experts.w3),
        )
        for name in ("wq_a", "wq_b", "wkv", "wo_b"):
            setattr(layer, name, self._weight(attention.get_submodule(name)))
        layer.wo_a = self._weight(attention.wo_a, simulate=False)  # docs/architecture.md 5.6
        if attention.compressor is not None:
            layer.compressor = self._pooling(attention.compressor)
        if attention.indexer is not None:
            layer.index_compressor = self._pooling(attention.indexer.compressor)
            layer.index_wq_b = self._weight(attention.indexer.wq_b)
            layer.index_weights = self._weight(attention.indexer.weights_proj)
        if moe.gate.tid2eid is not None:
            if moe.gate.tid2eid.dtype != torch.int64:
                raise _NotServed
            self._kept.append(moe.gate.tid2eid)
            layer.table = moe.gate.tid2eid.data_ptr()
        else:
            layer.bias = self._vector(moe.gate.bias)
        return layer

    def _pooling(self, compressor: Compressor) -> native.NativePooling:
        return native.NativePooling(
            self._exact(compressor.wkv.weight),
            self._exact(compressor.wgate.weight),
            self._vector(compressor.ape),
            self._vector(compressor.norm.weight),
            compressor.norm.weight.shape[0],
        )

    def _hyper_connection(self, block: nn.Module, name: str) -> native.NativeHyperConnection:
        parts = [block.get_parameter(f"hc_{name}_{leaf}") for leaf in ("fn", "base", "scale")]
        if any(part.dtype != torch.float32 or not part.is_contiguous() for part in parts):
            raise _NotServed
        self._kept += parts
        return native.NativeHyperConnection(*(part.data_ptr() for part in parts))

    def _weight(self, linear: nn.Module, *, simulate: bool | None = None) -> native.NativeWeight:
        assert isinstance(linear, Linear)
        if linear.simulate_weight and linear.scale is None:
            raise _NotServed
        simulate = linear.simulate if simulate is None else simulate
        described = native.describe_weight(linear.stored, simulate=simulate)
        if described is None:
            raise _NotServed
        self._kept.append(linear.stored)
        return described

    def _exact(self, weight: Tensor) -> native.NativeWeight:
        """A weight that the reference uses in float32, so bfloat16 or nothing."""
        described = native.describe_weight(Weight(weight))
        if described is None or weight.dtype != torch.bfloat16:
            raise _NotServed
        self._kept.append(weight)
        return described

    def _vector(self, values: Tensor) -> native.NativeVector:
        described = native.describe_vector(values)
        if described is None:
            raise _NotServed
        self._kept.append(values)
        return described


class _NotServed(Exception):
    """A network that the kernels cannot run."""


_known: WeakKeyDictionary[nn.Module, Described | None] = WeakKeyDictionary()


def describe(blocks: Sequence[nn.Module] | nn.ModuleList) -> Described | None:
    """The description of these blocks, made once; None where the reference has to run them."""
    blocks = list(blocks)  # what a ModuleList does for an index takes longer
    first = blocks[0]
    if first in _known:
        known = _known[first]
        if known is None or known.is_of(blocks):
            return known
    try:
        made = Described(blocks) if all(map(_fits, blocks)) else None
    except _NotServed:
        made = None
    _known[first] = made
    return made


def _parts(block: nn.Module) -> tuple[Attention, MoE, Any]:
    attention, moe = block.attn, block.ffn
    assert isinstance(attention, Attention) and isinstance(moe, MoE)
    return attention, moe, attention.config


def _fits(block: nn.Module) -> bool:
    """Whether the shapes are ones the kernels are written for."""
    attention, _, config = _parts(block)
    width = config.index_head_dim
    return (
        config.hidden_size % 32 == 0
        and config.head_dim % 32 == 0
        and config.moe_intermediate_size % 32 == 0
        and width % 32 == 0
        and width & (width - 1) == 0
        and width <= 1024
        and config.qk_rope_head_dim <= 1024
        and config.hc_mult <= 8
        and (attention.ratio in (0, CSA) or CSA < attention.ratio <= 256)
    )


def _addresses(states: Sequence[Sequence[LayerState]]) -> "ctypes.Array[Any]":
    """Headers of every list of rows, sequence by sequence and layer by layer."""
    if len(states) == 1:
        return _headers(states[0])
    joined = b"".join(bytes(_headers(layers)) for layers in states)
    count = len(joined) // ctypes.sizeof(ctypes.c_void_p)
    return (ctypes.c_void_p * count).from_buffer_copy(joined)


def _headers(layers: Sequence[LayerState]) -> "ctypes.Array[Any]":
    """Headers stay where they are as long as their rows live, so they are looked up once."""
    first = layers[0]
    if first.headers is None or len(first.headers) != len(layers) * _LISTS:
        found = [
            None if rows is None else ctypes.addressof(rows.header)
            for layer in layers
            for rows in layer.rows()
        ]
        first.headers = (ctypes.c_void_p * len(found))(*found)
    return first.headers
