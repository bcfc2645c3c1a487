"""A checkpoint as a network and back, and transformers as the judge of what we write."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sounding.model.from_checkpoint import build_model, load_model, save_model
from sounding.presets import tiny
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.quantize import convert
from sounding.weights.state_dict import read_state
from tests.weights.folders import TINY

TOKENS = torch.arange(300) * 7 % 512


def _logits(folder: Path, dequantize: torch.dtype | None = None) -> torch.Tensor:
    model = load_model(Checkpoint(folder), dequantize=dequantize)
    with torch.no_grad():
        return model.logits(model.hidden(model(TOKENS).streams))


def test_packed_weights_run_as_unpacked_ones_do() -> None:
    assert torch.equal(_logits(TINY), _logits(TINY, torch.float32))


def test_saving_a_loaded_network_gives_identical_tensors(tmp_path: Path) -> None:
    save_model(load_model(Checkpoint(TINY)), tmp_path / "again")
    before = load_file(next(TINY.glob("model-*.safetensors")))
    after = load_file(next((tmp_path / "again").glob("*.safetensors")))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert after[name].view(torch.uint8).equal(tensor.view(torch.uint8)), name


def test_transformers_gives_the_same_logits_from_what_we_write(tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    convert(Checkpoint(TINY), folder, "transformers", plain="float32")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(input_ids=TOKENS[None], use_cache=False).logits[0]
    assert (_logits(folder) - expected).abs().max() < 1e-4


def test_a_plain_network_learns_and_a_packed_one_does_not() -> None:
    packed = load_model(Checkpoint(TINY))
    plain = load_model(Checkpoint(TINY), dequantize=torch.float32)
    assert not packed.get_parameter("layers.0.attn.wq_a.weight").requires_grad
    assert not packed.get_parameter("layers.0.ffn.experts.w1.weight").requires_grad
    assert plain.get_parameter("layers.0.ffn.experts.w1.weight").requires_grad
    for model in (packed, plain):  # never by gradient
        assert not model.get_parameter("layers.1.ffn.gate.bias").requires_grad


def test_an_incomplete_state_is_refused() -> None:
    state = read_state(Checkpoint(TINY))
    del state["layers.2.attn.attn_sink"]
    with pytest.raises(ValueError, match=r"lacks 'layers.2.attn.attn_sink'"):
        build_model(state, tiny())
