"""`write` and `complete` through their runner, on a random model."""

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding import loading
from sounding.cli import cli
from sounding.model.from_checkpoint import save_model
from sounding.presets import tiny
from tests.engine.scripted import Author, small_tokenizer
from tests.networks import make_network

SOURCE = "def add(a, b):\n    return a\n\n\nx = add(1, 2)\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of two layers with a tokenizer of its own."""
    tokenizer = small_tokenizer()
    config = dataclasses.replace(
        tiny(),
        quantization_config=None,
        expert_dtype=None,
        num_hidden_layers=2,
        compress_ratios=(128, 4, 0),
        vocab_size=tokenizer.num_tokens + 5,
    )
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(make_network(config), folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "add.py"
    path.write_text(SOURCE)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=True)


def test_completing_is_reproducible(model: Path, source: Path) -> None:
    text = source.rename(source.with_suffix(".txt"))  # a random model's Python does not parse
    arguments = ("complete", f"{text}:2:13", "--model", model, "--max-tokens", 5, "--json")
    first, second = run(*arguments), run(*arguments)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert (found["line"], found["column"], found["kind"]) == (2, 13, "line")
    assert len(found["alternatives"]) == 1
    assert found["alternatives"][0]["tokens"] <= 5
    assert text.read_text() == SOURCE


@pytest.fixture
def author(monkeypatch: pytest.MonkeyPatch) -> Author:
    """The model's words are written by hand."""
    author = Author("", "")
    monkeypatch.setattr(loading.LoadedModel, "batch", lambda *_: author)
    return author


def test_what_is_inserted(model: Path, source: Path, author: Author) -> None:
    author.prefix, author.scripts = SOURCE[:27], (" + b\nnonsense",)
    result = run("complete", f"{source}:2", "--model", model)
    assert (result.stdout, result.stderr) == (" + b\n", "")
    author.prefix, author.scripts = SOURCE[:15], ("    c = a + b\n    return c\n\nd",)
    result = run("complete", f"{source}:2:1", "--block", "--model", model)
    assert result.stdout == "    c = a + b\n    return c\n\n"


def test_alternatives_are_numbered(model: Path, source: Path, author: Author) -> None:
    author.prefix, author.scripts = SOURCE[:27], (" + (", " + b", " - b")
    result = run("complete", f"{source}:2", "-n", 3, "--model", model)
    assert result.stdout == "# 1 of 2, parses\n + b\n# 2 of 2, parses\n - b\n"


def test_what_does_not_parse_is_not_shown(model: Path, source: Path, author: Author) -> None:
    author.prefix, author.scripts = SOURCE[:27], (" + (",)
    result = run("complete", f"{source}:2", "--model", model)
    assert (result.stdout, result.stderr) == ("", "the model suggests no completion here\n")
    shown = json.loads(run("complete", f"{source}:2", "--json", "--model", model).stdout)
    assert shown["alternatives"] == []


def test_a_file_that_is_broken_elsewhere_is_completed(
    model: Path, tmp_path: Path, author: Author
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = (\n\ndef add(a, b):\n    return a\n")
    author.prefix, author.scripts = broken.read_text()[:-1], (" + b",)
    result = run("complete", f"{broken}:4", "--model", model)
    assert result.stdout == " + b\n"


def test_writing_stops_when_the_model_repeats_itself(model: Path, author: Author) -> None:
    author.prefix, author.scripts = "a = 1\n", ("b = a\nc = b\n" * 40,)
    result = run("write", author.prefix, "--model", model)
    assert result.stdout.count("b = a") == 4
    assert "repeats itself" in result.stderr


def test_nothing_to_insert_is_said(model: Path, source: Path, author: Author) -> None:
    author.prefix = SOURCE[:27]
    result = run("complete", f"{source}:2", "--model", model)
    assert result.stdout == ""
    assert result.stderr == "the model suggests no completion here\n"


def test_other_files_are_read(model: Path, source: Path, author: Author, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("def subtract(a, b):\n    return add(a, -b)\n")
    author.prefix, author.scripts = SOURCE[:27], (" + b",)
    result = run("complete", f"{source}:2", "--context", other, "--model", model)
    assert result.exit_code == 0, result.output
    assert "def subtract" in small_tokenizer().decode(author.requests[0].prompt)


def test_a_byte_order_mark_is_no_text(model: Path, source: Path, author: Author) -> None:
    """As editors on Windows write one: the answer is judged and made without it."""
    source.write_text("\ufeff" + SOURCE, encoding="utf-8")
    author.prefix, author.scripts = SOURCE[:27], (" + b",)
    result = run("complete", f"{source}:2", "--context", source, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["alternatives"][0]["valid"]
    assert "\ufeff" not in small_tokenizer().decode(author.requests[0].prompt)


def test_write_stops_where_until_says(model: Path, author: Author) -> None:
    author.prefix, author.scripts = "def f(x):", ("\n    return x\n\n\ny = 1",)
    assert run("write", author.prefix, "--model", model).stdout == "\n    return x\n"
    everything = run("write", author.prefix, "--until", "end", "--model", model)
    assert everything.stdout == "\n    return x\n\n\ny = 1\n"
    author.prefix, author.scripts = "x = ", ("1\ny",)
    assert run("write", "x = ", "--until", "line", "--model", model).stdout == "1\n"
    piped = CliRunner().invoke(
        cli, ["write", "-", "--until", "line", "--model", str(model)], input="x = "
    )
    assert piped.stdout == "1\n"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{}", "must be FILE:LINE or FILE:LINE:COL"),
        ("{}:9", "has no line 9"),
        ("{}:0", "has no line 0"),
        ("{}:1:99", "has no column 99"),
        ("/nowhere.py:1", "No such file"),
    ],
)
def test_places_that_are_none(source: Path, where: str, message: str) -> None:
    result = run("complete", where.format(source))
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_models_that_are_none(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "none")
    for arguments in (
        ("complete", f"{source}:1"), ("write", "x"), ("generate", "--prompt", "x"),
        ("eval", "lines", source), ("eval", "mechanisms", source),
    ):  # fmt: skip
        assert "none is shipped in" in str(run(*arguments).exception), arguments
    assert "has no tokenizer.json" in str(run("write", "x", "--model", tmp_path).exception)
    assert "nor a folder" in str(run("write", "x", "--model", "/nowhere").exception)
    source.write_bytes(b"\xff")
    assert "is not UTF-8" in str(run("complete", f"{source}:1").exception)


def test_the_shipped_model_is_the_default(
    model: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED", model)
    for arguments in (
        ("complete", f"{source}:2", "--max-tokens", 2),
        ("write", "x", "--max-tokens", 2),
        ("generate", "--prompt", "x", "--max-tokens", 2),
        ("eval", "bpb", source),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
