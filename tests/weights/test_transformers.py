"""The transformers library as reader and as writer of what we write and read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sounding.presets import nano, tiny
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import Kind, parameters
from sounding.weights.names import (
    expert_parts,
    fused_place,
    is_transformers,
    published_name,
    transformers_name,
)
from sounding.weights.quantize import convert
from sounding.weights.state_dict import read_state
from sounding.weights.tensors import TORCH_DTYPES, to_torch
from tests.weights.folders import TINY, tiny_config, write_model


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    report = convert(Checkpoint(TINY), folder, "transformers", plain="float32")
    assert any("mtp.* keeps its published names" in note for note in report.notes)
    return folder


@pytest.fixture(scope="module")
def loaded(converted: Path) -> Any:
    return load(converted)


def load(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    return model


def published_state() -> dict[str, Tensor]:
    return read_state(Checkpoint(TINY), torch.float32)


def test_it_loads_what_we_write(loaded: Any) -> None:
    """Every tensor of the network is there, under the numbers it had."""
    state = loaded.state_dict()
    expected = published_state()
    for name, tensor in expected.items():
        if name.startswith("mtp.") or ".experts." in name:
            continue
        assert torch.equal(state[transformers_name(name)], tensor), name
    gate_up = state["model.layers.2.mlp.experts.gate_up_proj"]
    both = [expected[f"layers.2.ffn.experts.{linear}.weight"] for linear in ("w1", "w3")]
    assert torch.equal(gate_up, torch.cat(both, 1))
    down = state["model.layers.2.mlp.experts.down_proj"]
    assert torch.equal(down, expected["layers.2.ffn.experts.w2.weight"])


def test_it_loads_the_bf16_form(tmp_path: Path) -> None:
    convert(Checkpoint(TINY), tmp_path / "out", "transformers")
    state = load(tmp_path / "out").state_dict()
    assert torch.equal(state["lm_head.weight"], published_state()["head.weight"])


def test_its_config_is_ours(converted: Path) -> None:
    config = AutoConfig.from_pretrained(converted)
    assert config.layer_types[:3] == [
        "sliding_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
    ]
    assert config.mlp_layer_types == ["hash_moe"] + ["moe"] * 4
    assert Checkpoint(converted).config.ratios == (0, 128, 4, 128, 4)


def test_reading_our_own_back(converted: Path) -> None:
    checkpoint = Checkpoint(converted)
    assert checkpoint.dialect == "transformers"
    state = read_state(checkpoint, torch.float32)
    expected = published_state()
    assert state.keys() == expected.keys()  # the MTP block too
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("original_format", [True, False])
def test_reading_what_it_saves(
    tmp_path: Path, loaded: Any, original_format: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.save_pretrained(tmp_path, save_original_format=original_format)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.config.num_mtp_layers == 0
    assert "no block to draft with" in caplog.text
    state = read_state(checkpoint)
    expected = published_state()
    assert state.keys() == {name for name in expected if not name.startswith("mtp.")}
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_names_map_both_ways_for_every_kind_of_layer() -> None:
    seen = set()
    network = [*parameters(tiny()), *parameters(nano())]
    for parameter in network:
        assert published_name(parameter.name) == parameter.name
        if parameter.kind is Kind.EXPERT:
            continue
        name = transformers_name(parameter.name)
        assert published_name(name) == parameter.name
        seen.add(name)
    assert len(seen) == len({p.name for p in network if p.kind is not Kind.EXPERT})


def test_quantized_fused_experts_are_split(tmp_path: Path) -> None:
    """FP4 experts under fused names: the scales are cut as the weights are."""
    stacked = read_state(Checkpoint(TINY))
    tensors: dict[str, Tensor] = {}
    for name, source in Checkpoint(TINY).sources.items():
        parts = expert_parts(name.replace(".scale", ".weight"))
        if parts is None:
            tensors[name] = to_torch(source.read()).clone()
            continue
        fused, position, count = fused_place(parts[0], parts[2])
        suffix = "_scale_inv" if name.endswith(".scale") else ""
        linears = ("w1", "w3")[:count] if count == 2 else ("w2",)
        leaf = "scale" if suffix else "weight"
        whole = [stacked[f"{parts[0]}.{linear}.{leaf}"].view(torch.uint8) for linear in linears]
        assert position < len(whole)
        dtype = TORCH_DTYPES[source.dtype]
        tensors[fused + suffix] = torch.cat(whole, 1).view(dtype)
    checkpoint = Checkpoint(write_model(tmp_path, tensors, tiny_config()))
    assert any(map(is_transformers, tensors))
    assert checkpoint.storage == Checkpoint(TINY).storage
    again = read_state(checkpoint, torch.float32)
    expected = published_state()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
