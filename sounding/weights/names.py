"""The dialects of tensor names, and their published names.

Three are read: the published names, optionally under `model.`; older V3-style names, which the
published converter also accepts; and those of the `transformers` library, which is also written.
Its fused experts have no single published name and are split in `checkpoint`.
Source: docs/checkpoints.md 5.
"""

import re

# Parts of a name with one meaning at every place, in V3-style and transformers names.
_PARTS = {
    "embed_tokens": "embed",
    "lm_head": "head",
    "self_attn": "attn",
    "mlp": "ffn",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "weight_scale_inv": "scale",
    "e_score_correction_bias": "bias",
    "q_a_proj": "wq_a",
    "q_b_proj": "wq_b",
    "kv_proj": "wkv",
    "o_a_proj": "wo_a",
    "o_b_proj": "wo_b",
    "q_a_norm": "q_norm",
    "q_a_layernorm": "q_norm",
    "kv_a_layernorm": "kv_norm",
    "sinks": "attn_sink",
    "position_bias": "ape",
    "up_proj": "w3",
    "down_proj": "w2",
}
# Parts whose meaning depends on their surroundings, applied in this order after the above.
_PATTERNS = (
    (re.compile(r"experts(\.\d+)?\.gate_proj\b"), r"experts\1.w1"),
    (re.compile(r"\bgate_proj\b"), "wgate"),
    (re.compile(r"\b(attn|ffn)_hc\.(fn|base|scale)$"), r"hc_\1_\2"),
    (re.compile(r"\bhc_head\.hc_(fn|base|scale)$"), r"hc_head_\1"),
    (re.compile(r"compressor\.indexer\.(wq_b|scorer\.weights_proj)\b"), r"indexer.\1"),
    (re.compile(r"indexer\.scorer\.weights_proj\b"), "indexer.weights_proj"),
    (re.compile(r"compressor\.indexer\b"), "indexer.compressor"),
    (re.compile(r"compressor\.kv_norm\b"), "compressor.norm"),
    (re.compile(r"\battn\.norm\b"), "attn.kv_norm"),  # what save_pretrained of transformers writes
    # transformers 5.23 saves "in the original format" by default, but names this one so.
    (re.compile(r"\battn\.norm\b"), "attn.kv_norm"),
)

# Inside one layer, published module or parameter to that of transformers, longest match first.
_TO_TRANSFORMERS = {
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": ("self_attn.compressor.indexer.scorer.weights_proj.weight"),
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
}
_GLOBAL_TO_TRANSFORMERS = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}

_EXPERT = re.compile(r"(.+\.ffn\.experts)\.(\d+)\.(w[123])\.weight")
_FUSED = re.compile(r"(.+\.ffn\.experts)\.(gate_up_proj|down_proj|w2)(_scale_inv)?")
_TRANSFORMERS_MARKS = re.compile(r"\.self_attn\.sinks$|\.mlp\.experts\.(gate_up|down)_proj")


def published_name(name: str) -> str:
    """Return the published name for a name of any dialect; a published name is unchanged."""
    parts = [_PARTS.get(part, part) for part in name.removeprefix("model.").split(".")]
    translated = ".".join(parts)
    for pattern, replacement in _PATTERNS:
        translated = pattern.sub(replacement, translated)
    return translated


def fused_experts(name: str) -> tuple[str, tuple[str, ...], str] | None:
    """Prefix, weights and suffix of a tensor that holds a layer's experts fused, or None.

    `gate_up_proj` [e, 2 i, o] holds w1 above w3; `down_proj` [e, o, i] holds w2.
    """
    match = _FUSED.fullmatch(published_name(name))
    if match is None:
        return None
    prefix, which, scale = match.groups()
    return (
        prefix,
        ("w1", "w3") if which == "gate_up_proj" else ("w2",),
        "scale" if scale else "weight",
    )


def fused_place(prefix: str, linear: str) -> tuple[str, int, int]:
    """The fused tensor that transformers keeps w1, w2 or w3 of a layer in.

    Returns its name, which of the weights stacked in its outputs this is, and how many there are.
    """
    module = "model." + prefix.replace(".ffn.", ".mlp.")
    if linear == "w2":
        return f"{module}.down_proj", 0, 1
    return f"{module}.gate_up_proj", ("w1", "w3").index(linear), 2


def expert_parts(name: str) -> tuple[str, int, str] | None:
    """Prefix, expert and linear of `<prefix>.<expert>.<w>.weight`, or None for other names."""
    match = _EXPERT.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def is_transformers(name: str) -> bool:
    """True if a tensor name occurs in the layout of transformers only."""
    return bool(_TRANSFORMERS_MARKS.search(name))


def transformers_name(name: str) -> str:
    """Return the transformers name of a published tensor, experts excepted.

    It has no MTP block and ignores `mtp.*`, so those keep their published names.
    """
    if name in _GLOBAL_TO_TRANSFORMERS:
        return _GLOBAL_TO_TRANSFORMERS[name]
    if name.startswith(("mtp.", "drafter.")):
        return name
    layers, layer, leaf = name.split(".", 2)
    return f"model.{layers}.{layer}.{_TO_TRANSFORMERS[leaf]}"
