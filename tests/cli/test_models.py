"""The commands about models, through their runner."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sounding.cli import COMMANDS, cli
from sounding.weights.checkpoint import Checkpoint
from tests.weights.folders import TINY, tiny_tensors, write_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=True)


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_inspect_flash_without_weights() -> None:
    found = answer("inspect", "flash")
    assert found["source"] == "preset"
    assert found["tensors"] == 69_187
    assert found["bytes"]["total"] == 159_609_485_896
    assert found["parameters"] == {
        "main": 284_332_240_471,
        "mtp": 6_610_048_891,
        "dspark": 0,
        "active": 13_270_101_591,
    }
    assert found["state"]["bytes_per_token"] == 3514.25
    assert found["bytes"]["components"]["routed experts"] == {"fp4": 147_169_738_752}
    kinds = [layer["attention"] for layer in found["layers"]]
    assert [kinds.count(kind) for kind in ("window", "CSA", "HCA")] == [2, 21, 20]
    assert [layer["router"] for layer in found["layers"]] == ["hash"] * 3 + ["scored"] * 40


def test_inspect_a_folder_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("sounding.weights.shards.Shard.read", forbidden)
    found = answer("inspect", str(TINY))
    assert (found["source"], found["dialect"]) == ("folder", "published")
    preset = answer("inspect", "tiny")
    for key in ("layers", "parameters", "tensors", "bytes", "state"):
        assert found[key] == preset[key]


def test_inspect_for_people() -> None:
    result = run("inspect", "nano")
    assert "6: 1 window, 3 CSA, 2 HCA" in result.stdout
    assert "B per token" in result.stdout
    assert "3, 5" in result.stdout
    assert "routed experts" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("flsh", "'flsh' is neither a preset (tiny, nano, flash, pro) nor a folder; did you mean"),
        (str(TINY) + "y", f"did you mean {str(TINY)!r}?"),
        ("/nowhere/at/all", "nor a folder"),
        (str(TINY / "config.json"), "is a file; give the folder with config.json"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_unknown_models_are_refused_with_a_hint(command: str, model: str, message: str) -> None:
    result = run(command, model)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_plan_reports_verdict_and_bandwidths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sounding.weights.machine._MEMORY_SAMPLE_BYTES", 2**20)
    found = answer("plan", "tiny", "--context", "1000")
    assert found["verdict"] == "memory"
    assert found["context_tokens"] == 1000
    assert found["tokens_per_second"] > 0
    assert found["machine"].keys() >= {"available_bytes", "memory_bandwidth", "disk_bandwidth"}
    shown = run("plan", str(TINY)).stdout
    assert "fits in memory" in shown
    assert "tokens per second, by bandwidth" in shown
    too_long = run("plan", "tiny", "--context", "2000000")
    assert "outside the model's 1 to 1,048,576" in str(too_long.exception)


def test_plan_of_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sounding.weights.machine._MEMORY_SAMPLE_BYTES", 2**20)
    assert "does not fit" in run("plan", "tiny", "--memory", "1MiB").stdout
    assert answer("plan", "tiny", "--memory", "1MiB")["tokens_per_second"] == 0


def test_plan_of_a_machine_that_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sounding.weights.machine._MEMORY_SAMPLE_BYTES", 2**20)
    machine = ("--memory", "32GiB", "--disk", "5GB/s", "--bandwidth", "50 GB/s")
    found = answer("plan", "flash", *machine)
    assert found["verdict"] == "stream"
    assert found["stated"] == ["memory", "disk", "bandwidth"]
    assert found["machine"]["disk_bandwidth"] == 5e9
    shown = run("plan", "flash", *machine).stdout
    assert "measured with V4-Flash completing code" in shown
    assert "5.0 GB/s, stated" in shown


@pytest.mark.parametrize("size", ["12", "GiB", "12 parsecs", "-3GB", "0GB", "nanGB", "4GB/s"])
def test_a_size_without_a_unit_is_refused(size: str) -> None:
    result = run("plan", "tiny", "--memory", size)
    assert "must be" in result.output and "12GiB" in result.output


def test_convert_reports_exactness_and_replaces_only_by_force(tmp_path: Path) -> None:
    report = answer("convert", str(TINY), str(tmp_path / "out"), "--to", "fp8")
    assert report["exact"] is True
    rows = {(row["component"], row["source"], row["target"]): row for row in report["rows"]}
    assert rows["routed experts", "fp4", "fp8"]["num_exact"] == 120
    assert Checkpoint(tmp_path / "out").config.expert_format == "fp8"

    again = run("convert", str(TINY), str(tmp_path / "out"), "--to", "bf16")
    assert "is not empty; choose a new folder" in str(again.exception)
    forced = run("convert", str(TINY), str(tmp_path / "out"), "--to", "bf16", "--force")
    assert "exact: all values are unchanged" in forced.stdout
    assert "fp4 to bf16" in forced.stdout
    assert Checkpoint(tmp_path / "out").config.expert_format is None


def test_convert_to_transformers(tmp_path: Path) -> None:
    result = run("convert", TINY, tmp_path / "hf", "--to", "transformers", "--dtype", "float32")
    assert "note: transformers has no drafter" in result.stdout
    assert answer("inspect", str(tmp_path / "hf"))["dialect"] == "transformers"


def test_convert_refuses_a_preset_and_a_defect(tmp_path: Path) -> None:
    result = run("convert", "flash", str(tmp_path / "out"), "--to", "fp8")
    assert "'flash' is a preset, a shape without weights" in str(result.exception)
    tensors = tiny_tensors()
    del tensors["norm.weight"]
    broken = write_model(tmp_path / "broken", tensors)
    result = run("convert", str(broken), str(tmp_path / "out"), "--to", "fp8")
    assert "lacks tensor 'norm.weight'" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["inspect", "plan", "convert"])
def test_help_has_an_example_and_the_keys_of_the_json(name: str) -> None:
    result = run(name, "--help")
    assert f"sounding {name} " in result.stdout
    assert "Example" in result.stdout
    assert "Keys of the JSON" in result.stdout
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.get_short_help_str(100) == COMMANDS[name][1]
