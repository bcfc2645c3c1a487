"""From a folder of code to a model that completes it, through the command alone."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.data.dataset import read_info
from sounding.model.from_checkpoint import save_model
from sounding.model.transformer import Transformer
from sounding.text.tokenizer import train
from sounding.train.finetune_run import affordable_steps, finetune_run, prepare_data
from sounding.train.initialise import initialise
from sounding.train.metrics import read_metrics
from sounding.train.resolve import read_run
from sounding.train.runs import change, copying
from sounding.weights.checkpoint import Checkpoint
from tests.data.conftest import code


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code") / "shop"
    folder.mkdir()
    for seed in range(12):
        (folder / f"m{seed:02}.py").write_text(code(seed, 12))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A tiny model with a tokenizer, for sequences short enough for a test."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = change(
        copying(),
        ["model.vocab_size=400", "model.num_hidden_layers=2", "model.compress_ratios=0,4,0"],
    ).model
    network = Transformer(config)
    initialise(network, config, 0)
    save_model(network, folder)
    train((path.read_text() for path in sorted(project.iterdir())), 400).save(
        folder / "tokenizer.json"
    )
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_a_folder_of_code_becomes_a_model(tmp_path: Path, project: Path, model: Path) -> None:
    out = tmp_path / "run"
    command = ("finetune", project, "--model", model, "--steps", 2, "--out", out)
    result = call(*command)
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"try it:  sounding complete FILE:LINE --model {out / 'model'}" in result.stderr
    assert "11 files" in result.stderr and "bits per byte before" in result.stderr
    checkpoint = Checkpoint(out / "model")
    assert checkpoint.config.expert_dtype == "fp4"
    tokenizer = (out / "model" / "tokenizer.json").read_bytes()
    assert tokenizer == (model / "tokenizer.json").read_bytes()
    measured = [row for row in read_metrics(out / "metrics.jsonl") if "bits_per_byte" in row]
    assert [row["step"] for row in measured] == [0, 2]
    again = call(*command)
    assert again.exit_code == 0 and "resuming" in again.stderr
    file = project / "m00.py"
    done = call("complete", f"{file}:3", "--model", out / "model", "--json", "--max-tokens", 4)
    assert done.exit_code == 0 and json.loads(done.stdout)


def test_every_tenth_document_is_held_out(tmp_path: Path, project: Path, model: Path) -> None:
    data = prepare_data(project, model, tmp_path)
    assert data.held_out is not None
    assert (data.documents, read_info(data.held_out)["documents"]) == (11, 1)
    assert data.tokens == read_info(data.train)["tokens"]
    run = finetune_run("shop", model, data, steps=8)
    assert run.data.held_out == str(data.held_out.resolve())
    assert (run.train.steps, run.train.warmup_steps, run.train.decay_steps) == (8, 2, 6)
    assert run.train.initial_weights == str(model.resolve())


def test_little_text_is_not_read_over_and_over(tmp_path: Path, project: Path, model: Path) -> None:
    data = prepare_data(project, model, tmp_path)
    run = finetune_run("shop", model, data, steps=2)
    steps = affordable_steps(run, data, 1e6)
    epochs = steps * run.data.batch_tokens * run.train.accumulation / data.tokens
    assert steps == 20 or epochs <= 4.5
    assert affordable_steps(run, data, 0.0) == 20


def test_folders_without_code_are_refused(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing\n" * 50)
    result = call("finetune", folder, "--model", model, "--out", tmp_path / "a", "--steps", 1)
    assert isinstance(result.exception, ValueError)
    assert "holds no .py file to learn from" in str(result.exception)
    (folder / "one.py").write_text(code(1, 4))
    result = call("finetune", folder, "--model", model, "--out", tmp_path / "b", "--steps", 1)
    assert "too few to learn from" in str(result.exception)


def test_the_folder_of_another_run_is_refused(tmp_path: Path, project: Path, model: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(copying().to_dict()))
    result = call("finetune", project, "--model", model, "--out", tmp_path, "--steps", 1)
    assert "did not make" in str(result.exception)
    assert read_run(tmp_path) == copying()
