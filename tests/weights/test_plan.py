"""Sizes and verdicts, against the published figures and hand-made machines."""

from dataclasses import replace
from pathlib import Path

import pytest

from sounding.presets import flash, pro, tiny
from sounding.weights import machine
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.description import (
    Description,
    StateSize,
    describe_checkpoint,
    describe_config,
)
from sounding.weights.layout import Component
from sounding.weights.machine import Machine, this_machine
from sounding.weights.memory_plan import divide_memory, everything_bytes, floor_bytes
from sounding.weights.plan import expected_hit_rate, make_plan
from sounding.weights.units import human_bytes
from tests.weights.folders import TINY

GB = 10**9
WORKSTATION = Machine(
    memory_bytes=256 * GB,
    available_bytes=250 * GB,
    disk_free_bytes=1000 * GB,
    memory_bandwidth=100e9,
    disk_bandwidth=5e9,
    disk_bandwidth_measured=True,
)


@pytest.fixture(scope="module")
def description() -> Description:
    return describe_config(flash())


def test_state_bytes_of_the_published_models() -> None:
    small, large = StateSize(flash()), StateSize(pro())
    assert (small.entry_bytes, small.index_entry_bytes) == (584, 68)
    assert small.bytes_per_token == 3514.25
    assert large.bytes_per_token == 5031.4375
    # Windows of 74,752 B a layer; partial groups of 65,536 + 16,384 (CSA) and 524,288 B (HCA).
    assert small.constant_bytes == 43 * 74_752 + 21 * 81_920 + 20 * 524_288
    assert small.bytes_at(2**20) == 3514.25 * 2**20 + small.constant_bytes
    assert small.bytes_at(3) == small.constant_bytes
    assert small.bytes_at(4) == small.constant_bytes + 21 * (584 + 68)
    assert small.bytes_at(128) - small.bytes_at(127) == 21 * (584 + 68) + 20 * 584


def test_state_bytes_read_for_a_token() -> None:
    size = StateSize(flash())
    assert size.bytes_read_at(1) == 43 * 584
    window = 43 * 128 * 584
    assert size.bytes_read_at(4096) == (window + 21 * 512 * 584 + 21 * 1024 * 68 + 20 * 32 * 584)


def test_a_preset_and_its_checkpoint_are_described_alike() -> None:
    preset, folder = describe_config(tiny()), describe_checkpoint(Checkpoint(TINY))
    assert preset.bytes_by_part == folder.bytes_by_part
    assert preset.num_tensors == folder.num_tensors == 508
    assert preset.total_bytes == 4_434_066


