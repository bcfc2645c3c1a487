"""Write a checkpoint as one GGUF file, which llama.cpp and what is built on it can run.

The container is the `gguf` package's. The names of this architecture are llama.cpp's: the package
does not know them yet (0.19.0), so they stand here. Experts in FP4 become MXFP4 by moving bits, and
FP8 becomes BF16, which holds each product of an FP8 number and a power of two. One tensor is in
memory at a time, at most the experts of one layer.
Source: docs/checkpoints.md 4 and 6.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.ops.matmul import Weight
from sounding.text.chat_template import CHAT_TEMPLATE
from sounding.text.fim_format import FimFormat
from sounding.text.markup import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, FIRST_TOKENS, PAD
from sounding.text.tokenizer import SPLIT_RULES, BytePairs, Tokenizer
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import FORMATS, FP4_BLOCK, Kind, Parameter
from sounding.weights.quantize import ErrorSummary, Report, source_bytes

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

ARCHITECTURE = "deepseek4"
_BLOCK_BYTES = 1 + FP4_BLOCK // 2  # of MXFP4: a scale, then two codes a byte

# Published names, `layers.N.` taken off, and llama.cpp's, `blk.N.` taken off.
_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
} | {
    f"hc_{site}_{part}": f"hc_{site}_{part}.weight"
    for site in ("attn", "ffn")
    for part in ("fn", "base", "scale")
}
_STACKED = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
_EXPERT = re.compile(r"layers\.(\d+)\.ffn\.experts\.0\.(w[123])\.weight")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")

# Kinds of tokens in a GGUF file.
_NORMAL, _CONTROL, _NAMED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: its name and the parameters that it is made of, stacked."""

    name: str
    parameters: tuple[Parameter, ...]


