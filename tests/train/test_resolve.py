"""Which run a command means. Catches: a resumed run that forgets its settings, or takes them from
the recipe; a short run that never reaches its last phase, or says nothing of it."""

import json
from pathlib import Path

import pytest

from sounding.train.resolve import resolve_run, scaled_schedule
from sounding.train.run_config import RunConfig
from sounding.train.runs import RUNS, change, copying, nano


def saved(folder: Path, *settings: str) -> RunConfig:
    run = change(copying(), settings)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
    return run


def test_a_saved_run_keeps_its_settings(tmp_path: Path) -> None:
    run = saved(tmp_path / "a", "train.lr=0.01", "train.steps=900", "data.path=/some/where")
    for name, out in (("copying", tmp_path / "a"), (str(tmp_path / "a"), None)):
        resolved = resolve_run(name, (), out)
        assert (resolved.config, resolved.folder, resolved.notes) == (run, tmp_path / "a", ())
        changed = resolve_run(name, ["train.steps=1200"], out).config
        assert changed == change(run, ["train.steps=1200"])  # nothing else moves with it


def test_a_new_run_is_the_recipe(tmp_path: Path) -> None:
    resolved = resolve_run("copying", ["train.lr=0.01"])
    assert resolved.config == change(copying(), ["train.lr=0.01"])
    assert (resolved.folder, resolved.notes) == (Path("runs/copying"), ())
    assert resolve_run("copying", ["name=mine"]).folder == Path("runs/mine")
    assert resolve_run("copying", (), tmp_path).folder == tmp_path


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    with pytest.raises(ValueError, match="holds a run of 'copying': choose another folder"):
        resolve_run("nano", (), tmp_path / "a")
    with pytest.raises(ValueError, match="leave out --out"):
        resolve_run(str(tmp_path / "a"), (), tmp_path / "b")
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        resolve_run("copying", (), tmp_path / "a")


def test_a_name_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither a recipe \(copying, nano, repeats\)"):
        resolve_run(str(tmp_path))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 299, 5_000])
def test_a_schedule_scales_with_the_steps(name: str, steps: int) -> None:
    recipe = RUNS[name]()
    resolved = resolve_run(name, [f"train.steps={steps}"])
    run, share = resolved.config, steps / recipe.train.steps
    assert run.train.steps == steps
    pairs = (
        (run.train.warmup_steps, recipe.train.warmup_steps),
        (run.train.decay_steps, recipe.train.decay_steps),
        (run.sparsity.dense_steps, recipe.sparsity.dense_steps),
        (run.sparsity.indexer_steps, recipe.sparsity.indexer_steps),
    )
    for scaled, before in pairs:
        assert abs(scaled - before * share) <= 2
    sparse = steps - run.sparsity.dense_steps - run.sparsity.indexer_steps
    wanted = recipe.train.steps > recipe.sparsity.dense_steps + recipe.sparsity.indexer_steps
    if steps >= 3:
        assert (sparse > 0) == wanted
    assert any("scales the schedule" in note for note in resolved.notes)


def test_what_is_set_is_not_scaled() -> None:
    settings = ["train.steps=300", "train.decay_steps=7", "sparsity.dense_steps = 9"]
    assert scaled_schedule(nano(), settings) == ["train.warmup_steps=3", "sparsity.indexer_steps=2"]
    assert scaled_schedule(nano(), ["train.steps=3000"]) == []
    assert scaled_schedule(nano(), ["train.lr=1e-3"]) == []
    with pytest.raises(ValueError, match="must be of type int"):
        resolve_run("nano", ["train.steps=1e3"])


def test_a_run_without_a_sparse_phase_is_pointed_out() -> None:
    settings = ["train.steps=300", "sparsity.dense_steps=300"]
    assert any("no sparse phase" in note for note in resolve_run("nano", settings).notes)
    assert resolve_run("repeats").notes == ()  # its recipe has none
