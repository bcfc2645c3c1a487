"""Exercises become tasks whose answers pass, and conversations that show how they are solved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sounding.cli import cli
from sounding.tasks.chat_task import KINDS, ChatTask, read_chat_problems
from sounding.text import encode, encode_completion
from sounding.textbook.chat_problems import ChatProblems
from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Exercise
from sounding.textbook.failed_mutants import faults
from sounding.textbook.gap_choice import gap
from sounding.textbook.make_conversations import Row, Wanted, conversations
from sounding.textbook.small_talk import small_talk
from sounding.textbook.tool_repairs import Solved
from tests.cli.test_completion import model
from tests.textbook.conftest import judged, unsafe

__all__ = ["model"]  # the fixture

Exercises = dict[str, Exercise]


def solved(exercise: Exercise, kinds: Sequence[str] = KINDS, each: int = 1) -> list[Solved]:
    return list(ChatProblems(judged, unsafe, 0).solved(exercise, kinds, each))


def test_every_kind_is_made_of_a_function_and_its_answer_passes(exercises: Exercises) -> None:
    made = solved(exercises["tide_ranges"])
    assert {one.problem.kind for one in made} == set(KINDS)
    task = ChatTask([one.problem for one in made], judged, unsafe)
    for index, one in enumerate(made):
        reply = list(one.reply)
        assert task.grade_conversation(index, reply).score == 1, one.problem.task_id
        if not one.problem.tools:
            assert reply[-1]["content"] == one.problem.answer
            assert task.grade(index, "I do not know.").score == 0


def test_a_repair_by_tools_says_what_the_tools_said(exercises: Exercises) -> None:
    [one] = solved(exercises["tide_ranges"], ["tools"])
    task = ChatTask([one.problem], judged, unsafe)
    assert task.grade_conversation(0, []).score == 0  # the files as they are given are wrong
    workspace = task.open(0)
    assert workspace is not None
    calls = [call for message in one.reply for call in message.get("tool_calls", ())]
    told = [message["content"] for message in one.reply if message["role"] == "tool"]
    again = [workspace.call(c["function"]["name"], c["function"]["arguments"]) for c in calls]
    assert again == told
    assert told[-1].startswith("all ")
    assert any("tests failed" in text for text in told)


def test_traces_think_and_the_same_programs_are_asked_at_once(exercises: Exercises) -> None:
    thinking, at_once = solved(exercises["tide_ranges"], ["trace"])
    assert thinking.problem.messages == at_once.problem.messages
    assert thinking.reply[-1]["reasoning_content"].endswith(
        "prints " + thinking.problem.answer.split("\n")[1]
    )
    assert (thinking.problem.thinking, at_once.problem.thinking) == (True, False)
    assert "reasoning_content" not in at_once.reply[-1]


def test_classes_are_written_and_scripts_are_left_out(exercises: Exercises) -> None:
    kinds = {one.problem.kind for one in solved(exercises["harbour_gauge"])}
    assert "write" in kinds
    assert "trace" not in kinds
    assert solved(exercises["sum_columns_script"]) == []


def test_faults_fail_the_tests_that_they_name(exercises: Exercises) -> None:
    found = faults(exercises["tide_ranges"], Draw("0"), unsafe)
    assert found
    for fault in found:
        assert fault.mutant.text != exercises["tide_ranges"].solutions[0]
        assert fault.failed
        assert all(number < 6 for number in fault.failed)


def test_a_gap_is_a_statement_that_fits_back(exercises: Exercises) -> None:
    program = exercises["tide_ranges"].solutions[1]
    for number in range(20):
        found = gap(program, Draw(str(number)))
        assert found is not None
        assert found.prefix + found.code + found.suffix == program
        assert found.answer == found.answer.lstrip()


def made(books: Sequence[Exercise], workers: int) -> list[Row]:
    found = conversations(books, Wanted(), judged, unsafe, workers)
    return [row for one in found for row in one.rows]


def test_conversations_are_encoded_and_the_same_for_a_seed(exercises: Exercises) -> None:
    books = [exercises[name] for name in ("tide_ranges", "harbour_gauge")]
    rows = made(books, 2)
    assert {row["kind"] for row in rows} >= {*KINDS, "explain"}
    for row in rows:
        messages = list(row["messages"])
        if "tools" in row:
            messages.insert(0, {"role": "system", "content": "", "tools": row["tools"]})
        mode = "thinking" if row["thinking"] else "chat"
        assert encode(messages, mode).endswith("<｜end▁of▁sentence｜>")
        for message in messages:
            if message["role"] == "assistant":
                encode_completion(message, mode)
    assert made(books, 1) == rows


def test_chat_is_declined_in_a_sentence_or_two() -> None:
    said = [small_talk(Draw(str(number))) for number in range(200)]
    assert len({question for question, _ in said}) > 60
    assert all("{" not in question and len(answer) < 100 for question, answer in said)


def test_wishes_that_cannot_be_granted_are_refused() -> None:
    with pytest.raises(ValueError, match="'sing'"):
        Wanted(kinds=("sing",))
    with pytest.raises(ValueError, match="each = 0"):
        Wanted(each=0)


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=True)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_the_commands_write_rows_that_are_read_back(
    folder: Path, tmp_path: Path, model: Path
) -> None:
    how = ("--model", model, "--unsafe-no-isolation", "--most-tokens", 9000, "--json")
    out = tmp_path / "conversations.jsonl"
    asked = ("--kind", "write", "--tasks", tmp_path / "asked.jsonl")
    said = run("data", "textbook", "conversations", folder, out, *asked, *how)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == said["rows"] == 2
    assert {row["messages"][-1]["role"] for row in rows} == {"assistant"}
    assert [p.row()["messages"] for p in read_chat_problems(tmp_path / "asked.jsonl")] == [
        row["messages"][:-1] for row in rows
    ]
    tasks = tmp_path / "tasks.jsonl"
    said = run("data", "textbook", "tasks", folder, tasks, "--kind", "fill", *how)
    problems = read_chat_problems(tasks)
    assert len(problems) == said["rows"] == 1
    assert problems[0].task_id.startswith("knot_rope/fill/")
    results = tmp_path / "results.jsonl"
    evaluated = ("eval", "tasks", tasks, "--model", model, "--unsafe-no-isolation", "--json")
    short = ("--max-tokens", 4, "--context-tokens", 900, "--out", results)
    measured = run(*evaluated, *short)
    assert (measured["done"], measured["total"]) == (1, 1)
    assert measured["metrics"]["pass@1"]["value"] == 0
    assert run(*evaluated, *short) == measured  # nothing is asked again
    assert len(results.read_text().splitlines()) == 2
    compared = run("eval", "compare", results, results, "--json")
    assert compared["metrics"]["pass@1 rises by"]["value"] == 0
    refused = CliRunner().invoke(cli, ["eval", "compare", str(tasks), str(results)])
    assert "is not a results file" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "sing"), "--kind sing must be one of"),
        (("--most-tokens", "3"), "no conversation has at most 3 tokens"),
    ],
)
def test_commands_say_what_is_wrong(
    folder: Path, tmp_path: Path, model: Path, arguments: tuple[str, ...], message: str
) -> None:
    how = ["--model", str(model), "--unsafe-no-isolation", "--split", "heldout", *arguments]
    command = ["data", "textbook", "tasks", str(folder), str(tmp_path / "x.jsonl"), *how]
    result = CliRunner().invoke(cli, command, catch_exceptions=True)
    assert message in str(result.exception)