def convert_to_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda num_bytes: None,
) -> Report:
    """Write `checkpoint` and the tokenizer beside it to the GGUF file `path`, whole or not at all.

    `on_progress` is called with the number of source bytes done. Raises ValueError for a tokenizer
    that llama.cpp has no name for and for a path that is taken.
    """
    _require_free(path, overwrite)
    tokenizer = Tokenizer.from_file(checkpoint.folder, checkpoint.config.vocab_size)
    tables = tokenizer.byte_pairs()
    _require_known_split(tables, checkpoint.folder)
    partial = path.with_name(f".{path.name}.partial")
    try:
        report = _write(checkpoint, tokenizer, tables, partial, on_progress)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _write(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    tables: BytePairs,
    path: Path,
    on_progress: Callable[[int], None],
) -> Report:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    tensors = list(_tensors(checkpoint))
    rows: dict[tuple[str, str, str], ErrorSummary] = {}
    try:
        _add_config(writer, checkpoint.config)
        _add_tokenizer(writer, tokenizer, tables, checkpoint.config.vocab_size)
        for tensor in tensors:
            shape, dtype, kind = _stored(checkpoint, tensor)
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            writer.add_tensor_info(tensor.name, list(shape), dtype, num_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            array, exact = _numbers(checkpoint, tensor)
            writer.write_tensor_data(array)
            _count(rows, checkpoint, tensor, exact)
            on_progress(sum(source_bytes(checkpoint, part) for part in tensor.parameters))
    finally:
        writer.close()
    return _report(checkpoint, list(rows.values()))


def _tensors(checkpoint: Checkpoint) -> Iterator[_Tensor]:
    """Every tensor of the file; experts of a layer are one, and drafters are left out."""
    by_name = {parameter.name: parameter for parameter in checkpoint.parameters}
    for parameter in checkpoint.parameters:
        if parameter.drafts:
            continue
        if first := _EXPERT.fullmatch(parameter.name):
            layer, linear = first.groups()
            prefix = f"layers.{layer}.ffn.experts"
            experts = range(checkpoint.config.n_routed_experts)
            parts = tuple(by_name[f"{prefix}.{expert}.{linear}.weight"] for expert in experts)
            yield _Tensor(f"blk.{layer}.{_STACKED[linear]}.weight", parts)
        elif parameter.kind is not Kind.EXPERT:
            yield _Tensor(_name(parameter.name), (parameter,))


def _name(published: str) -> str:
    inner = _LAYER.fullmatch(published)
    if inner is None:
        return _NAMES[published]
    return f"blk.{inner[1]}.{_NAMES[inner[2]]}"


# --------------------------------------------------------------------------------------------------
# Numbers


def _stored(
    checkpoint: Checkpoint, tensor: _Tensor
) -> "tuple[tuple[int, ...], np.dtype[Any], GGMLQuantizationType]":
    """Shape and dtype of the array that holds a tensor, and its kind in the file."""
    from gguf import GGMLQuantizationType

    parameter = tensor.parameters[0]
    stack = (len(tensor.parameters),) if parameter.kind is Kind.EXPERT else ()
    shape = (*stack, *parameter.shape)
    if parameter.kind is Kind.TABLE:
        return shape, np.dtype(np.int32), GGMLQuantizationType.I32
    if checkpoint.sources[parameter.name].dtype == "I8":
        packed = (*shape[:-1], shape[-1] // FP4_BLOCK * _BLOCK_BYTES)
        return packed, np.dtype(np.uint8), GGMLQuantizationType.MXFP4
    if _is_wide(parameter):
        return shape, np.dtype(np.float32), GGMLQuantizationType.F32
    return (*shape[:-1], shape[-1] * 2), np.dtype(np.uint8), GGMLQuantizationType.BF16


def _is_wide(parameter: Parameter) -> bool:
    """True for what llama.cpp adds or multiplies number by number, which it does in float32."""
    return parameter.kind is Kind.PRECISE or len(parameter.shape) == 1


def _numbers(checkpoint: Checkpoint, tensor: _Tensor) -> tuple[NDArray[Any], bool]:
    """The array that holds a tensor, and whether all its numbers are the source's."""
    parts = [_converted(checkpoint, parameter) for parameter in tensor.parameters]
    arrays = [array for array, _ in parts]
    stacked = np.stack(arrays) if tensor.parameters[0].kind is Kind.EXPERT else arrays[0]
    return stacked, all(exact for _, exact in parts)


def _converted(checkpoint: Checkpoint, parameter: Parameter) -> tuple[NDArray[Any], bool]:
    if parameter.kind is Kind.TABLE:
        return checkpoint.read_raw(parameter.name).array.astype(np.int32), True
    weight, scale = checkpoint.read_packed(parameter)
    if weight.dtype == torch.int8:
        scales = checkpoint.read_raw(parameter.scale_name).array.view(np.uint8)
        return mxfp4_blocks(weight.numpy().view(np.uint8), scales), True
    numbers = Weight(weight, scale).dense(torch.float32)
    if _is_wide(parameter):
        return numbers.numpy(), weight.dtype != torch.float64
    rounded = numbers.to(torch.bfloat16)
    exact = bool(torch.equal(rounded.float(), numbers)) and weight.dtype != torch.float64
    return rounded.contiguous().view(torch.uint8).numpy(), exact


def mxfp4_blocks(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """FP4 codes [rows, columns / 2] and scales [rows, columns / 32] as MXFP4 blocks.

    A published byte holds neighbours, the first in its low half; a block holds its scale and then
    sixteen bytes, the j-th with number j in its low half and number j + 16 in its high half. The
    codes of a number are the same in both.
    """
    rows, num_blocks = scales.shape
    pairs = codes.reshape(rows, num_blocks, FP4_BLOCK // 2)
    numbers = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(rows, num_blocks, FP4_BLOCK)
    low, high = numbers[..., : FP4_BLOCK // 2], numbers[..., FP4_BLOCK // 2 :]
    blocks = np.concatenate((scales[..., None], low | high << 4), axis=-1)
    return blocks.reshape(rows, num_blocks * _BLOCK_BYTES)


# --------------------------------------------------------------------------------------------------
# Metadata


def _add_config(writer: "GGUFWriter", config: ModelConfig) -> None:
    """The keys that llama.cpp reads for this architecture."""
    from gguf import LlamaFileType

    rope, layers = config.rope_scaling, config.num_hidden_layers
    limit = [float(config.swiglu_limit)] * layers
    writer.add_file_type(LlamaFileType.MOSTLY_MXFP4_MOE)
    values: dict[str, Any] = {
        "block_count": layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "embedding_length_out": config.hidden_size * config.hc_mult,
        "vocab_size": config.vocab_size,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_gating_func": 4,  # sqrt(softplus(x))
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "swiglu_clamp_exp": limit,
        "swiglu_clamp_shexp": limit,
        "hash_layer_count": config.num_hash_layers,
        "hyper_connection.count": config.hc_mult,
        "hyper_connection.sinkhorn_iterations": config.hc_sinkhorn_iters,
        "hyper_connection.epsilon": float(config.hc_eps),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.output_group_count": config.o_groups,
        "attention.output_lora_rank": config.o_lora_rank,
        "attention.sliding_window": config.sliding_window,
        "attention.compress_ratios": list(config.ratios),
        "attention.compress_rope_freq_base": float(config.compress_rope_theta),
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if rope is not None:
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
            "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
        }
    for key, value in values.items():
        _add(writer, f"{ARCHITECTURE}.{key}", value)


def _add(writer: "GGUFWriter", key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def _add_tokenizer(
    writer: "GGUFWriter", tokenizer: Tokenizer, tables: BytePairs, vocab_size: int
) -> None:
    texts = {number: text for text, number in tables.vocabulary.items()}
    named = {number: text for text, number in tokenizer.named.items()}
    tokens, kinds = [], []
    for number in range(vocab_size):
        if number in named:
            tokens.append(named[number])
            kinds.append(_CONTROL if named[number] in FIRST_TOKENS else _NAMED)
        else:
            tokens.append(texts.get(number, f"[unused {number}]"))
            kinds.append(_NORMAL if number in texts else _UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(tables.merges)
    writer.add_bos_token_id(tokenizer.id_of(BOS))
    writer.add_eos_token_id(tokenizer.id_of(EOS))
    writer.add_pad_token_id(tokenizer.id_of(PAD))
    writer.add_add_bos_token(True)
    for part, token in (("pre", FIM_BEGIN), ("suf", FIM_HOLE), ("mid", FIM_END)):
        if token in tokenizer.named:
            writer.add_uint32(f"tokenizer.ggml.fim_{part}_token_id", tokenizer.id_of(token))
    writer.add_chat_template(CHAT_TEMPLATE)


def _require_known_split(tables: BytePairs, folder: Path) -> None:
    """Raise ValueError unless text is split before BPE as llama.cpp's `deepseek-v3` splits it."""
    if tables.split_rules != SPLIT_RULES:
        raise ValueError(
            f"{folder / 'tokenizer.json'} splits text by other rules than DeepSeek's, which "
            "llama.cpp has no name for; it can only be converted with a tokenizer of that split"
        )


def _require_free(path: Path, overwrite: bool) -> None:
    if path.suffix != ".gguf":
        raise ValueError(f"{path}: a GGUF model is one file; give it a name that ends in .gguf")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; choose another name, or ask to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)


# --------------------------------------------------------------------------------------------------
# Report


def _count(
    rows: dict[tuple[str, str, str], ErrorSummary],
    checkpoint: Checkpoint,
    tensor: _Tensor,
    exact: bool,
) -> None:
    parameter = tensor.parameters[0]
    source = FORMATS[checkpoint.sources[parameter.name].dtype]
    kind = _stored(checkpoint, tensor)[2].name
    key = (str(parameter.component), source, FORMATS.get(kind, kind.lower()))
    row = rows.setdefault(key, ErrorSummary(*key))
    row.num_tensors += len(tensor.parameters)
    row.num_exact += len(tensor.parameters) * exact
    row.num_values += sum(int(np.prod(part.shape)) for part in tensor.parameters)


def _report(checkpoint: Checkpoint, rows: list[ErrorSummary]) -> Report:
    report = Report("gguf", rows)
    if any(each.drafts for each in checkpoint.parameters) or checkpoint.skipped:
        report.notes.append("the drafter is left out: llama.cpp takes drafts from other files")
    if FimFormat.from_folder(checkpoint.folder).suffix_first:
        report.notes.append(
            "this model fills gaps with the suffix before the prefix: see docs/gguf.md for what "
            "to send to llama.cpp"
        )
    return report
