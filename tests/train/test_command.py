"""`train` and `plot` as they are called: text in, a model and pictures out."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.data.dataset import tokenize
from sounding.text.tokenizer import train
from sounding.train.metrics import read_metrics
from sounding.train.runs import parse_run
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


def test_print_shows_the_run_and_does_nothing(tmp_path: Path) -> None:
    result = call("train", "nano", "--print", "--out", tmp_path / "run", "--set", "train.lr=0.5")
    assert json.loads(result.stdout)["train"]["lr"] == 0.5
    assert not (tmp_path / "run").exists()


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
