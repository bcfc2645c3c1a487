"""The layout against the published sizes (docs/checkpoints.md 1 and 2, docs/architecture.md 13)."""

import dataclasses
from collections import Counter
from functools import cache

import pytest

from sounding.config import DSparkConfig, ModelConfig
from sounding.presets import flash, pro, tiny
from sounding.weights.description import describe_config
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


def with_dspark(config: ModelConfig, rank: int, layers: tuple[int, ...]) -> ModelConfig:
    """The refresh of a published model that has a DSpark drafter."""
    dspark = DSparkConfig(
        block_size=5, noise_token_id=128799, target_layer_ids=layers, markov_rank=rank
    )
    ratios = (*config.compress_ratios, 0, 0)
    return dataclasses.replace(config, compress_ratios=ratios, dspark=dspark)


@pytest.mark.parametrize(
    ("config", "total", "drafter"),
    [
        (with_dspark(flash(), 256, (40, 41, 42)), 166_878_536_440, 10_862_838_300),
        (with_dspark(pro(), 512, (58, 59, 60)), 892_727_580_904, 41_979_375_900),
    ],
    ids=["flash", "pro"],
)
def test_totals_with_dspark(config: ModelConfig, total: int, drafter: int) -> None:
    """Those of the headers of the published files, and what follows from them for Pro."""
    described = describe_config(config)
    assert described.total_bytes == total
    assert described.component_bytes(Component.DSPARK) == drafter
    plain = describe_config(dataclasses.replace(config, dspark=None, num_nextn_predict_layers=0))
    assert described.active_dense_bytes == plain.active_dense_bytes


def test_tensors_and_shards_of_flash_with_dspark() -> None:
    config = with_dspark(flash(), 256, (40, 41, 42))
    names = [tensor.name for tensor in tensors(config, FP4)]
    assert len(names) == len(set(names)) == 72_317
    groups = shard_groups(names)
    assert len(groups) == 48
    assert [len(group) for group in groups[45:]] == [1568, 1565, 1572]
    count = count_parameters(config)
    assert (count.mtp, count.dspark) == (0, 19_845_850_215 + 3 * 256)  # biases are apart there


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
