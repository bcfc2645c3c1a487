"""`train` and `plot` as they are called: text in, a model and pictures out."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.cli.train_progress import ProgressLines
from sounding.data.dataset import tokenize
from sounding.text.tokenizer import train
from sounding.train.metrics import read_metrics
from sounding.train.runs import RUNS, change, copying, parse_run
from sounding.weights.checkpoint import Checkpoint

SHORT = """train.steps=3 train.decay_steps=1 train.warmup_steps=1 sparsity.dense_steps=1
sparsity.indexer_steps=1 log.validate_every=2 data.source=dataset model.vocab_size=340
data.batch_tokens=320"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"def f{n}(x):\n    return x + {n}\n\n\nprint(f{n}({n}))\n" * 5 for n in range(40)]
    folder = tmp_path_factory.mktemp("data") / "set"
    tokenize(texts, train(texts, 340), folder)
    return folder


def settings(dataset: Path, *more: str) -> list[str]:
    given = [*SHORT.split(), f"data.path={dataset}", f"data.held_out={dataset}", *more]
    return [part for setting in given for part in ("--set", setting)]


def test_text_becomes_a_model_that_commands_take(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    result = call("train", "copying", "--out", out, "--device", "cpu", *settings(dataset))
    assert result.exit_code == 0, result.output
    run = parse_run(json.loads(result.stdout))
    assert run.train.steps == 3 and run == parse_run(json.loads((out / "run.json").read_text()))
    assert "finished at step 3 of 3" in result.stderr
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["bits_per_byte"] > 0 for row in rows if "bits_per_byte" in row] == [True, True]
    model = out / "checkpoints" / "step-00000003" / "model"
    assert Checkpoint(model).config.vocab_size == 340
    assert (model / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()
    again = call("train", "copying", "--out", out, "--device", "cpu", *settings(dataset))
    assert again.exit_code == 0 and len(read_metrics(out / "metrics.jsonl")) == len(rows)
    further = call("train", "copying", "--from", model, "--print", *settings(dataset))
    assert json.loads(further.stdout)["train"]["initial_weights"] == str(model)
    drawn = call("plot", out)
    assert drawn.stdout.split() == [
        str(out / "plots" / f"{name}.png") for name in ("loss", "expert_load", "gradient_norm")
    ]


def test_a_run_goes_on_without_its_settings(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    longer = settings(dataset, "train.steps=4")
    assert call("train", "copying", "--out", out, "--device", "cpu", *longer).exit_code == 0
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    for arguments in (("copying", "--out", out), (out,)):
        again = call("train", *arguments, "--device", "cpu")
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout) == json.loads((out / "run.json").read_text())
        assert "finished at step 4 of 4" in again.stderr
    other = call("train", out, "--device", "cpu", "--set", "train.lr=0.5")
    assert "train.lr: 0.005 -> 0.5" in str(other.exception) and "--change" in str(other.exception)


def test_progress_without_a_terminal_is_lines(tmp_path: Path, dataset: Path) -> None:
    """The first step, every hundredth of the run, validations, the last: all on stderr."""
    longer = settings(dataset, "train.steps=6", "log.validate_every=3")
    result = call("train", "copying", "--out", tmp_path, "--device", "cpu", *longer)
    lines = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert "dense, loss " in lines[0] and "left" in lines[0] and "left" not in lines[-2]
    assert "indexer, KL " in lines[1]
    assert "held out " in lines[3]
    assert f"try it:  sounding complete FILE:LINE --model {tmp_path}" in result.stderr


def test_long_runs_print_about_a_hundred_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run = change(copying(), ["train.steps=3000"])
    progress = ProgressLines(run)
    progress.start_at(1000)
    for step in range(1001, 3001):
        row = {"step": step, "phase": "dense", "loss": 1.0, "tokens_per_second": 10.0}
        progress.show(row)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 67
    assert lines[0].startswith("step 1,001 of 3,000: ") and lines[-1].startswith("step 3,000 of")


@pytest.mark.parametrize("name", RUNS)
def test_help_lists_every_recipe(name: str) -> None:
    assert f"\n    {name} " in call("train", "--help").output


def test_print_shows_the_run_and_does_nothing(tmp_path: Path) -> None:
    result = call("train", "nano", "--print", "--out", tmp_path / "run", "--set", "train.lr=0.5")
    assert json.loads(result.stdout)["train"]["lr"] == 0.5
    assert not (tmp_path / "run").exists()
    short = call("train", "nano", "--print", "--set", "train.steps=300")
    assert json.loads(short.stdout)["sparsity"]["dense_steps"] == 260
    assert "train.steps = 300 instead of 3000 scales the schedule" in short.stderr


def test_mistakes_are_named(tmp_path: Path, dataset: Path) -> None:
    def mistake(*arguments: str | Path) -> str:
        result = call("train", *arguments, "--out", tmp_path / "run")
        assert isinstance(result.exception, ValueError)
        return str(result.exception)

    assert "did you mean 'nano'" in mistake("nanno")
    assert "did you mean 'lr'" in mistake("nano", "--set", "train.lrr=1")
    assert "--set data.path=FOLDER" in mistake("nano")
    for size in (64, 340 + 1024):
        wrong = settings(dataset, f"model.vocab_size={size}")
        assert "340 different tokens" in (said := mistake("copying", *wrong))
        assert "--set model.vocab_size=340" in said
