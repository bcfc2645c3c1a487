"""The layout against the published sizes (docs/checkpoints.md 1 and 2, docs/architecture.md 13)."""

from collections import Counter
from functools import cache

import pytest

from sounding.config import ModelConfig
from sounding.presets import flash, pro, tiny
from sounding.weights.layout import (
    BASE,
    FP4,
    Component,
    count_parameters,
    parameters,
    shard_groups,
    storage_of,
    stored_as,
    tensors,
)


@cache
def flash_names() -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors(flash(), FP4))


@pytest.mark.parametrize(
    ("config", "count", "total"),
    [(flash(), 69_187, 159_609_485_896), (pro(), 145_116, 864_704_792_696)],
    ids=["flash", "pro"],
)
def test_the_layout_has_the_published_totals(config: ModelConfig, count: int, total: int) -> None:
    stored = list(tensors(config, storage_of(config)))
    assert len(stored) == len({tensor.name for tensor in stored}) == count
    assert sum(tensor.num_bytes for tensor in stored) == total


def test_base_total_without_mtp_tensor_count() -> None:
    names = flash_names()  # FP4 or FP8: the same names
    assert {tensor.name for tensor in tensors(tiny(), BASE)} == {
        tensor.name for tensor in tensors(tiny(), FP4)
    }
    assert sum(not name.startswith("mtp.") for name in names) == 67_612


@pytest.mark.parametrize(
    ("config", "main", "mtp", "active"),
    [
        (flash(), 284_332_240_471, 6_610_048_891, 13.27),
        (pro(), 1_572_997_201_763, 25_840_145_979, 48.85),
    ],
    ids=["flash", "pro"],
)
def test_parameter_counts_are_the_published_ones(
    config: ModelConfig, main: int, mtp: int, active: float
) -> None:
    count = count_parameters(config)
    assert (count.main, count.mtp) == (main, mtp)
    assert round(count.active / 1e9, 2) == active


def test_tensors_per_layer_of_flash() -> None:
    names = flash_names()
    groups = Counter(
        name.split(".")[1] if name.startswith("layers.") else name.split(".")[0] for name in names
    )
    assert (groups["0"], groups["3"], groups["2"], groups["mtp"]) == (1565, 1569, 1576, 1575)


def test_shards_of_flash() -> None:
    groups = shard_groups(flash_names())
    assert len(groups) == 46
    assert groups[0] == ["embed.weight"]
    assert all(name.startswith("layers.42.") for name in groups[43])
    assert sorted(groups[44]) == [
        "hc_head_base",
        "hc_head_fn",
        "hc_head_scale",
        "head.weight",
        "norm.weight",
    ]
    assert all(name.startswith("mtp.0.") for name in groups[45])


def test_every_parameter_of_the_mtp_block_is_reported_as_such() -> None:
    for parameter in parameters(tiny()):
        assert (parameter.component is Component.MTP) == parameter.name.startswith("mtp.")


def test_a_width_fp4_cannot_have() -> None:
    parameter = next(p for p in parameters(tiny()) if p.component is Component.HYPER)
    odd = type(parameter)("x.weight", (4, 40), parameter.kind, parameter.component)
    with pytest.raises(ValueError, match=r"x\.weight has 40 inputs .* multiple"):
        stored_as(odd, "I8", "F8_E8M0")
