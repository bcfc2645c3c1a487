"""What `bench --drafts` reports adds up, and options without effect are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sounding.bench.drafting import DraftingRow, measure_drafters, places_in
from sounding.cli import cli
from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.ops.cpu import library
from tests.engine.running import prompt
from tests.networks import DSPARK, as_network, make_network

needs_kernels = pytest.mark.skipif(library() is None, reason="the C++ kernels are not built")


@pytest.fixture(scope="module")
def network() -> Network:
    """With an MTP block, and a DSpark drafter beside it."""
    assert DSPARK.dspark is not None
    beside = dataclasses.replace(DSPARK.dspark, beside=True, n_blocks=2)
    config = dataclasses.replace(DSPARK, dspark=beside, compress_ratios=(*DSPARK.ratios, 0))
    return as_network(make_network(config, dtype=torch.bfloat16))


@needs_kernels
def test_every_drafter_is_measured_alone_and_all_of_its_drafts_are_verified(
    network: Network,
) -> None:
    seen: list[None] = []
    prompts = [prompt(40), prompt(30) * 2]
    report = measure_drafters(network, None, prompts, 20, lambda: seen.append(None))
    names = [row.name for row in report.rows]
    alone = ["prompt lookup", "mtp", "dspark"]
    assert names == ["no drafts", *alone, "as the engine chooses"]
    rows = dict(zip(names, report.rows, strict=True))
    assert len(seen) == 2 and rows["no drafts"].acceptance == ()
    assert rows["no drafts"].expected_gain == rows["no drafts"].tokens_per_step == 1
    for name in ("mtp", "dspark"):
        assert len(rows[name].acceptance) == 4 and rows[name].drafts_per_step > 2.5
        assert 1 <= rows[name].tokens_per_step < 2  # random weights
    written = report.to_dict()["rows"]
    assert isinstance(written, list) and written[0]["gain"] == 1


def test_a_step_costs_its_drafts_and_their_rows() -> None:
    one = DraftingRow("mtp", 1.0, 2.1, (0.8, 0.5), 2.0, draft_cost=0.25, row_cost=0.1)
    assert one.step_cost == pytest.approx(1.7)
    block = dataclasses.replace(one, in_blocks=True)
    assert block.step_cost == pytest.approx(1.45)
    assert block.expected_gain == pytest.approx(2.1 / 1.45)


def test_places_are_spread_over_the_text() -> None:
    documents = [list(range(100)), list(range(200, 205)), list(range(300, 330))]
    assert places_in(documents, 3, 10) == [list(range(low, low + 10)) for low in (0, 30, 60)]
    assert len(places_in(documents, 99, 10)) == 11
    with pytest.raises(ValueError, match="no document is longer than 100 tokens"):
        places_in(documents, 3, 100)


def test_a_network_that_drafts_nothing_is_refused() -> None:
    network = ReferenceNetwork(make_network(DSPARK))
    with pytest.raises(ValueError, match="drafts need the C"):
        measure_drafters(network, None, [[1, 2]], 5)


@pytest.mark.parametrize("option", [["--simulate"], ["--prefill", "5"]])
def test_options_without_effect_are_refused(option: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    result = CliRunner().invoke(cli, ["bench", "nano", "--drafts", str(tmp_path), *option])
    assert result.exit_code == 2 and "cannot be combined with --drafts" in result.output


@needs_kernels
def test_the_command_measures_the_shipped_model(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def add(a, b):\n    return a + b\n\n\n" * 20)
    command = ["bench", "nano", "--drafts", str(tmp_path), "--places", "2", "--decode", "6"]
    result = CliRunner().invoke(cli, [*command, "--context", "20", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["places"] == 2 and len(report["rows"]) >= 4
