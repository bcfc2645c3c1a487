"""Adapters in the form of the PEFT library, for models in the form of the `transformers` library.

A linear's factors are `base_model.model.<module>.lora_A.weight` [r, i] and `.lora_B.weight` [o, r].
The fused experts of a layer are parameters, not modules: `lora_A` is [e * r, in] with the expert
outermost, `lora_B` [out, r * e] with the expert innermost. Both parameters of a layer's experts are
wrapped one in the other: `down_proj` lies outside, `gate_up_proj` below one more `base_layer`.
Seen with PEFT 0.21.2 on transformers 5.23; older ones had inputs and outputs of experts
interchanged, which shapes tell apart where they differ. A delta of the grouped `wo_a` can be merged
by PEFT and not run.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.files import parse_json, write_file
from sounding.weights.adapters import Adapter, Delta, adaptable, require_fit
from sounding.weights.names import transformers_name
from sounding.weights.raw import RawTensor, to_float32
from sounding.weights.shards import Shard

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = "lora_A.weight", "lora_B.weight"
_EXPERTS = ".ffn.experts."
_INNER = ".base_layer"

Array = NDArray[np.float32]


# --------------------------------------------------------------------------------------------------
# Out


def write_peft(adapter: Adapter, config: ModelConfig, folder: Path, *, base: str) -> None:
    """Write an adapter as PEFT reads it; `base` is the name of the model in its config.

    Raises ValueError where only one of a layer's w1 and w3 has a delta: they are one parameter.
    """
    tensors: dict[str, Array] = {}
    modules: dict[str, int] = {}  # rank by name
    parameters: dict[str, int] = {}
    for name, delta in adapter.deltas.items():
        if _EXPERTS in name:
            continue
        module = _linear(name)
        tensors[f"{_PREFIX}{module}.{_A}"] = to_float32(delta.low)
        tensors[f"{_PREFIX}{module}.{_B}"] = to_float32(delta.high)
        modules[module] = delta.rank
    for layer in range(config.num_hidden_layers):
        for parameter, pair in _fused(adapter, layer).items():
            experts = f"model.layers.{layer}.mlp.experts"
            nested = _INNER if parameter == "gate_up_proj" else ""
            low, high = pair
            count, rank, _ = low.shape
            name = f"{_PREFIX}{experts}{nested}"
            tensors[f"{name}.{_A}"] = low.reshape(count * rank, -1)
            tensors[f"{name}.{_B}"] = high.transpose(1, 2, 0).reshape(-1, rank * count)
            parameters[f"{experts}.{parameter}"] = rank
    settings = _settings(adapter, modules, parameters, base)
    folder.mkdir(parents=True, exist_ok=True)
    import torch
    from safetensors.torch import save

    # A copy in C order: safetensors writes other arrays wrongly.
    held = {name: torch.from_numpy(np.array(value, order="C")) for name, value in tensors.items()}
    write_file(folder / WEIGHTS_NAME, save(held, {"format": "pt"}))
    write_file(folder / CONFIG_NAME, json.dumps(settings, indent=1).encode())


def _fused(adapter: Adapter, layer: int) -> dict[str, tuple[Array, Array]]:
    """The deltas of a layer's two expert parameters, [e, r, i] and [e, o, r]."""
    found = {part: adapter.deltas.get(f"layers.{layer}.ffn.experts.{part}") for part in _LINEARS}
    made: dict[str, tuple[Array, Array]] = {}
    gate, down, up = (found[part] for part in _LINEARS)
    if (gate is None) != (up is None):
        raise ValueError(
            f"layers.{layer}.ffn.experts has a delta of w1 or w3 alone; in transformers they are "
            "one parameter, so PEFT needs both"
        )
    if gate is not None and up is not None:
        low = np.concatenate([to_float32(gate.low), to_float32(up.low)], 1)
        count, inner, _ = gate.high.shape
        none = [np.zeros((count, inner, part.rank), np.float32) for part in (up, gate)]
        above = np.concatenate([to_float32(gate.high), none[0]], 2)
        below = np.concatenate([none[1], to_float32(up.high)], 2)
        made["gate_up_proj"] = low, np.concatenate([above, below], 1)
    if down is not None:
        made["down_proj"] = to_float32(down.low), to_float32(down.high)
    return made


_LINEARS = ("w1", "w2", "w3")


