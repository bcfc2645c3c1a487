"""From a folder of code to a shipped model with its card, through the commands and the script."""

import json
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sounding
from sounding.cli import cli
from sounding.evaluation.model_card import _time
from sounding.loading import trained_context
from sounding.weights.checkpoint import Checkpoint
from tests.data.conftest import code

REPOSITORY = Path(sounding.__file__).parents[1]
SETTINGS = """train.steps=4 train.decay_steps=1 train.warmup_steps=1 sparsity.dense_steps=1
sparsity.indexer_steps=1 log.validate_every=2 data.source=dataset model.vocab_size=400
data.batch_tokens=320 log.checkpoint_every=2 log.milestone_every=2"""


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two packages, one held out, a dataset, and a run on it."""
    root = tmp_path_factory.mktemp("made")
    for name, seeds in (("known", range(8)), ("unseen", range(20, 23))):
        folder = root / name
        folder.mkdir()
        (folder / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of")
        for seed in seeds:
            (folder / f"m{seed}.py").write_text(code(seed))
    corpus = root / "corpus"
    sources = ("--source", root / "known", "--source", root / "unseen", "--heldout", "unseen")
    call("data", "build", corpus, *sources)
    vocabulary = root / "tokenizer.json"
    call("data", "vocabulary", corpus, "--vocab-size", 400, "--out", vocabulary)
    for split in ("train", "heldout"):
        arguments = ("--tokenizer", vocabulary, "--split", split, "--out", root / split)
        call("data", "tokenize", corpus, *arguments)
    given = [*SETTINGS.split(), f"data.path={root / 'train'}", f"data.held_out={root / 'heldout'}"]
    options = [part for setting in given for part in ("--set", setting)]
    call("train", "copying", "--out", root / "run", "--device", "cpu", *options)
    return root


def ship(clone: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as in a fresh clone whose environment is up to date."""
    binary = clone / ".venv" / "bin"
    if not binary.exists():
        shutil.copytree(REPOSITORY / "scripts", clone / "scripts")
        binary.mkdir(parents=True)
        python = binary / "python"
        lines = ("#!/bin/sh", f"cd {shlex.quote(str(REPOSITORY))}")
        python.write_text("\n".join((*lines, f'exec {sys.executable} "$@"\n')))
        python.chmod(0o755)
        (clone / "sounding" / "ops" / "cpu").mkdir(parents=True)
        for name in ("pyproject.toml", "sounding/ops/cpu/a.h", "sounding/ops/cpu/a.cpp"):
            (clone / name).write_text("")
        (clone / ".venv" / "installed-dev").write_text("")
    command = [str(clone / "scripts" / "ship"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shipped(made: Path) -> Path:
    place = made / "clone" / "sounding" / "assets" / "nano"
    done = ship(made / "clone", made / "run", place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_last_checkpoint_is_shipped_as_fp4(made: Path, shipped: Path) -> None:
    checkpoint = Checkpoint(shipped)
    assert checkpoint.config.expert_format == "fp4"
    assert (shipped / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    assert json.loads((shipped / "training.json").read_text())["step"] == 4
    assert shipped.stat().st_mode & 0o777 == 0o755
    told = json.loads((shipped / "training.json").read_text())
    assert told["converses"] is False and told["sequence_tokens"] == trained_context(shipped)
    earlier = ship(
        made / "clone", made / "run" / "milestones" / "step-00000002", made / "other", "--converses"
    )
    assert earlier.returncode == 0, earlier.stderr
    assert json.loads((made / "other" / "training.json").read_text())["step"] == 2
    assert json.loads((made / "other" / "training.json").read_text())["converses"] is True
    assert not list(shipped.parent.glob(".ship.*"))


def test_what_cannot_be_shipped_leaves_the_old_model(
    made: Path, shipped: Path, tmp_path: Path
) -> None:
    before = (shipped / "training.json").read_bytes()
    none = ship(made / "clone", tmp_path, shipped, "--replace")
    assert none.returncode == 1 and "holds no checkpoint" in none.stderr
    large = tmp_path / "large"
    shutil.copytree(made / "run" / "checkpoints" / "step-00000004", large)
    with (large / "model" / "LICENSE").open("wb") as file:
        file.truncate(48_000_000)  # a companion that convert copies
    refused = ship(made / "clone", large, shipped, "--replace")
    assert refused.returncode == 1 and "has at most 48000000" in refused.stderr
    assert (shipped / "training.json").read_bytes() == before


def everything(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_nothing_is_replaced_without_being_told(made: Path, tmp_path: Path) -> None:
    clone, saved, place = made / "clone", made / "run", tmp_path / "export"
    step = saved / "milestones" / "step-00000002"
    for arguments in ((), (saved,), (saved, place, place), (saved, place, "--force")):
        assert ship(clone, *arguments).returncode == 2
    place.mkdir()  # empty: nothing to lose
    assert ship(clone, saved, place).returncode == 0
    (place / "README.md").write_text("a card\n")
    before = everything(place)
    again = ship(clone, step, place)
    assert again.returncode == 1 and "--replace replaces what is there" in again.stderr
    assert everything(place) == before
    assert ship(clone, step, place, "--replace").returncode == 0
    assert json.loads((place / "training.json").read_text())["step"] == 2
    assert not (place / "README.md").exists()  # it was of the other weights
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_is_no_export_is_never_replaced(made: Path, tmp_path: Path) -> None:
    clone, saved = made / "clone", made / "run"
    home = tmp_path / "home"
    (home / "src").mkdir(parents=True)
    (home / "src" / "work.py").write_text("x")
    more = tmp_path / "more"
    assert ship(clone, saved, more).returncode == 0
    (more / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(more)
    before = everything(tmp_path)
    for place in (home, more, tmp_path / "file", tmp_path / "link", tmp_path):
        done = ship(clone, saved, place, "--replace")
        assert done.returncode == 1 and "name a new" in done.stderr, done.stderr
    assert everything(tmp_path) == before


def test_the_card_says_what_the_files_say(made: Path, shipped: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    with results.open("w") as file:
        for name, *more in (("bpb", "--no-compressors"), ("lines", "--limit", 4)):
            arguments = ("eval", name, made / "corpus", "--model", shipped, *more, "--json")
            file.write(call(*arguments).stdout)
    growth = tmp_path / "growth.json"
    arguments = (made / "run", made / "corpus", "--documents", 1, "--lines", 2)
    growth.write_text(call("eval", "run", *arguments, "--json").stdout)
    given = (made / "run", results, growth, "--corpus", made / "corpus", "--model", shipped)
    call("card", *given, "--note", "On two cores.")
    text = (shipped / "README.md").read_text()
    refused = CliRunner().invoke(cli, ["card", *map(str, given)])
    assert "replace it (--overwrite)" in str(refused.exception)
    call("card", *given, "--note", "On two cores.", "--overwrite")
    assert (shipped / "README.md").read_text() == text
    state = json.loads((shipped / "training.json").read_text())
    stats = json.loads((made / "corpus" / "stats.json").read_text())
    bits, lines = _objects(results)
    rows = _objects(growth)[0]["rows"]
    for part in (
        "# copying",
        f"| tokens | {state['tokens']:,},",
        "| steps | 4 of 4 |",
        "**train**: known (MIT).",
        f"| heldout | 1 | {stats['splits']['heldout']['documents']} |",
        f"| bits_per_byte | {bits['metrics']['bits_per_byte']['value']:.4f} |",
        f"model {bits['settings']['model']}",
        f"items {lines['done']} of 4",
        "### eval run",
        f"| step 2 | 2 | {rows[0]['tokens']} |",
        f"{rows[0]['bits_per_byte']['value']:.4f} (",
        "On two cores.",
        "| attention | 1 steps dense,",
        "| learning rate | after each quarter of the steps",
        "sequences of up to 160 tokens",
    ):
        assert part in text, part
    assert "nan" not in text and "None" not in text


def test_the_card_shows_a_mixture_and_what_a_run_began_with(made: Path, tmp_path: Path) -> None:
    parts = [
        {"name": "corpus", "path": str(made / "train"), "weight": 3, "final_weight": 1},
        {"name": "book", "path": str(made / "heldout"), "weight": 1},
    ]
    given = [*SETTINGS.split(), f"data.mixture={json.dumps(parts)}"]
    options = [part for setting in given for part in ("--set", setting)]
    begun = ("--from", made / "run" / "checkpoints" / "step-00000004")
    call("train", "copying", "--out", tmp_path / "next", "--device", "cpu", *begun, *options)
    saved = tmp_path / "next" / "checkpoints" / "step-00000004"
    card = tmp_path / "card.md"
    arguments = (tmp_path / "next", "--corpus", made / "corpus", "--model", saved / "model")
    call("card", *arguments, "--out", card)
    text = card.read_text()
    assert "| begun with | the weights and moments of run, step-00000004 |" in text
    assert "| dataset | weight | at the end | documents | tokens | times read |" in text
    tokens = json.loads((saved / "state.json").read_text())["tokens"]
    shares = []
    for name, weights in (("corpus", "3 | 1"), ("book", "1 | 1")):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | {weights} |"))
        size = int(row.split(" | ")[4].replace(",", ""))
        shares.append(float(row.rstrip(" |").split(" | ")[5]) * size / tokens)
    assert abs(sum(shares) - 1) < 0.03
    assert abs(shares[1] - math.log(2) / 2) < 0.02  # the mean of 1 / (4 - 2 t)


def _objects(path: Path) -> list[dict[str, Any]]:
    text = path.read_text().replace("}\n{", "}\0{")
    return [json.loads(part) for part in text.split("\0")]


def test_results_of_another_model_are_refused(made: Path, shipped: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    other = made / "run" / "checkpoints" / "step-00000004" / "model"
    arguments = ("eval", "bpb", made / "corpus", "--no-compressors", "--json", "--model")
    results.write_text(call(*arguments, other).stdout)
    before = (shipped / "training.json").read_bytes()

    def refused(*arguments: object) -> str:
        out = ("--out", tmp_path / "card.md")
        given = ("card", made / "run", *arguments, "--corpus", made / "corpus", *out)
        result = CliRunner().invoke(cli, list(map(str, given)))
        assert isinstance(result.exception, ValueError), result.output
        return str(result.exception)

    assert "for another model" in refused(results, "--model", shipped)
    results.write_text('{"evaluation": "bpb"}')
    assert "is not output of `eval ... --json`" in refused(results, "--model", shipped)
    bare = tmp_path / "bare"
    shutil.copytree(other, bare)
    assert "has no training.json with the step of its run" in refused("--model", bare)
    assert (shipped / "training.json").read_bytes() == before


def test_time_is_that_of_all_steps_even_repeated_ones() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 100, "tokens_per_second": 10.0},
        {"step": 1, "tokens": 100, "bits_per_byte": 1.0},
        {"step": 2, "tokens": 200, "tokens_per_second": 20.0},
        {"step": 1, "tokens": 100, "event": "rolled back", "reason": ""},
        {"step": 2, "tokens": 200, "tokens_per_second": 5.0},
    ]
    seconds, tokens = _time(rows)
    assert seconds == pytest.approx(35.0)
    assert tokens == 300
