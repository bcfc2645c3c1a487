"""Conversions between number formats, and the error they own up to."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sounding.ops.quant import dequantize_fp8, repack_fp4_as_fp8
from sounding.presets import tiny
from sounding.weights import quantize
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.quantize import Report, Target, convert
from sounding.weights.state_dict import read_state, write_state
from tests.oracles import packing
from tests.weights.folders import (
    TINY,
    base_tensors,
    tensor_bytes,
    tiny_config,
    tiny_tensors,
    write_model,
)


def same_numbers(one: Checkpoint, other: Checkpoint) -> bool:
    first, second = read_state(one, torch.float32), read_state(other, torch.float32)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def random_model(folder: Path, seed: int = 0) -> Checkpoint:
    """The tiny network with bf16 numbers that no quantized format can hold."""
    generator = torch.Generator().manual_seed(seed)
    state = read_state(Checkpoint(TINY), torch.bfloat16)
    for name, tensor in state.items():
        if tensor.dtype == torch.bfloat16 and tensor.ndim > 1:
            state[name] = torch.randn(tensor.shape, generator=generator).bfloat16()
    write_state(state, tiny(), folder)
    return Checkpoint(folder)


@pytest.mark.parametrize("target", ["fp4", "fp8", "bf16", "transformers"])
def test_from_the_published_format_every_conversion_is_exact(
    tmp_path: Path, target: Target
) -> None:
    source = Checkpoint(TINY)
    report = convert(source, tmp_path / "out", target)
    assert report.exact
    assert same_numbers(source, Checkpoint(tmp_path / "out"))


def test_formats_of_each_target(tmp_path: Path) -> None:
    formats: dict[Target, tuple[str, str]] = {
        "fp4": ("I8", "F8_E4M3"),
        "fp8": ("F8_E4M3", "F8_E4M3"),
        "bf16": ("BF16", "BF16"),
    }
    for target, (experts, linears) in formats.items():
        convert(Checkpoint(TINY), tmp_path / target, target)
        made = Checkpoint(tmp_path / target)
        assert (made.storage.experts, made.storage.linears) == (experts, linears)
        assert made.config.expert_format == {"I8": "fp4", "F8_E4M3": "fp8"}.get(experts)
        for name, source in made.sources.items():
            if name.endswith(("attn_sink", "bias", "ape", "_fn", "_base", "_scale")):
                assert source.dtype == "F32", name


def test_same_format_is_copied_bit_for_bit(tmp_path: Path) -> None:
    convert(Checkpoint(TINY), tmp_path / "out", "fp4")
    made, original = Checkpoint(tmp_path / "out"), tiny_tensors()
    assert all(tensor_bytes(made.read(n)) == tensor_bytes(t) for n, t in original.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == tiny_config()


def test_there_and_back(tmp_path: Path) -> None:
    source = Checkpoint(TINY)
    for target in ("fp8", "bf16", "transformers"):
        convert(source, tmp_path / target, target)
        report = convert(Checkpoint(tmp_path / target), tmp_path / f"{target}-back", "fp4")
        back = Checkpoint(tmp_path / f"{target}-back")
        assert report.exact
        assert same_numbers(source, back)
        assert back.config == source.config


def test_repacked_experts_by_the_definition(tmp_path: Path) -> None:
    convert(Checkpoint(TINY), tmp_path / "out", "fp8")
    stored, made = tiny_tensors(), Checkpoint(tmp_path / "out")
    module = "layers.2.ffn.experts.5.w2"
    packed, scale = (stored[f"{module}.{part}"].view(torch.uint8) for part in ("weight", "scale"))
    expected = packing.fp4_weight(packed.numpy(), scale.numpy())
    weight, tile = (made.read(f"{module}.{part}").view(torch.uint8) for part in ("weight", "scale"))
    np.testing.assert_array_equal(packing.fp8_weight(weight.numpy(), tile.numpy()), expected)
    assert int(tile[0, 0]) == int(scale.max()) - 6  # the largest scale / 64


def test_a_tile_of_zeros_survives_the_repack() -> None:
    packed = torch.zeros(128, 64, dtype=torch.int8)
    packed[0, 0] = 1  # 0.5 under the smallest scale there is
    scale = torch.zeros(128, 4, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    weight, tile = repack_fp4_as_fp8(packed, scale)
    assert dequantize_fp8(weight, tile, torch.float64)[0, 0].item() == 2.0**-128


def test_scales_too_far_apart_are_rounded_and_reported(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    name = "layers.2.ffn.experts.5.w2"
    tensors[f"{name}.weight"][:] = 0x11  # 0.5 everywhere
    scales = tensors[f"{name}.scale"].view(torch.uint8)
    scales[:] = 127
    scales[3, 2] = 127 - 20  # 2^-20 of the rest
    report = convert(Checkpoint(write_model(tmp_path / "in", tensors)), tmp_path / "out", "fp8")
    row = row_of(report, "routed experts")
    assert (row.num_tensors - row.num_exact, row.underflowed) == (1, 32)
    assert row.max_abs_error == 0.5 * 2.0**-20
    assert not report.exact
    assert "converting back will not restore the source exactly" in report.notes[-1]


def row_of(report: Report, component: str, source: str | None = None) -> quantize.ErrorSummary:
    return next(
        row
        for row in report.rows
        if row.component == component and source in (None, row.source) and row.source != row.target
    )


def test_the_error_of_rounding(tmp_path: Path) -> None:
    source = random_model(tmp_path / "in")
    report = convert(source, tmp_path / "out", "fp4")
    before, after = (
        read_state(checkpoint, torch.float64)
        for checkpoint in (source, Checkpoint(tmp_path / "out"))
    )
    experts = [n for n in before if n.startswith("layers.") and ".experts." in n]
    x = torch.cat([before[n].flatten() for n in experts])
    y = torch.cat([after[n].flatten() for n in experts])
    row = row_of(report, "routed experts")
    assert (row.source, row.target, row.num_tensors, row.num_exact) == ("bf16", "fp4", 120, 0)
    assert row.num_values == x.numel()
    expected = ((y - x).square().sum() / x.square().sum()).sqrt().item()
    assert row.relative_rms == pytest.approx(expected, rel=1e-6)
    assert row.max_abs_error == pytest.approx((y - x).abs().max().item(), rel=1e-6)
    assert row.underflowed == ((x != 0) & (y == 0)).sum().item() > 0
    assert row.saturated == 0  # scales are chosen so that nothing is cut off
    # Three steps of half a unit to six: about a tenth; eight times as many steps in e4m3.
    assert 0.05 < row.relative_rms < 0.15
    assert 0.01 < row_of(report, "attention").relative_rms < 0.04
    assert not report.exact
    assert json.loads(json.dumps(report.to_dict()))["rows"][0].keys() >= {"relative_rms", "target"}


def test_slabs_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random_model(tmp_path / "in")
    whole = convert(source, tmp_path / "whole", "fp8")
    monkeypatch.setattr(quantize, "_SLAB_ROWS", 128)
    parts = convert(source, tmp_path / "parts", "fp8")
    one, other = (read_state(Checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    assert all(tensor_bytes(one[name]) == tensor_bytes(other[name]) for name in one)
    assert row_of(whole, "attention").relative_rms == pytest.approx(
        row_of(parts, "attention").relative_rms
    )
    convert(Checkpoint(TINY), tmp_path / "out", "transformers")
    assert same_numbers(Checkpoint(TINY), Checkpoint(tmp_path / "out"))


def test_base_scales_are_kept_or_rounded_once(tmp_path: Path) -> None:
    source = Checkpoint(write_model(tmp_path / "in", base_tensors()))
    assert convert(source, tmp_path / "fp8", "fp8").exact
    kept = Checkpoint(tmp_path / "fp8")
    assert kept.storage.scales == "F32"
    assert kept.config.quantization_config is not None
    assert kept.config.quantization_config.scale_fmt is None
    report = convert(source, tmp_path / "bf16", "bf16")
    assert 0 < row_of(report, "attention").relative_rms < 2**-8
    exact = read_state(source, torch.float32)
    rounded = read_state(Checkpoint(tmp_path / "bf16"))
    assert all(torch.equal(rounded[n], exact[n].to(rounded[n].dtype)) for n in rounded)
    assert convert(source, tmp_path / "hf", "transformers", plain="float32").exact


def test_companions_travel_and_progress_adds_up(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", tiny_tensors())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "notes.md"):
        (source / name).write_text(name)
    done: list[int] = []
    convert(Checkpoint(source), tmp_path / "out", "fp8", on_progress=done.append)
    assert sum(done) == Checkpoint(source).num_bytes
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json"
    assert not (tmp_path / "out" / "notes.md").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = read_state(Checkpoint(TINY), torch.float32)
    state["layers.1.attn.wq_a.weight"][3, 4] = value
    write_state(state, tiny(), tmp_path / "in")
    with pytest.raises(ValueError, match=r"'layers\.1\.attn\.wq_a\.weight': holds numbers that ar"):
        convert(Checkpoint(tmp_path / "in"), tmp_path / "out", "fp8")
    assert not (tmp_path / "out").exists()


def test_float32_goes_with_transformers_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype float32 goes with the target transformers only"):
        convert(Checkpoint(TINY), tmp_path / "out", "fp8", plain="float32")
