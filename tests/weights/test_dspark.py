"""Checkpoints with a DSpark drafter: read, run, converted and written back; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from sounding.cli import cli
from sounding.config_file import parse_config
from sounding.model.from_checkpoint import load_model, save_model
from sounding.model.state import growing_state
from sounding.simulation import DEPLOYED
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import FP4, tensors
from sounding.weights.quantize import convert
from tests.weights.folders import tensor_bytes, tiny_config, tiny_tensors, write_model

KEYS: dict[str, Any] = {
    "compress_ratios": [0, 128, 4, 128, 4, 0, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 511,
    "dspark_target_layer_ids": [2, 3, 4],
    "dspark_markov_rank": 16,
}


def dspark_config(**changes: Any) -> dict[str, Any]:
    """The golden config with the keys of a refresh: `num_nextn_predict_layers` stays 1."""
    return tiny_config(**{**KEYS, **changes})


def dspark_tensors() -> dict[str, Tensor]:
    """The golden network with a random drafter, in the published names and formats."""
    made = {name: t for name, t in tiny_tensors().items() if not name.startswith("mtp.")}
    generator = torch.Generator().manual_seed(3)
    dtypes = {
        "F8_E4M3": torch.float8_e4m3fn,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
    }
    for tensor in tensors(parse_config(dspark_config()), FP4):
        if not tensor.name.startswith("mtp."):
            continue
        if tensor.dtype == "I8":
            codes = torch.randint(-128, 128, tensor.shape, generator=generator)
            made[tensor.name] = codes.to(torch.int8)
        elif tensor.dtype == "F8_E8M0":
            exponents = torch.randint(118, 124, tensor.shape, generator=generator)
            made[tensor.name] = exponents.to(torch.uint8).view(torch.float8_e8m0fnu)
        else:
            values = torch.randn(tensor.shape, generator=generator)
            values = 1 + 0.1 * values if "norm" in tensor.name else 0.1 * values
            made[tensor.name] = values.to(dtypes[tensor.dtype])
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "in", dspark_tensors(), dspark_config())


@torch.no_grad()
def test_it_runs_and_is_written_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.skipped == ()
    model = load_model(checkpoint, simulation=DEPLOYED)
    assert model.dspark is not None
    state = growing_state(model.config)
    taps = model(torch.arange(200), None, [state]).taps
    assert taps is not None
    model.dspark.read(taps, [200], [state.blocks])
    drafted = model.draft_block(torch.tensor([9]), [state])
    assert drafted.logits.shape == (1, 5, 512)
    assert drafted.logits.isfinite().all()
    save_model(model, tmp_path / "out")
    written: dict[str, Tensor] = {}
    for shard in sorted((tmp_path / "out").glob("*.safetensors")):
        written |= load_file(shard)
    expected = dspark_tensors()
    assert written.keys() == expected.keys()
    assert all(tensor_bytes(written[name]) == tensor_bytes(expected[name]) for name in expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == dspark_config()


def test_conversion_takes_the_drafter_along(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder)
    convert(checkpoint, tmp_path / "bf16", "bf16")
    plain = Checkpoint(tmp_path / "bf16")
    assert plain.config.dspark == checkpoint.config.dspark
    report = convert(plain, tmp_path / "hf", "transformers")
    assert "transformers has no drafter: mtp.* keeps its published names" in report.notes[0]
    again = Checkpoint(tmp_path / "hf")
    assert again.dialect == "transformers"
    assert again.config.num_dspark_blocks == 3
    name = "mtp.1.ffn.experts.2.w1.weight"
    assert torch.equal(again.read(name), plain.read(name))


def test_the_drafter_that_transformers_drops_is_not_announced(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(Checkpoint(folder), tmp_path / "hf", "transformers")
    [path] = (tmp_path / "hf").glob("*.safetensors")
    kept = {name: t for name, t in load_file(path).items() if not name.startswith("mtp.")}
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    opened = Checkpoint(write_model(tmp_path / "saved", kept, raw))
    assert opened.config.dspark is None
    assert opened.config.num_mtp_layers == 0
    assert "no block to draft with" in caplog.text


def test_inspect_and_plan_count_it(folder: Path) -> None:
    size = sum(len(tensor_bytes(t)) for n, t in dspark_tensors().items() if n.startswith("mtp."))
    result = CliRunner().invoke(cli, ["inspect", str(folder), "--json"])
    found = json.loads(result.stdout)
    assert sum(found["bytes"]["components"]["dspark"].values()) == size
    assert found["parameters"]["mtp"] == 0 < found["parameters"]["dspark"]
    shown = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert "in 3 blocks, 5 tokens at once" in shown.stdout
    planned = CliRunner().invoke(cli, ["plan", str(folder), "--json"])
    assert json.loads(planned.stdout)["weight_bytes"] == found["bytes"]["total"]


# --------------------------------------------------------------------------------------------------
# Refusals


def test_missing_tensors_are_named_with_the_way_out(tmp_path: Path) -> None:
    tensors = dspark_tensors()
    del tensors["mtp.2.confidence_head.proj.weight"]
    with pytest.raises(
        ValueError,
        match=r"lacks tensor 'mtp\.2\.confidence_head\.proj\.weight'.* to run without drafts set "
        r"num_nextn_predict_layers to 0 in config\.json and remove its dspark_\* keys",
    ):
        Checkpoint(write_model(tmp_path, tensors, dspark_config()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dspark_markov_rank": 32},
            r"'mtp\.2\.markov_head\.markov_w1\.weight' has shape \[512, 16\]; by config\.json it "
            r"must be \[512, 32\]",
        ),
        (
            {"dspark_target_layer_ids": [3, 4]},
            r"'mtp\.0\.main_proj\.weight' has shape \[128, 384\]; .* must be \[128, 256\]",
        ),
        ({"compress_ratios": [0, 128, 4, 128, 4, 0, 0]}, r"lacks .*mtp\.1\."),
        ({"compress_ratios": [0, 128, 4, 128, 4, 0, 0, 0, 0]}, r"lacks .*mtp\.3\."),
        ({"dspark_n_routed_experts": 4}, r"'mtp\.0\.ffn\.gate\.weight' has shape \[8, 128\]"),
    ],
    ids=["rank", "layers", "fewer blocks", "more blocks", "experts"],
)
def test_a_drafter_of_another_shape(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoint(write_model(tmp_path, dspark_tensors(), dspark_config(**changes)))


def test_tensors_that_no_drafter_has(tmp_path: Path) -> None:
    tensors = {**dspark_tensors(), "mtp.2.markov_head.embed.weight": torch.ones(512, 16)}
    with pytest.raises(
        ValueError, match=r"markov_head\.embed\.weight', which this network does not"
    ):
        Checkpoint(write_model(tmp_path, tensors, dspark_config()))


def test_an_mtp_block_is_no_dspark_drafter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks .*mtp\.0\.main_proj\.weight"):
        Checkpoint(write_model(tmp_path, tiny_tensors(), dspark_config()))
