"""Held-out exercises as problems, and the commands that make documents and problems."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli.data import data
from sounding.data.dataset import Dataset
from sounding.data.documents import read_documents
from sounding.tasks.code import grade, read_problems
from sounding.text.tokenizer import Tokenizer, train
from sounding.textbook.exercises import Exercise
from sounding.textbook.problems import function_problem, infilling_problems
from tests.textbook.conftest import HELD_OUT, TIDES, judged, write_topic

Exercises = dict[str, Exercise]


def run(*words: object, fails: str = "") -> Result:
    result = CliRunner().invoke(data, ["textbook", *map(str, words)])
    if fails:
        assert isinstance(result.exception, ValueError) and fails in str(result.exception)
    else:
        assert result.exception is None, result.output
    return result


def test_a_function_is_asked_for_by_head_and_docstring(exercises: Exercises) -> None:
    problem = function_problem(exercises["tide_ranges"])
    assert problem is not None
    assert problem.task_id == "textbook/tide_ranges"
    assert problem.prompt == (
        "def tide_ranges(levels: list[int], gap: int = 1) -> list[int]:\n"
        '    """Return how far the tide rose between each level and the one gap steps later.\n'
        "\n"
        "    The result is empty where levels are fewer than gap + 1; a gap below 1 raises\n"
        "    ValueError.\n"
        "\n"
        "    >>> tide_ranges([1, 4, 2])\n"
        "    [3, -2]\n"
        "    >>> tide_ranges([1, 4, 2], 2)\n"
        "    [1]\n"
        "    >>> tide_ranges([])\n"
        "    []\n"
        '    """\n'
    )
    assert grade(problem, problem.canonical_solution, judged).score == 1
    for wrong in ("    return []\n", problem.canonical_solution.replace("gap < 1", "gap < 0")):
        assert grade(problem, wrong, judged).score == 0


def test_what_stands_above_a_function_stands_above_its_problem(exercises: Exercises) -> None:
    base = exercises["knot_rope"]
    above = "KNOT = 'o'\n\n\n"
    problem = function_problem(replace(base, solutions=(above + base.solutions[0],)))
    assert problem is not None and problem.prompt.startswith(above + "def knot_rope(")
    below = base.solutions[0] + "\n\nknot_rope(1, 1)\n"
    assert function_problem(replace(base, solutions=(below,))) is None
    assert function_problem(exercises["harbour_gauge"]) is None


def test_lines_to_fill_in_pass_with_their_own_answer(exercises: Exercises) -> None:
    for name, count in (("tide_ranges", 4), ("harbour_gauge", 4), ("sum_columns_script", 0)):
        problems = infilling_problems(exercises[name])
        assert len(problems) == count
        for problem in problems:
            assert grade(problem, problem.canonical_solution, judged).score == 1
            assert problem.prompt.startswith("# " + exercises[name].descriptions[0].split()[0])


def test_check_counts_what_it_ran(folder: Path) -> None:
    answer = json.loads(run("check", folder, "--unsafe-no-isolation", "--json").output)
    assert answer["exercises"] == 5 and answer["held_out"] == 1
    shown = run("check", folder, "--unsafe-no-isolation").output
    assert "5 exercises of 2 topics, 1 held out: 6 solutions pass their tests" in shown


def test_check_refuses_all_kinds_of_faults_at_once(folder: Path, tmp_path: Path) -> None:
    wrong = TIDES.replace('"tide_ranges([5]) == []"', '"tide_ranges([5]) == [5]"')
    write_topic(folder, wrong)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "def knot_rope(x):\n    pass"}) + "\n")
    result = run("check", folder, "--exclude", rows, "--unsafe-no-isolation", fails="3 faults")
    message = str(result.exception)
    assert "rows.jsonl has a function knot_rope; choose another name" in message
    assert "tides, tide_ranges, solution 1: test 'tide_ranges([5]) == [5]'" in message


def test_render_makes_a_corpus_that_can_be_tokenized(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    shown = run("render", folder, out, "--variants", 10).output
    assert "train: " in shown and "heldout: " in shown
    documents = {split: list(read_documents(out, split)) for split in ("train", "heldout")}
    assert all("knot_rope" not in document.text for document in documents["train"])
    assert all("knot_rope" in document.text for document in documents["heldout"])
    assert {document.license for document in documents["train"]} == {"MIT"}
    train([document.text for document in documents["train"]], 320).save(tmp_path / "t.json")
    words = ["tokenize", out, "--tokenizer", tmp_path / "t.json", "--out", tmp_path / "dataset"]
    assert CliRunner().invoke(data, list(map(str, words))).exception is None
    opened = Dataset.open(tmp_path / "dataset")
    assert isinstance(opened.tokenizer, Tokenizer)
    assert len(opened.offsets) - 1 == len(documents["train"])


def test_render_of_one_split_and_of_other_exercises(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    answer = json.loads(run("render", folder, out, "--split", "heldout", "--json").output)
    assert list(answer["splits"]) == ["heldout"]
    run("render", folder, out, fails="holds a corpus of other sources")
    run("render", folder, out, "--overwrite")
    (folder / "strings" / "ropes.toml").unlink()
    run("render", folder, tmp_path / "new", fails="there is no exercise for the split heldout")


def test_problems_are_those_of_held_out_topics(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "problems"
    words = ("problems", folder, out, "--unsafe-no-isolation")
    answer = json.loads(run(*words, "--json").output)
    assert answer == {"exercises": 1, "functions": 1, "infilling": 2, "left_out": {}}
    functions = read_problems(out / "functions.jsonl", infilling=False)
    lines = read_problems(out / "infilling.jsonl", infilling=True)
    assert [problem.task_id for problem in functions] == ["textbook/knot_rope"]
    for problem in (*functions, *lines):
        assert grade(problem, problem.canonical_solution, judged).score == 1
        assert grade(problem, "pass", judged).score == 0
    assert "wrote 1 functions and 2 lines" in run(*words).output
    write_topic(folder, HELD_OUT.replace("held_out = true", "held_out = false"))
    run(*words, fails="has no topic with held_out = true")


@pytest.mark.parametrize("name", ["check", "render", "problems"])
def test_a_missing_folder_is_refused(tmp_path: Path, name: str) -> None:
    words = ["textbook", name, str(tmp_path / "none"), str(tmp_path / "out")]
    assert CliRunner().invoke(data, words).exit_code == 2
