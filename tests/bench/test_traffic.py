"""`traffic` against live servers: a scripted one that suggests what is known, and one with a
network in it, which is asked for everything twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sounding.bench.traffic.typist import trace_of
from sounding.cli import cli
from tests.server.live import Live, live
from tests.server.scripted import ScriptedEngine
from tests.server.test_with_the_engine import server as server  # a network, made once

KINDS = ("agent", "chat", "infill", "messages", "suffix")
TEXT = "one = 1\ntwo = 2\nthree = one + two\nfour = 4\n"


@pytest.fixture(scope="module")
def scripted() -> Iterator[Live]:
    with live(ScriptedEngine("+ two\nnever")) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "typed.py"
    made.write_text(TEXT)
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["traffic", *map(str, arguments)])


def report_of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_trace_types_whole_lines() -> None:
    trace = trace_of(TEXT, line=2, keys=3)
    cursors = list(trace.cursors())
    assert cursors[0] == ("one = 1\nt", "\nthree = one + two\nfour = 4\n")
    assert cursors[-1][0] == "one = 1\ntwo = 2"
    assert trace.key("one = 1\ntwo", " = 2", 0.1).right
    assert not trace.key("one = 1\ntwo", " = 3", 0.1).right
    assert not trace.key("one = 1\ntwo", " ", 0.1).right
    with pytest.raises(ValueError, match="line 9 is not in the file, which has 4"):
        trace_of(TEXT, line=9, keys=1)
    with pytest.raises(ValueError, match="there is nothing to type in line 2"):
        trace_of("a = 1\n\n", line=2, keys=0)


@pytest.mark.parametrize("protocol", ["infill", "suffix", "lsp"])
def test_typing_reports_latency_and_right_suggestions(
    scripted: Live, file: Path, protocol: str
) -> None:
    """The scripted suggestion is right before `+`; a language server then shows what is left of it
    while it is typed, and asks nobody."""
    options = ("--protocol", protocol, "--file", file, "--line", 3, "--keys", 5, "--json")
    result = run("typing", scripted.url, *options, "--model", scripted.service.model_name)
    assert result.exit_code == 0, (result.output, result.exception)
    report = report_of(result)
    assert (report["protocol"], report["keys"]) == (protocol, len("three = one + two"))
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["largest_ms"]
    assert report["shown"] > 0.5
    right = len("+ two") if protocol == "lsp" else 1
    assert report["right"] == round(right / report["keys"], 4)


def test_a_crowd_gets_what_each_would_get_alone(server: Live, file: Path) -> None:
    options = ("--clients", 8, "--minutes", 0.1, "--repeat", 12, "--file", file, "--json")
    result = run("crowd", server.url, *options, "--model", server.service.model_name)
    report = report_of(result)
    assert result.exit_code == 0, report
    assert (report["errors"], report["different"]) == ([], [])
    assert {"agent", "infill", "suffix"} < set(report["kinds"]) <= {*KINDS}
    assert report["compared"] == min(12, report["requests"]) and report["fewest"] > 0
    assert report["after"]["sounding_state_bytes"] == 0
    assert report["after"]["process_open_fds"] <= report["before"]["process_open_fds"] + 4


def test_leaving_reports_when_requests_stop_after_a_disconnect(server: Live, file: Path) -> None:
    options = (
        "--times",
        2,
        "--characters",
        1500,
        "--file",
        file,
        "--json",
        "--model",
        server.service.model_name,
    )
    report = report_of(run("leaving", server.url, *options))
    for kind in ("reading", "writing"):
        assert report[kind]["times"] == 2
        assert 0 < report[kind]["p50_ms"] <= report[kind]["largest_ms"]


def test_what_a_crowd_sees_go_wrong_is_told(scripted: Live, file: Path) -> None:
    options = ("--clients", 1, "--minutes", 0.05, "--file", file, "--json")
    result = run("crowd", scripted.url, *options, "--model", "another")
    assert result.exit_code == 1
    assert "another" in report_of(result)["errors"][0]


def test_an_answer_that_is_another_alone_is_found(scripted: Live, file: Path) -> None:
    engine = scripted.engine
    assert isinstance(engine, ScriptedEngine)
    usual, count = engine.script, 0

    def drift(prompt: str) -> str:
        nonlocal count
        count += 1
        return f"{count}\n"

    engine.script = drift
    try:
        options = ("--clients", 4, "--minutes", 0.05, "--repeat", 3, "--file", file, "--json")
        result = run("crowd", scripted.url, *options, "--model", scripted.service.model_name)
    finally:
        engine.script = usual
    assert result.exit_code == 1
    assert len(report_of(result)["different"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("typing",), "give the URL of a server, or --protocol lsp"),
        (("typing", "ftp://x"), "must be the http address of a server"),
        (("crowd", "http://127.0.0.1:9"), "no complete response"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
