"""`encode`, `parse` and `tokenizer` as another program would use them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from sounding.cli import cli
from sounding.text.tokenizer import Tokenizer
from tests.text.vectors import FOLDER, pair, rows

EOS = "<｜end▁of▁sentence｜>"


def answers(command: list[str], given: str | bytes) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, command, input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def lines(*given: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in given)


def test_encode_golden_rows() -> None:
    path = FOLDER / "encoding" / "encode.jsonl"
    expected = [{"prompt": row["expected"]} for row in rows("encode.jsonl")]
    assert answers(["encode", str(path)], "") == expected
    assert answers(["encode"], path.read_bytes()) == expected


def test_parse_golden_rows() -> None:
    path = FOLDER / "encoding" / "parse.jsonl"
    expected = [{"message": row["expected"]} for row in rows("parse.jsonl")]
    assert answers(["parse"], path.read_bytes()) == expected


def test_a_bad_row_is_an_answer_and_stops_nothing() -> None:
    kwargs = {"thinking_mode": "chat"}
    good = {"messages": [{"role": "user", "content": "é"}], "kwargs": kwargs}
    bad: list[tuple[Any, str]] = [
        ([1], "JSON object"),
        ({"kwargs": kwargs}, "no 'messages'"),
        ({"messages": "hi", "kwargs": kwargs}, "list of messages"),
        ({"messages": []}, "thinking_mode"),
        ({"messages": [], "kwargs": {"thinking_mode": "loud"}}, "loud"),
        ({"messages": [], "kwargs": {"thinkingmode": "chat"}}, "did you mean 'thinking_mode'"),
        ({"messages": [], "kwargs": {**kwargs, "replay": {}}}, "unknown argument 'replay'"),
        ({"messages": [], "kwargs": {**kwargs, "drop_thinking": "no"}}, "true or false"),
        ({"messages": [{"role": "user", "content": 5}], "kwargs": kwargs}, "content 5"),
    ]
    text = "{half\n\n" + lines(*(row for row, _ in bad), good)
    first, *middle, last = answers(["encode"], text.encode() + b'"\xff"\n' + lines(good).encode())
    assert "not JSON" in first["error"]
    *refused, prompt, undecodable = middle
    for answer, (_, told) in zip(refused, bad, strict=True):
        assert told in answer["error"]
    assert list(undecodable) == ["error"]
    assert prompt == last
    assert "<｜User｜>é<｜Assistant｜>" in last["prompt"]


def test_wrong_types_are_answers_outside_of_the_tests_type_checks_too() -> None:
    given = lines(
        {"messages": [7], "kwargs": {"thinking_mode": "chat"}},
        {"messages": [], "kwargs": {"thinking_mode": ["chat"]}},
        {"messages": [], "kwargs": {"thinking_mode": "chat", "reasoning_effort": ["max"]}},
        {"messages": [], "kwargs": {"thinking_mode": "chat", "effort_scheme": {}}},
        {"messages": [], "kwargs": {"thinking_mode": "chat", "context": 5}},
    )
    command = [sys.executable, "-m", "sounding", "encode"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    told = [
        "messages[0] is 7",
        "thinking_mode",
        "reasoning_effort",
        "effort_scheme",
        "context is 5",
    ]
    for line, words in zip(done.stdout.splitlines(), told, strict=True):
        assert words in json.loads(line)["error"]


def test_tools_beside_the_messages_go_on_the_first() -> None:
    messages, expected = pair(1)
    first = dict(messages[0])
    row = {
        "messages": [first, *messages[1:]],
        "tools": first.pop("tools"),
        "kwargs": {"thinking_mode": "thinking"},
    }
    assert answers(["encode"], lines(row)) == [{"prompt": expected}]


def test_effort_schemes_are_named() -> None:
    def row(scheme: str) -> dict[str, Any]:
        kwargs = {"thinking_mode": "thinking", "reasoning_effort": "max", "effort_scheme": scheme}
        return {"messages": [{"role": "user", "content": "q"}], "kwargs": kwargs}

    april, latest = answers(["encode"], lines(row("april"), row("0731")))
    assert "Absolute maximum" in april["prompt"]
    assert "Beyond maximum" in latest["prompt"]


def test_a_row_may_hold_half_a_character() -> None:
    row = {
        "messages": [{"role": "user", "content": "\ud800"}],
        "kwargs": {"thinking_mode": "chat"},
    }
    (answer,) = answers(["encode"], lines(row))
    assert "\ud800" in answer["prompt"]


def test_parse_is_strict_unless_told() -> None:
    text = (
        'A.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="n" string="true">5'
    )
    tools = [{"function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
    closed = f"{text}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>{EOS}"
    given = lines(
        {"text": text, "thinking_mode": "chat"},
        {"text": closed, "thinking_mode": "chat", "tools": tools},
    )
    strict = answers(["parse"], given)
    assert list(strict[0]) == ["error"]
    assert strict[1]["message"]["tool_calls"][0]["function"]["arguments"] == '{"n": "5"}'
    cut, mended = answers(["parse", "--tolerant"], given)
    assert cut["finish_reason"] == "length"
    assert [repair["kind"] for repair in cut["repairs"]] == ["truncated"]
    assert mended["finish_reason"] == "tool_calls"
    assert [repair["kind"] for repair in mended["repairs"]] == ["string_flag"]
    assert mended["message"]["tool_calls"][0]["function"]["arguments"] == '{"n": 5}'


def test_rows_are_answered_one_by_one() -> None:
    command = [sys.executable, "-m", "sounding", "parse"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("a", "b"):
            row = lines({"text": text + EOS, "thinking_mode": "chat"})
            process.stdin.write(row.encode())
            process.stdin.flush()
            # The answer must come while the input is still open.
            assert json.loads(process.stdout.readline())["message"]["content"] == text
        process.stdin.close()


def test_train_and_inspect(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "tokenizer.json"
    (corpus / ".git").mkdir(parents=True)
    (corpus / ".git" / "x.py").write_text("hidden")
    (corpus / "a.py").write_text("def f(x):\n    return x + 1\n" * 40)
    (corpus / "b.md").write_text("a page about functions and their results\n" * 40)
    (corpus / "c.bin").write_bytes(b"\xff\xfe\x00")
    run = CliRunner().invoke(
        cli, ["tokenizer", "train", str(corpus), "--vocab-size", "330", "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    assert run.stdout == ""
    assert "skipped 1 files" in run.stderr
    assert Tokenizer.from_file(out).num_tokens == 330

    shown = CliRunner().invoke(cli, ["tokenizer", "inspect", str(out), str(corpus), "--json"])
    described = json.loads(shown.stdout)
    assert described["tokens"] == 330
    groups = {(row["language"], row["type"]): row for row in described["text"]}
    assert set(groups) == {("Python", ".py"), ("Latin", ".md"), ("all", "")}
    python = groups["Python", ".py"]
    assert python["bytes"] == 40 * 27
    assert python["bytes_per_token"] == python["bytes"] / python["tokens"] > 1
    table = CliRunner().invoke(cli, ["tokenizer", "inspect", str(out), str(corpus)])
    assert f"{python['bytes_per_token']:.2f}" in table.stdout


def test_too_small_a_vocabulary_is_a_line_on_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sounding", "tokenizer", "train", __file__]
    command += ["--vocab-size", "10", "--out", str(tmp_path / "t.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sounding: a vocabulary of 10 is too small")
