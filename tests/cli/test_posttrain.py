"""`posttrain` as it is called: what it prints, makes and refuses."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.config import ModelConfig
from sounding.weights.checkpoint import Checkpoint
from tests.posttrain.conftest import _SETTINGS, config, rows, start, taught, tokenizer, write_rows

__all__ = ["config", "start", "taught", "tokenizer"]  # fixtures


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def settings(*more: str) -> list[str]:
    return [part for setting in (*_SETTINGS.split(), *more) for part in ("--set", setting)]


def test_conversations_become_a_model_that_is_deployed_in_fp4(
    tmp_path: Path, start: Path, config: ModelConfig
) -> None:
    """Of a run's float32 checkpoint, what it is deployed in is what its run says."""
    data, out = write_rows(tmp_path / "rows.jsonl", rows()), tmp_path / "run"
    run = tmp_path / "before"
    place = run / "checkpoints" / "step-00000001"
    place.mkdir(parents=True)
    (place / "model").symlink_to(start)
    (run / "run.json").write_text(json.dumps({"model": config.to_dict()}))
    made = call("posttrain", "sft", "--data", data, "--from", run, "--out", out,
                "--epochs", "1", *settings("conversations.effort_scheme=0731"))  # fmt: skip
    assert made.exit_code == 0, made.output
    printed = json.loads(made.stdout)
    assert printed["train"]["qat"] and printed["train"]["steps"] == 1
    assert "try it:  sounding chat --model" in made.stderr
    stored = Checkpoint(out / "model").storage
    assert (stored.experts, stored.linears) == ("I8", "F8_E4M3")
    assert (out / "model" / "tokenizer.json").is_file()
    drawn = call("posttrain", "plot", out)
    assert drawn.stdout.split() == [str(out / "plots" / "loss.png")]
    again = call("posttrain", "sft", "--out", out, "--print")
    assert json.loads(again.stdout) == printed and "resuming" in again.stderr


def test_what_is_missing_is_named(tmp_path: Path, start: Path) -> None:
    for stage, reason in (
        ("sft", "conversations.path is not set"),
        ("grpo", "rollouts.tasks is not set"),
        ("distill", "distill.teachers is empty"),
    ):
        result = call("posttrain", stage, "--from", start, "--out", tmp_path / stage)
        assert result.exit_code == 1 and reason in str(result.exception)