def _settings(
    adapter: Adapter, modules: Mapping[str, int], parameters: Mapping[str, int], base: str
) -> dict[str, Any]:
    ranks = {**modules, **parameters}
    usual = max(ranks.values(), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": adapter.factor * usual,
        "rank_pattern": others,
        "alpha_pattern": {name: adapter.factor * rank for name, rank in others.items()},
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def _linear(name: str) -> str:
    return transformers_name(f"{name}.weight").removesuffix(".weight")


# --------------------------------------------------------------------------------------------------
# In


def read_peft(folder: Path, config: ModelConfig, *, base: str = "") -> Adapter:
    """An adapter that PEFT wrote, for a network of this shape; `base` is the digest it is to carry.

    Raises ValueError, naming key or setting, for anything that would not be used: other tensors,
    ranks that contradict the config, other methods than plain LoRA.
    """
    where = folder / CONFIG_NAME
    settings = parse_json(where.read_bytes(), str(where))
    _require_plain(settings, where)
    shard = Shard(folder / WEIGHTS_NAME)
    unused = set(shard.entries)

    def take(name: str) -> Array | None:
        if name not in shard.entries:
            return None
        unused.discard(name)
        return to_float32(shard.read(name))

    deltas: dict[str, Delta] = {}
    shapes = adaptable(config)
    for name in shapes:
        if _EXPERTS not in name:
            module = _linear(name)
            low, high = (take(f"{_PREFIX}{module}.{leaf}") for leaf in (_A, _B))
            if low is not None and high is not None:
                deltas[name] = _scaled(low, high, settings, module)
    for layer in range(config.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts"
        count, inner, hidden = shapes[f"layers.{layer}.ffn.experts.w1"]
        outputs = {"down_proj": hidden, "gate_up_proj": 2 * inner}
        for parameter, place in _places(settings, experts).items():
            pair = [take(f"{_PREFIX}{experts}{place}.{leaf}") for leaf in (_A, _B)]
            if pair[0] is None or pair[1] is None:
                continue
            low, high = _unfused(pair[0], pair[1], count, f"{experts}.{parameter}")
            if high.shape[1] != outputs[parameter]:
                raise ValueError(
                    f"{folder}: the delta of {experts}.{parameter} has {high.shape[1]} outputs, "
                    f"this network's has {outputs[parameter]}"
                )
            whole = _scaled(low, high, settings, f"{experts}.{parameter}")
            prefix = f"layers.{layer}.ffn.experts"
            if parameter == "down_proj":
                deltas[f"{prefix}.w2"] = whole
            else:
                deltas[f"{prefix}.w1"] = Delta(whole.low, whole.high[:, :inner])
                deltas[f"{prefix}.w3"] = Delta(whole.low, whole.high[:, inner:])
    if unused:
        raise ValueError(
            f"{folder / WEIGHTS_NAME} has {min(unused)!r}, which is no delta of a weight that an "
            f"adapter may change here ({len(unused)} such tensors)"
        )
    adapter = Adapter(deltas, 1.0, base)
    require_fit(adapter, config, str(folder))
    return adapter


def _places(settings: Mapping[str, Any], experts: str) -> dict[str, str]:
    """Where each expert parameter lies that has a delta: alone it has no other around it."""
    given = settings.get("target_parameters") or []
    named = [
        parameter
        for parameter in ("gate_up_proj", "down_proj")
        if any(f"{experts}.{parameter}".endswith(name) for name in given)
    ]
    if len(named) == 2:
        return {"gate_up_proj": _INNER, "down_proj": ""}
    return dict.fromkeys(named, "")


def _unfused(a: Array, b: Array, experts: int, name: str) -> tuple[Array, Array]:
    """PEFT's two factors of a parameter as ours, [e, r, i] and [e, o, r]."""
    if a.shape[0] % experts or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{name}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}, which are no deltas of "
            f"{experts} experts"
        )
    rank = a.shape[0] // experts
    low = a.reshape(experts, rank, -1)
    high = b.reshape(-1, rank, experts).transpose(2, 0, 1)
    return np.ascontiguousarray(low), np.ascontiguousarray(high)


def _scaled(low: Array, high: Array, settings: Mapping[str, Any], name: str) -> Delta:
    """A delta with its factor multiplied in, its rank checked against the config."""
    rank = _pattern(settings.get("rank_pattern"), name, settings["r"])
    alpha = _pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"])
    if low.shape[-2] != rank or high.shape[-1] != rank:
        raise ValueError(f"the delta of {name} has rank {low.shape[-2]}; {CONFIG_NAME} says {rank}")
    factor = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Delta(
        RawTensor(np.ascontiguousarray(low), "F32"),
        RawTensor(np.ascontiguousarray(high * np.float32(factor)), "F32"),
    )


def _pattern(patterns: Any, name: str, usual: Any) -> Any:
    """A setting of one module: keys are its name or the end of it."""
    found = [value for key, value in (patterns or {}).items() if f".{name}".endswith(f".{key}")]
    return found[0] if found else usual


def _require_plain(settings: Mapping[str, Any], where: Path) -> None:
    rules = {
        "peft_type": settings.get("peft_type") == "LORA",
        "bias": settings.get("bias", "none") == "none",
        "use_dora": not settings.get("use_dora"),
        "modules_to_save": not settings.get("modules_to_save"),
        "fan_in_fan_out": not settings.get("fan_in_fan_out"),
        "r": isinstance(settings.get("r"), int) and settings["r"] > 0,
        "lora_alpha": isinstance(settings.get("lora_alpha"), int | float),
    }
    for name, holds in rules.items():
        if not holds:
            raise ValueError(
                f"{where}: {name} = {settings.get(name)!r} is not read; only plain LoRA is"
            )
