"""Tasks asked in a conversation: every attempt is graded, and counted with its kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sounding.agent.loop import Message, Turn
from sounding.evaluation.chats import (
    by_difficulty,
    compared,
    evaluate_chats,
    reasons,
    summarise_chats,
)
from sounding.sandbox.trial import Trial, Verdict
from sounding.tasks.chat_task import ChatProblem, ChatTask, read_chat_problems
from sounding.tasks.checks import Check, CodeCheck, FilesCheck, MutationCheck, TextCheck
from sounding.tasks.workspace import TOOLS

CODE = CodeCheck(
    solution="def f():\n    return 1\n",
    test="def check(f):\n    assert f() == 1\n",
    entry_point="f",
)
CHECKS: dict[str, Check] = {
    "write": CODE,
    "trace": TextCheck(expected="1"),
    "test": MutationCheck(
        entry_point="f", subjects=(CODE.solution,), mutants=("def f():\n    return 2\n",), needed=1
    ),
    "tools": FilesCheck(
        files={"solution.py": "def f():\n    return 2\n", "test_solution.py": "x\n"},
        editable="solution.py",
        code=CODE,
    ),
}


def write_problems(path: Path, problems: Sequence[ChatProblem]) -> None:
    path.write_text("".join(json.dumps(problem.row()) + "\n" for problem in problems))


def looked(trial: Trial) -> Verdict:
    """A sandbox that only looks: tests of an answer pass what returns 1."""
    right = "return 1" in trial.program
    return Verdict("" if right else "wrong answer", False)


def problem(kind: str, number: int = 0, *, thinking: bool = False) -> ChatProblem:
    return ChatProblem(
        task_id=f"{kind}/{number}",
        kind=kind,
        difficulty=1 + number,
        messages=({"role": "user", "content": f"{kind} {number}"},),
        tools=tuple(TOOLS) if kind == "tools" else (),
        thinking=thinking,
        answer="1",
        check=CHECKS[kind],
    )


def said(content: str, *edits: tuple[str, str]) -> Message:
    calls = [
        {
            "type": "function",
            "function": {
                "name": "edit",
                "arguments": json.dumps({"path": "solution.py", "old": old, "new": new}),
            },
        }
        for old, new in edits
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def solver(
    messages: Sequence[Message], tools: Sequence[Message], *, thinking: bool, seed: int
) -> Turn:
    """Right for even seeds."""
    value = 1 + seed % 2
    kind = messages[0]["content"].split()[0]
    if kind == "tools" and len(messages) == 1:
        return Turn(said("", ("return 2", f"return {value}")), finished=True)
    answers = {"write": f"def f():\n    return {value}", "trace": f"{value}", "tools": "Done."}
    return Turn(said(answers.get(kind, "assert f() == 1")), finished=True)


def test_each_attempt_is_a_row_with_its_grade() -> None:
    problems = [problem("write"), problem("trace", thinking=True), problem("tools", 1)]
    task = ChatTask(problems, looked)
    attempts = [(index, sample) for index in range(3) for sample in range(4)]
    rows = list(evaluate_chats(task, attempts, solver, seed=0, most_turns=1, width=3))
    assert sorted(row["id"] for row in rows) == sorted(
        f"{problems[index].task_id}#{sample}" for index, sample in attempts
    )
    single = [row for row in rows if row["task_id"] != "tools/1"]
    assert all(row["passed"] == (row["sample"] % 2 == 0) for row in single)
    assert {row["group"] for row in rows} == {"write", "trace, thinking", "tools"}
    found = summarise_chats(rows, samples=4, ks=(1, 2), seed=0)
    assert found["write pass@1"].value == 0.5
    assert found["write pass@2"].value == pytest.approx(1 - 1 / 6)
    assert {
        line["kind"]: line["difficulty"] for line in by_difficulty(rows, samples=4, ks=(1,))
    } == {
        "write": 1,
        "trace, thinking": 1,
        "tools": 2,
    }
    assert reasons(rows)["passed"] == sum(row["passed"] for row in rows)


def test_files_are_graded_as_the_last_turn_left_them() -> None:
    task = ChatTask([problem("tools")], looked)
    even = list(evaluate_chats(task, [(0, 0)], solver, seed=0, most_turns=2, width=1))
    assert even[0]["passed"]
    assert even[0]["turns"] == 2
    odd = list(evaluate_chats(task, [(0, 1)], solver, seed=0, most_turns=1, width=1))
    assert (odd[0]["passed"], odd[0]["ended"]) == (False, "turns")


def test_an_answer_that_was_cut_off_does_not_pass() -> None:
    def cut(messages: object, tools: object, *, thinking: bool, seed: int) -> Turn:
        return Turn(said("def f():\n    return 1"), finished=False)

    task = ChatTask([problem("write")], looked)
    [row] = evaluate_chats(task, [(0, 0)], cut, seed=0, most_turns=1, width=1)
    assert (row["passed"], row["reason"]) == (False, "not finished")


def result(task_id: str, sample: int, *, passed: bool, group: str = "write") -> dict[str, Any]:
    name = f"{task_id}#{sample}"
    return {"id": name, "task_id": task_id, "group": group, "passed": passed}


def test_two_results_are_compared_task_by_task() -> None:
    before = [result(f"t{n}", s, passed=n == 0) for n in range(4) for s in range(2)]
    after = [result(f"t{n}", s, passed=n < 3 and s == 0) for n in range(1, 5) for s in range(2)]
    found = compared(before, after, ks=(1, 2), seed=0)
    assert {name: rise.value for name, rise in found.items()} == {
        "pass@1 rises by": pytest.approx(1 / 3),
        "pass@2 rises by": pytest.approx(2 / 3),
    }
    tools = [result("x", s, passed=s == 0, group="tools") for s in range(2)]
    found = compared([*before, *tools], [*after, *tools], ks=(1,), seed=0)
    assert found["tools pass@1 rises by"] == (0, 0, 0)
    assert found["write pass@1 rises by"].value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no common task"):
        compared(before, tools, ks=(1,), seed=0)
    with pytest.raises(ValueError, match="2 samples and 1"):
        compared(before, after[:1], ks=(1,), seed=0)


def test_a_failing_chat_ends_the_evaluation() -> None:
    def fail(messages: object, tools: object, *, thinking: bool, seed: int) -> Turn:
        raise OSError("no server")

    task = ChatTask([problem("write", number) for number in range(9)], looked)
    with pytest.raises(OSError, match="no server"):
        list(evaluate_chats(task, [(n, 0) for n in range(9)], fail, seed=0, most_turns=1, width=2))


def test_problems_are_read_as_they_were_written(tmp_path: Path) -> None:
    problems = [problem(kind, thinking=kind == "trace") for kind in CHECKS]
    write_problems(tmp_path / "tasks.jsonl", problems)
    assert [p.row() for p in read_chat_problems(tmp_path / "tasks.jsonl")] == [
        p.row() for p in problems
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": 3}, "task_id = 3"),
        ({"difficulty": "hard"}, "difficulty = 'hard'"),
        ({"messages": "hi"}, "messages = 'hi'"),
        ({"thinking": "high"}, "thinking = 'high'"),
        ({"check": None}, "check = None"),
        ({"check": {"type": "taste"}}, "'taste' must be one of code, text, tests, files"),
        ({"check": {"type": "code", "soluton": ""}}, "soluton"),
        ({"check": {"type": "files", "files": {}}}, "editable is missing"),
        ({"check": {"type": "text", "expected": 3}}, "expected = 3 must be of type str"),
        ({"check": {"type": "text"}}, "expected is missing"),
    ],
)
def test_rows_of_another_form_are_refused_with_their_place(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(problem("write").row() | change) + "\n")
    with pytest.raises(ValueError, match="line 1") as refused:
        read_chat_problems(path)
    assert message in str(refused.value)


def test_a_name_that_comes_twice_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    write_problems(path, [problem("write"), problem("write")])
    with pytest.raises(ValueError, match="again"):
        read_chat_problems(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no tasks"):
        read_chat_problems(path)
