"""`eval run` on the models of a run: the right numbers at the right tokens, each made once."""

import json
from pathlib import Path
from typing import Any

import pytest

from sounding import loading
from sounding.train.run_checkpoint import save_milestone
from sounding.train.saved_models import MILESTONES_NAME
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state
from tests.cli.test_completion import model
from tests.cli.test_evaluation import FUNCTION, TEXT, answer, isolation, rows_in, run

__all__ = ["isolation", "model"]  # the fixtures


@pytest.fixture
def trained(tmp_path: Path, model: Path) -> Path:
    """A run that kept two models, the first of them without a preference for any token."""
    checkpoint = Checkpoint(model)
    weights = read_state(checkpoint)
    for step, tokens, head in ((20, 2000, 1.0), (3, 300, 0.0)):
        changed = {**weights, "head.weight": weights["head.weight"] * head}
        save_milestone(
            tmp_path / "run" / MILESTONES_NAME,
            step,
            tokens,
            model=changed,
            config=checkpoint.config,
            beside=[model / "tokenizer.json"],
        )
    return tmp_path / "run"


def test_models_are_measured_in_order_of_their_tokens(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.py"
    path.write_text(TEXT)
    found = answer("eval", "run", trained, path)
    first, last, *copyists = found["rows"]
    assert [(row["step"], row["tokens"]) for row in (first, last)] == [(3, 300), (20, 2000)]
    models = [folder / "model" for folder in sorted((trained / MILESTONES_NAME).iterdir())]
    for row, folder in zip((first, last), models, strict=True):
        alone = answer("eval", "bpb", path, "--model", folder, "--no-compressors")
        assert row["bits_per_byte"] == alone["metrics"]["bits_per_byte"]
    assert first["bits_per_byte"] != last["bits_per_byte"]
    lines = answer("eval", "lines", path, "--model", models[1])
    assert last["line_exact"] == lines["metrics"]["model_exact"]
    assert [row["name"] for row in copyists] == ["copy", "best_copy"]
    assert copyists[1]["line_exact"] == lines["metrics"]["best_copy_exact"]
    assert (trained / "evaluations" / "growth.png").read_bytes()[:4] == b"\x89PNG"

    def refuse(*arguments: Any) -> Any:
        assert not list(arguments[-1]), "measured again"
        return iter(())

    monkeypatch.setattr("sounding.engine.scoring.token_logprobs", refuse)
    monkeypatch.setattr(loading.LoadedModel, "batch", lambda *_: refuse)
    assert answer("eval", "run", trained, path) == found
    assert "best_copy" in run("eval", "run", trained, path).stdout


@pytest.mark.usefixtures("isolation")
def test_programs_are_run_too(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(TEXT)
    problems = rows_in(tmp_path / "p", {**FUNCTION, "suffix": "\n"})
    found = answer("eval", "run", trained, path, "--infilling", problems)
    assert [row["infilling_pass@1"]["value"] for row in found["rows"][:2]] == [0, 0]
    assert found["settings"]["problems"] == 1
    kept = trained / "evaluations" / "step-00000003-infilling.jsonl"
    assert json.loads(kept.read_text().splitlines()[1])["task_id"] == "T/0"


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(TEXT)
    result = run("eval", "run", tmp_path, tmp_path / "a.py")
    assert "has no saved model" in str(result.exception)
