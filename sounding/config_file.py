"""Read a model's `config.json` strictly, in every dialect, and write the one of `transformers`.

Three dialects become one `ModelConfig`: the published file (first release, Base, DSpark and dated
refreshes) and the one `transformers` writes. Source: docs/checkpoints.md 4 and 5.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sounding.config import (
    CSA,
    HCA,
    WINDOW,
    DSparkConfig,
    ModelConfig,
    QuantizationConfig,
    RopeScaling,
    require_choice,
)

_TRANSFORMERS_RATIOS = {
    "sliding_attention": WINDOW,
    "compressed_sparse_attention": CSA,
    "heavily_compressed_attention": HCA,
}

# Keys that transformers adds to every config and that do not change the network.
_TRANSFORMERS_RUNTIME_KEYS = frozenset(
    "transformers_version dtype output_hidden_states output_attentions return_dict pad_token_id "
    "chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type _name_or_path "
    "output_router_logits router_aux_loss_coef router_jitter_noise _attn_implementation "
    "_attn_implementation_autoset auto_map unsloth_fixed unsloth_version pretraining_tp ep_size "
    "ignore_keys_at_rope_validation".split()
)
# Keys that other programs write, with the values that ask for nothing; null is one of each.
_QUANTIZATION_EXTRAS: dict[str, tuple[Any, ...]] = {
    "dequantize": (False,),
    "modules_to_convert": ([],),
    "modules_to_not_convert": ([],),
    "ignored_layers": ([],),
}
_ROPE_EXTRAS: dict[str, tuple[Any, ...]] = {
    "attention_factor": (1, 1.0),  # V4 leaves cos and sin unscaled
    "mscale": (0,),
    "mscale_all_dim": (0,),
    "truncate": (True,),
}

_DSPARK = "dspark_"  # opens the keys of a DSpark drafter


def parse_config(raw: Any) -> ModelConfig:
    """Read a `config.json` in its published or its `transformers` form.

    Raises ValueError for unknown keys (naming the nearest known one), missing keys and impossible
    values.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"a model config must be a JSON object, not {type(raw).__name__}")
    values = _from_transformers(raw) if "layer_types" in raw else dict(raw)
    for key in _TRANSFORMERS_RUNTIME_KEYS & values.keys():
        del values[key]
    dspark = {key: values.pop(key) for key in list(values) if key.startswith(_DSPARK)}
    if "dspark" in values:
        raise ValueError("the model config has an unknown key 'dspark'; use its keys dspark_*")
    if dspark:
        values["dspark"] = _parse(DSparkConfig, dspark, "the model config", prefix=_DSPARK)
    if values.get("rope_scaling") is not None:
        values["rope_scaling"] = _read_rope_scaling(values["rope_scaling"])
    if values.get("quantization_config") is not None:
        values["quantization_config"] = _read_quantization(values["quantization_config"])
    if isinstance(values.get("eos_token_id"), list) and len(values["eos_token_id"]) == 1:
        (values["eos_token_id"],) = values["eos_token_id"]
    config: ModelConfig = _parse(ModelConfig, values, "the model config")
    return config


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """The config that `transformers` writes and reads for a network."""
    raw = config.to_dict()
    for name in ("compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling"):
        del raw[name]
    names = {ratio: name for name, ratio in _TRANSFORMERS_RATIOS.items()}
    partial = config.qk_rope_head_dim / config.head_dim
    main = {"rope_type": "default", "rope_theta": config.rope_theta}
    compress: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        compress = dataclasses.asdict(config.rope_scaling)
        compress["rope_type"] = compress.pop("type")
        compress["attention_factor"] = 1.0  # V4 leaves cos and sin unscaled
    compress["rope_theta"] = config.compress_rope_theta
    hashed = config.num_hash_layers
    return {
        **raw,
        "dtype": raw.pop("torch_dtype"),
        "layer_types": [names[ratio] for ratio in config.ratios],
        "mlp_layer_types": ["hash_moe"] * hashed + ["moe"] * (config.num_hidden_layers - hashed),
        "compress_rates": {names[CSA]: CSA, names[HCA]: HCA},
        "partial_rotary_factor": partial,
        "rope_parameters": {
            "main": {**main, "partial_rotary_factor": partial},
            "compress": {**compress, "partial_rotary_factor": partial},
        },
    }


def _read_rope_scaling(raw: Any) -> RopeScaling | None:
    """`type`, `rope_type`, or both of them alike; "default" is no scaling."""
    values = _without_extras(raw, _ROPE_EXTRAS, "rope_scaling")
    if "rope_type" in values:
        kind = values.pop("rope_type")
        if values.setdefault("type", kind) != kind:
            raise ValueError(
                f"rope_scaling has the type {values['type']!r} and the rope_type {kind!r}; they "
                "must be the same: remove one"
            )
    if values == {"type": "default"}:
        return None
    scaling: RopeScaling = _parse(RopeScaling, values, "rope_scaling")
    return scaling


