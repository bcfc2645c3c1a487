"""From a folder of code to an adapter or a model that has read it, through the commands alone.

Catches: an adapter that the other commands cannot use, an interrupted tuning that begins anew, a
second one that learns everything again, a base that was replaced unnoticed.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.data.dataset import read_info
from sounding.loading import open_model
from sounding.model.from_checkpoint import load_model, save_model
from sounding.model.transformer import Transformer
from sounding.posttrain.tune_adapter import AdapterTraining
from sounding.posttrain.tune_data import prepare
from sounding.posttrain.tune_run import affordable_steps, tune_run
from sounding.text.tokenizer import train
from sounding.train.initialise import initialise
from sounding.train.metrics import read_metrics
from sounding.train.resolve import read_run
from sounding.train.runs import change, copying
from sounding.weights.adapters import ADAPTER_NAME, read_adapter
from sounding.weights.checkpoint import Checkpoint
from tests.data.conftest import code


@pytest.fixture(autouse=True)
def _little_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sounding.posttrain.tune_data._GENERAL_FILES", 12)
    monkeypatch.setattr("sounding.posttrain.tune_run._VALIDATION_TOKENS", 1024)
    monkeypatch.setattr("sounding.cli.tune_report._MOST_LINES", 4)
    monkeypatch.setattr("sounding.cli.tune_report._MOST_CHARACTERS", 2000)


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
    assert "12 files" in result.stderr and "bits per byte before" in result.stderr
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
    data = prepare(project, model, tmp_path, replay=False)
    assert data.held_out is not None
    held = [name for name, _ in data.held_out_texts]
    assert 1 <= len(held) <= 3 and read_info(data.held_out)["documents"] == len(held)
    assert [share.name for share in data.shares] == ["project"]
    assert data.tokens == read_info(Path(data.shares[0].path))["tokens"]
    again = prepare(project, model, tmp_path / "again", replay=False, learned=data.learned)
    assert [name for name, _ in again.held_out_texts] == held
    assert (data.fresh_share, again.fresh_share) == (1.0, 0.0)
    run = tune_run("shop", model, data, steps=8)
    assert run.data.held_out == str(data.held_out.resolve())
    assert (run.train.steps, run.train.warmup_steps, run.train.decay_steps) == (8, 2, 6)
    assert run.train.initial_weights == str(model.resolve())


def test_little_text_is_not_read_over_and_over(tmp_path: Path, project: Path, model: Path) -> None:
    data = prepare(project, model, tmp_path, replay=False)
    run = tune_run("shop", model, data, steps=2)
    steps, _ = affordable_steps(run, data, 1e6)
    epochs = steps * run.data.batch_tokens * run.train.accumulation / data.tokens
    assert steps == 20 or epochs <= 4.5
    fewest, seconds = affordable_steps(run, data, 0.0)
    assert fewest == 20 and seconds > 0


def test_a_folder_becomes_an_adapter(tmp_path: Path, project: Path, model: Path) -> None:
    """Then it goes on from it when a file is new, and does nothing when none is."""
    folder = tmp_path / "shop"
    shutil.copytree(project, folder)
    command = ("tune", folder, "--model", model, "--steps", 2, "--rank", 4)
    result = call(*command)
    assert result.exit_code == 0, (result.output, result.exception)
    home = folder / ".sounding"
    assert (home / ".gitignore").read_text() == "*\n"
    assert (home / "loss.png").is_file()
    opened = open_model(model)
    adapter = opened.read_adapter(home / "adapter")
    assert {delta.rank for delta in adapter.deltas.values()} == {4}
    rows = json.loads((home / "report.json").read_text())
    assert [row["what"] for row in rows] == ["exactly right lines", *["bits per byte"] * 2]
    assert rows[1]["adapter"] < rows[1]["base"]
    assert "nothing is new" in call(*command).stderr
    (folder / "new.py").write_text(code(99, 12))
    result = call("tune", folder, "--model", model, "--steps", 30, "--no-measure")
    assert result.exit_code == 0, (result.output, result.exception)
    steps = [row["step"] for row in read_metrics(home / "tune" / "metrics.jsonl")]
    assert max(steps) < 30  # a part of the steps, for a part of the code
    opened.close()


def test_an_interrupted_tuning_goes_on(
    tmp_path: Path, project: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bits of one that was never stopped; killed meanwhile, the last saved adapter opens."""
    options = ("--model", model, "--steps", 4, "--minutes", 600, "--rank", 4, "--no-measure")
    for name in ("whole", "cut"):
        shutil.copytree(project, tmp_path / name / "shop")
    assert call("tune", tmp_path / "whole" / "shop", *options).exit_code == 0
    step = AdapterTraining._step

    def dying(self: AdapterTraining) -> None:
        if self.progress.step == 2:
            raise RuntimeError("killed")
        step(self)

    folder = tmp_path / "cut" / "shop"
    monkeypatch.setattr(AdapterTraining, "_step", dying)
    assert call("tune", folder, *options).exception is not None
    monkeypatch.setattr(AdapterTraining, "_step", step)
    first = read_adapter(folder / ".sounding" / "adapter", Checkpoint(model).config)
    assert call("tune", folder, *options).exit_code == 0
    last = (folder / ".sounding" / "adapter" / ADAPTER_NAME).read_bytes()
    whole = tmp_path / "whole" / "shop" / ".sounding" / "adapter" / ADAPTER_NAME
    assert last == whole.read_bytes()
    assert first.deltas.keys() == read_adapter(whole, Checkpoint(model).config).deltas.keys()


def test_the_adapter_of_another_base_is_refused(tmp_path: Path, project: Path, model: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(project, folder)
    command = ("tune", folder, "--steps", 1, "--rank", 4, "--no-measure", "--model")
    assert call(*command, model).exit_code == 0
    other = tmp_path / "other"
    shutil.copytree(model, other)
    network = load_model(Checkpoint(model))
    with torch.no_grad():
        network.head.weight[0, 0] += 1.0
    save_model(network, other, overwrite=True)
    shutil.copyfile(model / "tokenizer.json", other / "tokenizer.json")
    (folder / "new.py").write_text(code(77, 12))
    result = call(*command, other)
    assert "the base was replaced" in str(result.exception) and "--anew" in str(result.exception)
    assert call(*command, other, "--anew").exit_code == 0


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
