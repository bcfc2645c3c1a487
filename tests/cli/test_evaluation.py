"""`eval` through its runner: on a random model, and on one whose words are written by hand."""

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sounding import loading
from sounding.cli import cli
from sounding.completion import completer
from sounding.engine.batch import Request
from sounding.sandbox.run import NoIsolation, require_isolation
from sounding.text.markup import FIM_BEGIN, FIM_HOLE
from tests.cli.test_completion import model
from tests.engine.scripted import small_tokenizer
from tests.tasks.test_mbpp import row

__all__ = ["model"]  # the fixture

TEXT = "import math\n\n\ndef area(radius):\n    return math.pi * radius**2\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=True)


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        pytest.skip(str(error))


class Scholar:
    """Answers from a book: the text before the gap decides, or else nothing is written."""

    def __init__(self, book: dict[str, str]) -> None:
        self.book = book
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        tokenizer = small_tokenizer()
        for index, request in enumerate(requests):
            self.asked.append(request)
            text = tokenizer.decode(request.prompt[1:])
            shown = (
                text.partition(FIM_BEGIN)[2].partition(FIM_HOLE)[0] if FIM_BEGIN in text else text
            )
            left = b""
            for prefix, script in self.book.items():
                if prefix.startswith(shown) and len(prefix) - len(shown) < 16:
                    left = (prefix[len(shown) :] + script).encode()
            more = True
            while left and more:
                allowed = request.answer.allowed()
                token = max(
                    (
                        token
                        for token, data in enumerate(tokenizer.token_bytes)
                        if data and left.startswith(data) and (allowed is None or token in allowed)
                    ),
                    key=lambda token: len(tokenizer.token_bytes[token]),
                )
                left = left[len(tokenizer.token_bytes[token]) :]
                more = request.answer.push(token, 0.0)
                if more and left:
                    yield index, False
            yield index, True


@pytest.fixture
def scholar(monkeypatch: pytest.MonkeyPatch) -> Scholar:
    scholar = Scholar({})
    monkeypatch.setattr(loading.LoadedModel, "batch", lambda *_: scholar)
    return scholar