def _read_quantization(raw: Any) -> QuantizationConfig:
    """The published form, and that of transformers, which calls float32 scales "float"."""
    values = _without_extras(raw, _QUANTIZATION_EXTRAS, "quantization_config")
    if values.get("scale_fmt") == "float":
        values["scale_fmt"] = None
    read: QuantizationConfig = _parse(QuantizationConfig, values, "quantization_config")
    return read


def _without_extras(raw: Any, extras: Mapping[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    """A copy without the keys of other programs that ask for nothing."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a JSON object, not {raw!r}")
    values = dict(raw)
    for key in extras.keys() & values.keys():
        value = values.pop(key)
        same = any(type(value) is type(known) and value == known for known in extras[key])
        if value is not None and not same:
            allowed = " or ".join(map(repr, (None, *extras[key])))
            raise ValueError(
                f"{where}.{key} = {value!r:.80} is not supported; it must be {allowed}, or absent"
            )
    return values


def _parse(kind: type[Any], raw: Any, where: str, prefix: str = "") -> Any:
    """Build the dataclass `kind` from JSON values: known keys only, types checked. Keys are the
    names of its fields behind `prefix`."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a JSON object, not {raw!r}")
    fields = {prefix + entry.name: entry for entry in dataclasses.fields(kind)}
    refuse_unknown(raw, fields, where)
    missing = [
        name
        for name, entry in fields.items()
        if name not in raw
        and entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    typed = {name: _typed(name, value, fields[name].type) for name, value in raw.items()}
    return kind(**{name.removeprefix(prefix): value for name, value in typed.items()})


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Check a JSON value against a field's annotation; JSON has one kind of list and of number."""
    if isinstance(value, list):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if not _matches(value, kind):
        raise ValueError(f"{name} = {value!r} must be {getattr(kind, '__name__', kind)}")
    return value


def _matches(value: Any, kind: Any) -> bool:
    """True if a value has an annotated type; unlike isinstance, true is not an integer here."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, arguments[0]) for item in value)
    return type(value) is kind


def _from_transformers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the config that `transformers` writes into the published keys."""
    values = dict(raw)
    layer_types = values.pop("layer_types")
    for layer, name in enumerate(layer_types):
        require_choice(f"layer_types[{layer}]", name, tuple(_TRANSFORMERS_RATIOS))
    drafts = [0] * len(values.get("dspark_target_layer_ids", ()))
    drafts = drafts or [0] * values.get("num_nextn_predict_layers", 0)
    values["compress_ratios"] = [_TRANSFORMERS_RATIOS[name] for name in layer_types] + drafts
    rates = values.pop("compress_rates", None)
    for name, rate in (rates or {}).items():
        require_choice("compress_rates key", name, tuple(_TRANSFORMERS_RATIOS)[1:])
        require_choice(f"compress_rates.{name}", rate, (_TRANSFORMERS_RATIOS[name],))
    mlp_types = values.pop("mlp_layer_types", None)
    if mlp_types is not None:
        hashed = sum(1 for name in mlp_types if name == "hash_moe")
        expected = ["hash_moe"] * hashed + ["moe"] * (len(mlp_types) - hashed)
        if list(mlp_types) != expected:
            raise ValueError(
                f"mlp_layer_types = {list(mlp_types)} must be hash_moe layers, then moe layers"
            )
        values["num_hash_layers"] = hashed
    partial = values.pop("partial_rotary_factor", None)
    if partial is not None and "qk_rope_head_dim" not in values:
        values["qk_rope_head_dim"] = round(partial * values.get("head_dim", 512))
    values.setdefault("torch_dtype", values.pop("dtype", None))
    rope = values.pop("rope_parameters", None)
    if rope is not None:
        _read_rope_parameters(rope, values)
    return values


def _read_rope_parameters(rope: Mapping[str, Any], values: dict[str, Any]) -> None:
    if not (isinstance(rope, Mapping) and {"main", "compress"} <= rope.keys()):
        raise ValueError(
            f"rope_parameters = {rope!r} must have the entries 'main' (window layers) and "
            "'compress' (compressed layers)"
        )
    refuse_unknown(rope, ("main", "compress"), "rope_parameters")
    main, compress = dict(rope["main"]), dict(rope["compress"])
    require_choice("rope_parameters.main.rope_type", main.get("rope_type"), ("default",))
    values["rope_theta"] = main.get("rope_theta", 10000.0)
    values["compress_rope_theta"] = compress.pop("rope_theta", 160000.0)
    compress.pop("partial_rotary_factor", None)
    factor = compress.pop("attention_factor", 1.0)
    require_choice("rope_parameters.compress.attention_factor", factor, (1.0,))
    kind = compress.pop("rope_type", None) or compress.get("type", "default")
    compress.pop("type", None)
    values["rope_scaling"] = None if kind == "default" else {**compress, "type": kind}


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError for a key outside `known`, suggesting the nearest one."""
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"{where} has an unknown key {key!r}{hint}")