def test_active_bytes_of_flash(description: Description) -> None:
    routed = 43 * 256 * 3 * (2048 * 4096 // 2 + 2048 * 4096 // 32)
    assert description.component_bytes(Component.ROUTED) == routed
    assert description.active_expert_bytes == routed * 6 // 256
    # 13.27 B active parameters: 6.5 B of them in FP4, the rest in FP8 and bf16.
    assert description.active_dense_bytes == pytest.approx(7.768 * GB, rel=1e-3)


def test_verdicts_follow_memory_and_disk(description: Description) -> None:
    plan = make_plan(description, WORKSTATION, 2**20, on_disk=False)
    assert plan.verdict == "memory"
    assert plan.cached_experts == 1
    read = plan.dense_bytes_per_token + plan.expert_bytes_per_token + plan.state_bytes_per_token
    assert plan.tokens_per_second == pytest.approx(100e9 / read)

    laptop = replace(WORKSTATION, available_bytes=32 * GB)
    streamed = make_plan(description, laptop, 2**20, on_disk=False)
    assert streamed.verdict == "stream"
    assert 0.10 < streamed.cached_experts < 0.15
    assert streamed.hit_rate == expected_hit_rate(streamed.cached_experts)
    missed = (1 - streamed.hit_rate) * plan.expert_bytes_per_token
    assert streamed.disk_bytes_per_token == pytest.approx(missed, abs=1)
    assert streamed.tokens_per_second == pytest.approx(1 / (read / 100e9 + missed / 5e9))
    sweep = (1 - streamed.cached_experts) * streamed.expert_bytes / 5e9
    assert streamed.prompt_tokens_per_second == pytest.approx(streamed.chunk_tokens / sweep)

    phone = replace(WORKSTATION, available_bytes=plan.streaming_bytes - 1)
    none = make_plan(description, phone, 2**20, on_disk=False)
    assert (none.verdict, none.tokens_per_second) == ("none", 0)
    assert "even with the routed experts on disk it takes" in none.reason

    full = replace(WORKSTATION, disk_free_bytes=1)
    assert make_plan(description, full, 1, on_disk=True).verdict == "memory"
    none = make_plan(description, full, 1, on_disk=False)
    assert none.verdict == "none"
    assert none.reason == "the weights take 148.65 GiB and the disk has 1 B free"


@pytest.mark.parametrize("context", [0, -1, 2**20 + 1])
def test_contexts_the_model_does_not_have(context: int) -> None:
    with pytest.raises(ValueError, match=f"a context of {context:,} tokens is outside the model's"):
        make_plan(describe_config(tiny()), WORKSTATION, context, on_disk=True)


def test_this_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMORY_SAMPLE_BYTES", 2**20)
    found = this_machine(tmp_path)
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.memory_bandwidth > 0
    assert (found.disk_bandwidth, found.disk_bandwidth_measured) == (2e9, False)


def test_disk_speed_is_measured_on_large_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = tmp_path / "sample"
    sample.write_bytes(bytes(100_000))
    assert machine.measure_disk_bandwidth(sample) is None
    monkeypatch.setattr(machine, "_SMALLEST_DISK_SAMPLE_BYTES", 1000)
    measured = machine.measure_disk_bandwidth(sample)
    assert measured is not None and measured > 0


def test_sizes_for_people() -> None:
    sizes = [human_bytes(n) for n in (5, 2048, 3 * 2**20, 2**40)]
    assert sizes == ["5 B", "2.00 KiB", "3.00 MiB", "1024.00 GiB"]


def test_a_described_machine_takes_the_place_of_this_one() -> None:
    described = WORKSTATION.described(64 * GB, 3 * GB, None)
    assert described.available_bytes == described.memory_bytes == 64 * GB
    assert (described.disk_bandwidth, described.memory_bandwidth) == (3e9, 100e9)
    assert not described.disk_bandwidth_measured and described.memory_bandwidth_measured
    assert WORKSTATION.described(None, None, None) == WORKSTATION


def test_hit_rates_are_those_measured_and_grow_with_the_cache() -> None:
    assert expected_hit_rate(0.0) == 0
    assert expected_hit_rate(0.109) == pytest.approx(0.571)
    assert expected_hit_rate(1.0) == 1
    shares = [n / 100 for n in range(101)]
    rates = [expected_hit_rate(share) for share in shares]
    assert rates == sorted(rates)


@pytest.mark.parametrize("gigabytes", [10, 12, 16, 32, 64, 128])
def test_a_budget_is_divided_without_a_rest_or_an_excess(
    description: Description, gigabytes: int
) -> None:
    config, slot = description.config, 13_369_344
    resident = description.total_bytes - description.streamed_bytes
    plan = divide_memory(
        config,
        gigabytes * GB,
        resident_bytes=resident,
        slot_bytes=slot,
        num_experts=description.num_experts,
    )
    used = plan.resident_bytes + plan.state_bytes + plan.workspace_bytes
    used += plan.prefix_bytes + plan.slots * slot
    assert gigabytes * GB - 400 * 2**20 - slot < used <= gigabytes * GB
    assert plan.slots >= 8
    assert 64 <= plan.chunk_tokens <= 4096


def test_the_floor_is_the_least_budget(description: Description) -> None:
    config, slot = description.config, 13_369_344
    resident = description.total_bytes - description.streamed_bytes
    floor = floor_bytes(config, resident, slot)
    sizes = {"resident_bytes": resident, "slot_bytes": slot, "num_experts": description.num_experts}
    assert divide_memory(config, floor, **sizes).slots == 8
    with pytest.raises(ValueError, match=human_bytes(floor)):
        divide_memory(config, floor - 1, **sizes)
    assert everything_bytes(config, description.total_bytes) > 150 * GB


def test_the_tables_for_large_models_are_what_plan_computes(description: Description) -> None:
    page = (Path(__file__).parents[2] / "docs" / "large-models.md").read_text()
    budgets = {"16 GB": 14, "32 GB": 28, "64 GB": 58, "128 GB": 120}
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if " GB |" in line[:10]]
    assert len(rows) == 8
    for row in rows:
        memory, *cells = (cell.strip() for cell in row)
        plans = [
            make_plan(
                description,
                WORKSTATION.described(budgets[memory] * GB, disk * GB, 50 * GB),
                32768,
                on_disk=True,
            )
            for disk in (1, 2, 3, 5, 10)
        ]
        if len(cells) == 8:
            first = plans[0]
            expected = [f"{budgets[memory]} GB", f"{first.cached_experts:.1%}".replace("%", " %")]
            expected += [f"{first.hit_rate:.0%}".replace("%", " %")]
            expected += [f"{plan.tokens_per_second:.2f}" for plan in plans]
        else:
            expected = [f"{plans[0].chunk_tokens:,}"]
            expected += [f"{plan.prompt_tokens_per_second:.1f}" for plan in plans]
        assert cells == expected
