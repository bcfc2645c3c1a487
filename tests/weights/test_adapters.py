"""Adapters as files, in our form and in PEFT's, and merged into checkpoints.

Catches: an adapter of another model that is read, a key that is dropped in silence, deltas that
end up at another expert, projection or side of a matrix, a merge whose error is not reported.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sounding.model.adapters import adapted
from sounding.model.from_checkpoint import load_model
from sounding.weights.adapters import (
    ADAPTER_NAME,
    Adapter,
    Delta,
    adaptable,
    read_adapter,
    require_base,
    write_adapter,
)
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.peft import read_peft, write_peft
from sounding.weights.quantize import convert
from sounding.weights.raw import to_float32
from tests.adapters import random_adapter

TINY = Path(__file__).parents[1] / "vectors" / "tiny"
CHECKPOINT = Checkpoint(TINY)
CONFIG = CHECKPOINT.config


def same(one: Adapter, other: Adapter) -> bool:
    """Whether the deltas are the same numbers."""
    return one.deltas.keys() == other.deltas.keys() and all(
        np.array_equal(effect(one, name), effect(other, name)) for name in one.deltas
    )


def effect(adapter: Adapter, name: str) -> Any:
    low, high = (to_float32(part) for part in adapter.deltas[name])
    return np.float32(adapter.factor) * high @ low


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, base="b" * 64)
    path = write_adapter(adapter, tmp_path)
    found = read_adapter(tmp_path, CONFIG)
    assert same(found, adapter) and found.base == "b" * 64 and found.factor == adapter.factor
    first = path.read_bytes()
    assert write_adapter(adapter, tmp_path).read_bytes() == first


def test_the_file_may_be_replaced_while_it_is_used(tmp_path: Path) -> None:
    write_adapter(random_adapter(CONFIG, seed=1), tmp_path)
    found = read_adapter(tmp_path, CONFIG)
    (tmp_path / ADAPTER_NAME).write_bytes(b"")
    assert same(found, random_adapter(CONFIG, seed=1))


def test_another_base_is_refused_with_the_way_out() -> None:
    adapter = random_adapter(CONFIG, base="b" * 64)
    require_base(adapter, "b" * 64, "mine")
    with pytest.raises(ValueError, match=r"mine was made for .* bbbbbbbbbbbb.*tune FOLDER --anew"):
        require_base(adapter, "c" * 64, "mine")


def spoiled(tmp_path: Path, change: Any) -> None:
    """Read an adapter whose tensors were changed."""
    path = write_adapter(random_adapter(CONFIG), tmp_path)
    tensors = load_file(path)
    change(tensors)
    facts = json.dumps({"version": 1, "factor": 1.0, "base": ""})
    save_file(tensors, path, {"sounding_adapter": facts})
    read_adapter(tmp_path, CONFIG)


WQ = "layers.0.attn.wq_a"


def rename(tensors: Any, before: str, after: str) -> None:
    for leaf in ("lora_A.weight", "lora_B.weight"):
        tensors[f"{after}.{leaf}"] = tensors.pop(f"{before}.{leaf}")


def cut(tensors: Any, name: str, dim: int) -> None:
    tensors[name] = tensors[name].narrow(dim, 0, tensors[name].shape[dim] - 1).clone()


CHANGES: dict[str, tuple[Any, str]] = {
    "unknown module": (
        lambda t: rename(t, WQ, "layers.0.attn.wq_z"),
        r"layers\.0\.attn\.wq_z.* is no weight",
    ),
    "indexer": (
        lambda t: rename(t, WQ, "layers.0.attn.indexer.wq_b"),
        r"indexer\.wq_b.* is no weight",
    ),
    "layer too many": (lambda t: rename(t, WQ, "layers.99.attn.wq_a"), r"layers\.99"),
    "one factor": (lambda t: t.pop(f"{WQ}.lora_B.weight"), r"wq_a\.lora_B\.weight is missing"),
    "other key": (
        lambda t: t.update({f"{WQ}.weight": torch.zeros(1)}),
        r"'layers\.0\.attn\.wq_a\.weight' is no part",
    ),
    "rank": (lambda t: cut(t, f"{WQ}.lora_B.weight", 1), r"wq_a\.lora_B\.weight .*rank of 4"),
    "inputs": (lambda t: cut(t, f"{WQ}.lora_A.weight", 1), r"wq_a\.lora_A\.weight is"),
    "outputs": (lambda t: cut(t, f"{WQ}.lora_B.weight", 0), r"wq_a\.lora_B\.weight is"),
    "experts": (
        lambda t: cut(t, "layers.1.ffn.experts.w2.lora_A.weight", 0),
        r"layers\.1\.ffn\.experts\.w2\.lora_A",
    ),
    "numbers": (
        lambda t: t.update({f"{WQ}.lora_A.weight": t[f"{WQ}.lora_A.weight"].half()}),
        r"wq_a\.lora_A\.weight is F16",
    ),
    "empty": (lambda t: t.clear(), "has no delta"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, message = CHANGES[what]
    with pytest.raises(ValueError, match=message):
        spoiled(tmp_path, change)


@pytest.mark.parametrize("target", ["bf16", "fp8", "fp4", "transformers"])
def test_a_merged_checkpoint_is_the_network_with_the_adapter(tmp_path: Path, target: Any) -> None:
    adapter = random_adapter(CONFIG)
    report = convert(CHECKPOINT, tmp_path / "merged", target, adapter=adapter)
    wanted = adapted(load_model(CHECKPOINT), adapter)
    found = load_model(Checkpoint(tmp_path / "merged"), dequantize=torch.float32)
    plain = load_model(CHECKPOINT, dequantize=torch.float32)
    worst = {"fp8": 2**-3, "fp4": 2**-1}.get(target, 2**-8)
    for name in adaptable(CONFIG):
        before = wanted.get_parameter(f"{name}.weight")
        after = found.get_parameter(f"{name}.weight")
        assert (after - before).norm() <= worst * before.norm(), name
        assert not torch.equal(before, plain.get_parameter(f"{name}.weight"))
    rows = [row for row in report.rows if row.source.endswith("+ adapter")]
    assert rows and not report.exact
    assert all(0 < row.relative_rms <= worst for row in rows)


def test_peft_form_and_back(tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, rank=3)
    write_peft(adapter, CONFIG, tmp_path, base="tiny")
    found = read_peft(tmp_path, CONFIG, base="digest")
    assert found.base == "digest" and found.deltas.keys() == adapter.deltas.keys()
    for name in adapter.deltas:
        np.testing.assert_allclose(effect(found, name), effect(adapter, name), rtol=0, atol=1e-6)


def test_peft_form_with_ranks_of_their_own(tmp_path: Path) -> None:
    """w1 and w3 of one layer, which become one parameter there."""
    one, other = random_adapter(CONFIG, rank=2), random_adapter(CONFIG, rank=5)
    name = "layers.0.ffn.experts.w3"
    mixed = dataclasses.replace(one, deltas={**one.deltas, name: other.deltas[name]})
    write_peft(mixed, CONFIG, tmp_path, base="tiny")
    found = read_peft(tmp_path, CONFIG)
    for module in (name, "layers.0.ffn.experts.w1"):
        np.testing.assert_allclose(effect(found, module), effect(mixed, module), rtol=0, atol=1e-6)


def test_peft_tensors_that_would_not_be_used_are_refused(tmp_path: Path) -> None:
    write_peft(random_adapter(CONFIG), CONFIG, tmp_path, base="tiny")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    extra = "base_model.model.lm_head.lora_A.weight"
    save_file({**tensors, extra: torch.zeros(4, 4)}, path)
    with pytest.raises(ValueError, match="lm_head"):
        read_peft(tmp_path, CONFIG)
    save_file(tensors, path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        ({"r": 3, "rank_pattern": {}}, "rank"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "peft_type"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            read_peft(tmp_path, CONFIG)


def test_peft_form_needs_both_halves_of_a_parameter(tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG)
    some: dict[str, Delta] = {**adapter.deltas}
    del some["layers.1.ffn.experts.w3"]
    with pytest.raises(ValueError, match=r"layers\.1\.ffn\.experts"):
        write_peft(dataclasses.replace(adapter, deltas=some), CONFIG, tmp_path, base="tiny")
