"""Opening model folders: whose names, which formats, and every way a folder can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sounding.weights import shards
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import Storage
from sounding.weights.state_dict import read_state
from tests.oracles import packing
from tests.weights.folders import (
    TINY,
    base_tensors,
    tensor_bytes,
    tiny_config,
    tiny_tensors,
    write_model,
)

EXPERT = "layers.1.ffn.experts.3.w2"


def test_the_golden_checkpoint_is_described_as_published() -> None:
    checkpoint = Checkpoint(TINY)
    assert checkpoint.dialect == "published"
    assert checkpoint.storage == Storage()
    assert checkpoint.num_bytes == 4_434_066
    assert checkpoint.config.to_dict() == tiny_config()


def test_opening_maps_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("a tensor was read while opening")

    monkeypatch.setattr(shards.Shard, "read", forbidden)
    Checkpoint(TINY)


def test_packed_state_is_the_stored_bytes() -> None:
    state = read_state(Checkpoint(TINY))
    stored = tiny_tensors()
    for name, tensor in state.items():
        if ".experts." in name:
            prefix, _, suffix = name.partition(".experts.")
            parts = [stored[f"{prefix}.experts.{expert}.{suffix}"] for expert in range(8)]
        else:
            parts = [stored[name]]
        assert tensor.dtype == parts[0].dtype
        assert tensor_bytes(tensor) == b"".join(map(tensor_bytes, parts))


def test_unpacked_numbers_follow_the_definition() -> None:
    state = read_state(Checkpoint(TINY), torch.float32)
    stored = tiny_tensors()
    fp8 = "layers.0.attn.wo_a"
    expected = packing.fp8_weight(*_bytes(stored, fp8))
    np.testing.assert_array_equal(state[f"{fp8}.weight"], expected)
    fp4 = packing.fp4_weight(*_bytes(stored, EXPERT))
    np.testing.assert_array_equal(state["layers.1.ffn.experts.w2.weight"][3], fp4)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def _bytes(stored: dict[str, Tensor], module: str) -> tuple[Any, Any]:
    return tuple(
        stored[f"{module}.{part}"].view(torch.uint8).numpy() for part in ("weight", "scale")
    )  # type: ignore[return-value]


def test_bf16_state_keeps_what_must_be_precise() -> None:
    state = read_state(Checkpoint(TINY), torch.bfloat16)
    stored = tiny_tensors()
    for name, tensor in state.items():
        precise = name in stored and stored[name].dtype == torch.float32
        table = name.endswith("tid2eid")
        assert tensor.dtype == (
            torch.int64 if table else torch.float32 if precise else torch.bfloat16
        )
    exact = read_state(Checkpoint(TINY), torch.float64)
    assert all(torch.equal(state[name].double(), exact[name].double()) for name in exact)


# --------------------------------------------------------------------------------------------------
# Variants of the format


def test_base_checkpoints_are_read_with_float32_scales(tmp_path: Path) -> None:
    tensors = base_tensors()
    checkpoint = Checkpoint(write_model(tmp_path, tensors, tiny_config(expert_dtype="fp8")))
    assert checkpoint.storage == Storage(experts="F8_E4M3", scales="F32")
    state = read_state(checkpoint)
    assert state["layers.1.ffn.experts.w2.scale"].dtype == torch.float32
    unpacked = read_state(checkpoint, torch.bfloat16)["layers.1.ffn.experts.w2.weight"][3]
    weight, scale = tensors[f"{EXPERT}.weight"], tensors[f"{EXPERT}.scale"]
    exact = weight.double() * scale.double().item()
    assert torch.equal(unpacked, exact.float().to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float4_e2m1fn_x2, torch.uint8])
def test_fp4_experts_by_other_names(tmp_path: Path, dtype: torch.dtype) -> None:
    """Others call the same bytes F4 or U8, and e8m0 scales U8."""
    tensors = tiny_tensors()
    expected = read_state(Checkpoint(TINY))
    for name, tensor in tensors.items():
        if ".experts." in name and tensor.dtype == torch.int8:
            tensors[name] = tensor.view(dtype)
        elif ".experts." in name and dtype == torch.uint8:
            tensors[name] = tensor.view(torch.uint8)
    checkpoint = Checkpoint(write_model(tmp_path, tensors))
    assert checkpoint.storage == Storage()
    state = read_state(checkpoint)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor_bytes(tensor) == tensor_bytes(expected[name])


def test_weights_overrule_the_config(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a", base_tensors(), tiny_config(expert_dtype=None))
    assert Checkpoint(path).config.expert_format == "fp8"
    path = write_model(tmp_path / "b", tiny_tensors(), tiny_config(expert_dtype="fp8"))
    assert Checkpoint(path).config.expert_format == "fp4"
    path = write_model(tmp_path / "c", tiny_tensors(), tiny_config(expert_dtype=None))
    assert Checkpoint(path).config.expert_format == "fp4"
    assert Checkpoint(path).config.expert_dtype is None


def rename(tensors: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in pairs:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize(
    "pairs",
    [
        [("", "")],
        [("layers.", "model.layers."), ("embed.", "model.embed.")],
        [
            ("layers.", "model.layers."),
            (".attn.", ".self_attn."),
            (".ffn.", ".mlp."),
            (".gate.bias", ".gate.e_score_correction_bias"),
            (".scale", ".weight_scale_inv"),
            ("head.weight", "lm_head.weight"),
            ("embed.weight", "model.embed_tokens.weight"),
            (".attn_norm.", ".input_layernorm."),
            (".w1.", ".gate_proj."),
            (".w2.", ".down_proj."),
            (".w3.", ".up_proj."),
        ],
    ],
    ids=["published", "prefixed", "v3"],
)
def test_checkpoints_with_other_names_give_the_same_state(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    checkpoint = Checkpoint(write_model(tmp_path, rename(tiny_tensors(), *pairs)))
    expected = read_state(Checkpoint(TINY))
    state = read_state(checkpoint)
    assert state.keys() == expected.keys()
    assert all(tensor_bytes(state[name]) == tensor_bytes(expected[name]) for name in state)


def test_copies_in_the_mtp_block_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = tiny_tensors()
    tensors["mtp.0.emb.tok_emb.weight"] = tensors["embed.weight"].clone()
    tensors["mtp.0.head.weight"] = tensors["head.weight"].clone()
    checkpoint = Checkpoint(write_model(tmp_path, tensors))
    assert set(checkpoint.skipped) == {"mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"}
    assert "skipped 2 tensors under mtp.*" in caplog.text


def test_int32_tables_are_read(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    name = "layers.0.ffn.gate.tid2eid"
    tensors[name] = tensors[name].int()
    state = read_state(Checkpoint(write_model(tmp_path, tensors)))
    assert torch.equal(state[name], tiny_tensors()[name])


# --------------------------------------------------------------------------------------------------
# Refusals


def drop(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in names:
            del tensors[name]

    return spoil


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensor

    return spoil


def drop_mtp(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            drop("norm.weight"),
            "lacks tensor 'norm.weight', which its config calls for; download the missing",
        ),
        (
            drop("norm.weight", "layers.2.hc_attn_fn", "head.weight", "hc_head_fn"),
            r"lacks 4 tensors \('layers.2.hc_attn_fn', .*, \.\.\.\)",
        ),
        (drop_mtp, "to run without drafts set num_nextn_predict_layers to 0"),
        (
            drop(f"{EXPERT}.scale"),
            rf"'{EXPERT}.weight' is quantized but its scales '{EXPERT}.scale' are missing",
        ),
        (
            put("norm.weight", torch.ones(64)),
            r"'norm.weight' has shape \[64\]; by config.json it must be \[128\]",
        ),
        (
            put(f"{EXPERT}.scale", torch.ones(128, 2).to(torch.float8_e8m0fnu)),
            rf"'{EXPERT}.scale' has shape \[128, 2\]; .* must be \[128, 4\] for F8_E8M0",
        ),
        (put("norm.weight", torch.ones(128).int()), "'norm.weight' has dtype I32; it must be F64"),
        (
            put("layers.0.attn.wq_a.weight", torch.ones(128, 64, dtype=torch.int8)),
            "'layers.0.attn.wq_a.weight' has dtype I8; it must be F8_E4M3",
        ),
        (
            put(f"{EXPERT}.scale", torch.ones(128, 4)),
            f"'{EXPERT}.scale' has dtype F32; it must be F8_E8M0",
        ),
        (
            put(f"{EXPERT}.weight", torch.ones(128, 128).to(torch.float8_e4m3fn)),
            "is F8_E4M3 while other experts of its layer are I8",
        ),
        (put("layers.9.norm.weight", torch.ones(1)), "holds tensor 'layers.9.norm.weight', which"),
        (put("norm.scale", torch.ones(1)), "holds tensor 'norm.scale', which this network does"),
        (
            put("model.norm.weight", torch.ones(128)),
            "'norm.weight'; each tensor must be there once",
        ),
        (
            put("model.layers.0.mlp.experts.down_proj", torch.ones(8, 128)),
            r"has shape \[8, 128\]; fused experts must have shape \[experts, outputs, inputs\]",
        ),
    ],
)
def test_refusals_on_opening(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = tiny_tensors()
    spoil(tensors)
    write_model(tmp_path, tensors)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_scales_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors[f"{EXPERT}.scale"].view(torch.uint8)[5, 1] = 255
    checkpoint = Checkpoint(write_model(tmp_path / "a", tensors))
    with pytest.raises(ValueError, match=rf"'{EXPERT}\.scale' has 1 scales .* at \[5, 1\]"):
        read_state(checkpoint)
    for bad in (torch.nan, torch.inf):
        tensors = base_tensors()
        tensors[f"{EXPERT}.scale"][0, 0] = bad
        checkpoint = Checkpoint(write_model(tmp_path / str(bad), tensors))
        with pytest.raises(ValueError, match=rf"'{EXPERT}\.scale' has 1 scales that are not fini"):
            read_state(checkpoint, torch.float32)


def test_expert_ids_out_of_range(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["layers.0.ffn.gate.tid2eid"][7, 1] = 8
    checkpoint = Checkpoint(write_model(tmp_path, tensors))
    with pytest.raises(ValueError, match="expert ids from 0 to 8; they must be below n_routed_e"):
        read_state(checkpoint)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for place in (tmp_path, tmp_path / "x.gguf"):
        with pytest.raises(ValueError, match=r"x\.gguf is a GGUF file, the format of llama"):
            Checkpoint(place)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is an adapter"):
        Checkpoint(tmp_path)
    write_model(tmp_path, tiny_tensors(), {"vocab": 1})
    with pytest.raises(ValueError, match=r"config\.json: .*unknown key 'vocab'"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not readable JSON"):
        Checkpoint(tmp_path)


def test_config_of_another_model(tmp_path: Path) -> None:
    config = json.loads((TINY / "config.json").read_text())
    write_model(tmp_path, tiny_tensors(), {**config, "hidden_size": 256})
    with pytest.raises(ValueError, match="config and weights are from different models"):
        Checkpoint(tmp_path)