def test_bits_per_byte(model: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.py").write_text(TEXT * 20)
    (tmp_path / "b" / "two.py").write_text(TEXT)
    (tmp_path / "b" / "three.txt").write_text("not looked at")
    (tmp_path / "b" / "four.py").write_bytes(b"\xff\xfe")
    (tmp_path / "b" / ".hidden").mkdir()
    (tmp_path / "b" / ".hidden" / "five.py").write_text("not entered")
    out = tmp_path / "out.jsonl"
    arguments = ("eval", "bpb", tmp_path / "b", "--model", model, "--context-tokens", 64)
    found = answer(*arguments, "--out", out)
    value = found["metrics"]["bits_per_byte"]["value"]
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert {row["id"] for row in rows} == {"one.py", "two.py"}
    assert value == pytest.approx(sum(row["bits"] for row in rows) / (21 * len(TEXT)))
    assert 0 < value < math.inf
    assert (found["done"], found["settings"]["stride"]) == (2, 32)
    programs = {(row["program"], row["documents"]) for row in found["compressors"]}
    assert {("xz -9e", "together"), ("xz -9e", "one by one")} <= programs
    # From the file of results, without the model's help.
    assert answer(*arguments, "--out", out) == found
    other = run(*arguments, "--out", out, "--stride", 10)
    assert "has no results of these settings" in str(other.exception)
    shown = run(*arguments, "--limit", 1, "--no-compressors")
    assert "bits_per_byte" in shown.stdout
    assert "1 of 1 done" in shown.stdout


def test_eval_lines_reports_exact_lines_and_the_baselines(
    model: Path, tmp_path: Path, scholar: Scholar
) -> None:
    path = tmp_path / "a.py"
    path.write_text(TEXT)
    lines = TEXT.splitlines()
    scholar.book = {"": "import math\n", TEXT[: -len(lines[4]) + 3]: lines[4].strip() + "\nmore"}
    found = answer("eval", "lines", path, "--model", model)
    assert (found["done"], found["metrics"]["model_exact"]["value"]) == (3, pytest.approx(2 / 3))
    table = run("eval", "lines", path, "--model", model, "--per-file", 2, "--cursor", "inside")
    assert "best_copy_exact" in table.stdout
    assert "cursor=inside" in table.stdout


def test_eval_mechanisms_measures_long_documents_only(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "long.py").write_text(TEXT * 8)
    (tmp_path / "t" / "short.py").write_text(TEXT)
    out = tmp_path / "out.jsonl"
    arguments = ("eval", "mechanisms", tmp_path / "t", "--model", model, "--at-least", 100)
    found = answer(*arguments, "-k", "4,16", "--out", out)
    assert (found["done"], found["settings"]["sizes"]) == (1, [4, 16])
    assert set(found["metrics"]) == {"mtp_acceptance", "index_recall@4", "index_recall@16"}
    assert [row["router"] for row in found["expert_load"]] == ["hash", "scored", "scored"]
    assert [(row["layer"], row["picked"]) for row in found["indexers"]] == [(1, 4), (1, 16)]
    assert all(row["chance"] < 1 and row["covered"] <= 1 for row in found["indexers"])
    assert answer(*arguments, "-k", "4,16", "--out", out) == found
    shown = run(*arguments)
    assert "coverable" in shown.stdout
    assert "has 3000 tokens" in str(
        run("eval", "mechanisms", tmp_path / "t", "--model", model, "--at-least", 3000).exception
    )


def test_interrupted_lines_are_not_lost(
    model: Path, tmp_path: Path, scholar: Scholar, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "a.py", tmp_path / "out.jsonl"
    path.write_text(TEXT)
    options = ("--out", out, "--no-syntax", "--candidates", 0, "--no-copying")
    arguments = ("eval", "lines", path, "--model", model, *options)
    write, calls = Scholar.__call__, 0

    def interrupted(self: Scholar, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        yield from write(self, requests)

    monkeypatch.setattr(completer, "_GROUP", 1)
    monkeypatch.setattr(Scholar, "__call__", interrupted)
    stopped = run(*arguments)
    assert stopped.exit_code == 1  # 130 from `main`
    assert "1 of 3 done" in stopped.stdout
    monkeypatch.setattr(Scholar, "__call__", write)
    scholar.asked.clear()
    assert answer(*arguments)["done"] == 3
    assert len(scholar.asked) == 2


FUNCTION = {
    "task_id": "T/0",
    "prompt": 'def area(radius):\n    """Of a circle."""\n',
    "canonical_solution": "    return 3.14 * radius**2\n",
    "test": "def check(candidate):\n    assert round(candidate(1)) == 3\n",
    "entry_point": "area",
}


def rows_in(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.mark.usefixtures("isolation")
def test_eval_functions_counts_passed_programs(
    model: Path, tmp_path: Path, scholar: Scholar
) -> None:
    other = {**FUNCTION, "task_id": "T/1", "prompt": "def area(radius):\n"}
    path = rows_in(tmp_path / "f", FUNCTION, other)
    scholar.book = {FUNCTION["prompt"]: "    return 3.14 * radius**2\n\n\nassert False\n"}
    found = answer("eval", "functions", path, "--model", model)
    assert found["metrics"]["pass@1"]["value"] == 0.5
    assert sum(found["outcomes"].values()) == 2
    assert found["outcomes"]["passed"] == 1
    assert found["left_out"] == []
    several = answer(
        "eval", "functions", path, "--model", model, "--samples", 3, "-k", "1,2", "--temperature",
        0.5, "--limit", 1, "--seed", 4,
    )  # fmt: skip
    assert (several["done"], set(several["metrics"])) == (3, {"pass@1", "pass@2"})
    assert [request.params.seed for request in scholar.asked[-3:]] == [4, 5, 6]


@pytest.mark.usefixtures("isolation")
def test_problems_that_measure_nothing_are_left_out_by_name(
    model: Path, tmp_path: Path, scholar: Scholar
) -> None:
    wrong = {**FUNCTION, "task_id": "T/wrong", "canonical_solution": "    return 1\n"}
    path = rows_in(tmp_path / "f", wrong, FUNCTION)
    zipped = tmp_path / "f.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    scholar.book = {FUNCTION["prompt"]: FUNCTION["canonical_solution"]}
    found = answer("eval", "functions", zipped, "--model", model)
    assert (found["done"], found["metrics"]["pass@1"]["value"]) == (1, 1)
    why = "its own solution fails: wrong answer"
    assert found["left_out"] == [{"left out": "T/wrong", "because": why}]
    assert "T/wrong" in run("eval", "functions", path, "--model", model).output
    alone = run("eval", "functions", rows_in(tmp_path / "g", wrong), "--model", model)
    assert f"no problem can be graded; the first is T/wrong: {why}" in str(alone.exception)


@pytest.mark.usefixtures("isolation")
def test_mbpp_and_an_infilling_set_of_it(model: Path, tmp_path: Path, scholar: Scholar) -> None:
    path = rows_in(tmp_path / "m", row(), row(600))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    made = answer("eval", "make-infilling", path, one)
    assert made == {"rows": 2, "problems": 1, "left_out": {}}
    run("eval", "make-infilling", path, two, "--workers", 1)
    assert one.read_bytes() == two.read_bytes()
    gaps = [json.loads(line) for line in one.read_text().splitlines()]
    scholar.book = {gap["prompt"]: gap["canonical_solution"] for gap in gaps}
    found = answer("eval", "infilling", one, "--model", model)
    assert found["metrics"]["pass@1"]["value"] == 1
    assert found["settings"]["until"] == "line"
    assert found["settings"]["isolated"]
    written = answer("eval", "mbpp", path, "--model", model, "--examples", 1)
    assert (written["done"], written["settings"]["rows_without_a_function"]) == (1, 0)


def test_settings_that_mean_nothing(model: Path, tmp_path: Path) -> None:
    path = rows_in(tmp_path / "f", FUNCTION)

    def message(*more: object) -> str:
        result = run("eval", "functions", path, "--model", model, *more)
        return str(result.exception) + result.output

    assert "pass@5 needs at least as many --samples" in message("-k", "5")
    assert "set --temperature" in message("--samples", 2)
    assert "must be numbers such as 1,10" in message("-k", "few")
    assert "must be two ids" in run("eval", "mbpp", path, "--ids", "9-2").output
    assert "has no text in files named .js" in str(
        run("eval", "bpb", tmp_path, "--suffix", ".js").exception
    )


def test_without_isolation_nothing_runs(
    model: Path, tmp_path: Path, scholar: Scholar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise NoIsolation("cannot be isolated")

    monkeypatch.setattr("sounding.sandbox.run.require_isolation", refuse)
    path = rows_in(tmp_path / "f", FUNCTION)
    refused = run("eval", "functions", path, "--model", model)
    assert isinstance(refused.exception, NoIsolation)
    assert not scholar.asked
    told = answer("eval", "functions", path, "--model", model, "--unsafe-no-isolation")
    assert told["settings"]["isolated"] is False


def test_a_corpus_is_measured_on_what_was_held_out(model: Path, tmp_path: Path) -> None:
    from sounding.data.documents import Document, ShardWriter

    writer = ShardWriter(tmp_path, "heldout", 10**6)
    document = Document(
        path="a.py", package="p", version="1", license="MIT", sha256="", text=TEXT
    )  # fmt: skip
    writer.write(document)
    writer.finish()
    (tmp_path / "ignored.py").write_text("x = 1\n")
    out = tmp_path / "out"
    found = answer("eval", "bpb", tmp_path, "--model", model, "--out", out, "--no-compressors")
    assert found["done"] == 1
    assert '"p/a.py"' in out.read_text()
