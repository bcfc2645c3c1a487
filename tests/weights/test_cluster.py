"""Plans on clusters, against the report's figures and sums by hand."""

import json
from math import prod

import pytest
from click.testing import CliRunner

from sounding.cli import cli
from sounding.presets import flash, pro, tiny
from sounding.weights.cluster import (
    dispatch_bytes_per_token,
    flops_per_link_byte,
    parse_cluster,
    plan_serving,
    plan_training,
)
from sounding.weights.description import Description, StateSize, describe_config
from sounding.weights.layout import Component, count_parameters, parameters

GB = 10**9


@pytest.fixture(scope="module")
def small() -> Description:
    return describe_config(flash())


def test_a_cluster_is_read_as_count_and_memory() -> None:
    cluster = parse_cluster("8x80GB")
    assert (cluster.devices, cluster.device_bytes) == (8, 80 * GB)
    assert parse_cluster("2x1.5TiB").device_bytes == 3 * 2**39


@pytest.mark.parametrize(
    "text", ["8", "8x", "x80GB", "0x80GB", "8x80", "8x80GB!", "-1x80GB", "8x0GB"]
)
def test_another_form_of_cluster_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="COUNTxMEMORY"):
        parse_cluster(text)


def test_speeds_are_stated_unless_given() -> None:
    assert parse_cluster("8x80GB").stated == ("memory_bandwidth", "link_bandwidth", "flops")
    given = parse_cluster("8x80GB", link_bandwidth=25e9)
    assert given.stated == ("memory_bandwidth", "flops") and given.link_bandwidth == 25e9
    assert parse_cluster("16x80GB").link_bandwidth < parse_cluster("8x80GB").link_bandwidth
    with pytest.raises(ValueError, match=r"link_bandwidth = 0.0 must be above 0"):
        parse_cluster("8x80GB", link_bandwidth=0.0)


def test_communication_is_hidden_at_the_reports_ratio() -> None:
    """6 h d FLOP against 3 h bytes of a token's visit: 6144 FLOP per byte for Pro."""
    assert flops_per_link_byte(pro()) == 6144
    assert flops_per_link_byte(flash()) == 4096
    per_visit = dispatch_bytes_per_token(pro(), 10**9) / (61 * 6)
    assert per_visit == pytest.approx(3 * 7168, rel=1e-4)


def test_one_device_needs_no_link() -> None:
    assert dispatch_bytes_per_token(flash(), 1) == 0
    plan = plan_training(tiny(), parse_cluster("1x80GB"), 128)
    assert set(plan.link_bytes.values()) == {0}


def test_weights_on_all_devices_are_the_model_once_and_the_rest_again(small: Description) -> None:
    description = small
    plan = plan_serving(small, parse_cluster("8x80GB"), 131_072)
    routed = description.component_bytes(Component.ROUTED)
    assert 8 * plan.expert_bytes == routed
    assert plan.replicated_bytes + routed == description.total_bytes
    used = plan.replicated_bytes + plan.expert_bytes + plan.sequences * plan.state_bytes
    assert used <= 80 * GB < used + plan.state_bytes + 5 * GB
    assert plan.state_bytes == StateSize(flash()).bytes_at(131_072)


def test_what_does_not_fit_says_how_many_devices_would(small: Description) -> None:
    plan = plan_serving(small, parse_cluster("2x40GB"), 131_072)
    assert plan.sequences == 0 and plan.tokens_per_second == 0
    enough, fewer = plan.least_devices, plan.least_devices - 1
    assert plan_serving(small, parse_cluster(f"{enough}x40GB"), 131_072).sequences >= 1
    assert plan_serving(small, parse_cluster(f"{fewer}x40GB"), 131_072).sequences == 0
    assert plan_serving(small, parse_cluster("8x8GB"), 131_072).least_devices == 0


def test_the_slowest_part_bounds_the_speed(small: Description) -> None:
    slow = plan_serving(small, parse_cluster("8x80GB", link_bandwidth=1e6), 4096)
    assert slow.bound == "link"
    assert slow.tokens_per_second == pytest.approx(
        8e6 / dispatch_bytes_per_token(flash(), 8), rel=1e-6
    )


def test_training_shards_all_that_lasts_over_all_devices() -> None:
    counts, cluster = count_parameters(flash()), parse_cluster("64x80GB")
    plan = plan_training(flash(), cluster, 4096)
    assert plan.parameter_bytes == 8 * (counts.main + counts.mtp) // 64
    # A moment of each, and a second one of the embedding, the head and vectors.
    two = sum(
        prod(each.shape)
        for each in parameters(flash())
        if each.component in (Component.EMBEDDING, Component.HEAD) or len(each.shape) == 1
    )
    assert plan.moment_bytes == 4 * (counts.main + counts.mtp + two) // 64
    assert (plan.expert, plan.data) == (64, 1)


def test_experts_divide_devices_and_experts() -> None:
    assert plan_training(tiny(), parse_cluster("6x80GB"), 128).expert == 2
    with pytest.raises(ValueError, match=r"parallel.expert = 3 must divide the 8 devices"):
        plan_training(tiny(), parse_cluster("8x80GB"), 128, expert=3)


def test_the_command_says_which_speeds_are_stated() -> None:
    arguments = ["plan", "preset:nano", "--cluster", "8x80GB", "--link", "100"]
    shown = CliRunner().invoke(cli, arguments).stdout
    assert "100 GB/s in each direction, given" in shown and "TFLOP/s, stated" in shown
    answer = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert answer["cluster"]["link_bandwidth"] == 100 * GB
    assert answer["serving"]["bound"] in answer["serving"]["seconds"]


def test_a_link_without_a_cluster_is_refused() -> None:
    result = CliRunner().invoke(cli, ["plan", "preset:nano", "--link", "100"])
    assert "give --cluster too" in str(result.exception)
