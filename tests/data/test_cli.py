"""The commands from end to end, on folders and wheels made here."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import COMMANDS
from sounding.cli.data import data
from sounding.data.dataset import Dataset
from tests.data.conftest import FolderMaker, code, make_wheel


def run(*words: object, fails: str = "") -> Result:
    result = CliRunner().invoke(data, [str(word) for word in words])
    if fails:
        assert isinstance(result.exception, ValueError) and fails in str(result.exception)
    else:
        assert result.exception is None, result.output
    return result


@pytest.fixture
def project(make_folder: FolderMaker) -> Path:
    files: dict[str, str | bytes] = {f"m{seed}.py": code(seed) for seed in range(30)}
    return make_folder("project", {**files, "LICENSE": "MIT License", "copy.py": code(3)})


def test_help_is_the_one_in_the_table() -> None:
    assert data.get_short_help_str(200) == COMMANDS["data"][1]


def test_a_folder_without_code_is_no_source(tmp_path: Path, make_folder: FolderMaker) -> None:
    words = ("build", tmp_path / "corpus", "--source", make_folder("notes", {"a.md": "# A\n"}))
    run(*words, fails="has no file that ends in .py (--suffix)")
    assert not (tmp_path / "corpus").exists()


def test_from_folders_to_batches(tmp_path: Path, project: Path, make_folder: FolderMaker) -> None:
    other = make_folder(
        "other", {"a.py": code(100), "answer.py": code(101), "n.md": "# Notes\n" * 20}
    )
    row = tmp_path / "rows.jsonl"
    row.write_text(json.dumps({"code": code(101)}) + "\n")
    out, words = tmp_path / "corpus", ["--source", project, "--source", other]
    words += ["--heldout", "other", "--exclude", row, "--suffix", ".py", "--suffix", ".md"]
    stats = json.loads(run("build", out, *words, "--json").stdout)
    assert stats["splits"]["train"]["documents"] == 30
    assert stats["splits"]["heldout"]["documents"] == 2
    assert stats["skipped"] == {"duplicate": 1, "excluded": 1, "type": 1}
    table = run("show", out).stdout
    assert "project" in table and "train: 30 documents" in table and "excluded 1" in table
    lines = run("show", out, "--split", "heldout", "--package", "other").stdout.splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a.py", "n.md"]

    run("vocabulary", out, "--vocab-size", 400, "--out", tmp_path / "tokenizer.json")
    made = ("--tokenizer", tmp_path / "tokenizer.json", "--out", tmp_path / "set")
    info = json.loads(run("tokenize", out, *made, "--json").stdout)
    assert info["documents"] == len(Dataset.open(tmp_path / "set")) == 30
    assert info["vocab_size"] == 400 and info["bytes"] == stats["splits"]["train"]["bytes"]
    run("tokenize", out, *made, fails="exists; choose a new folder")

    row.write_text(
        "".join(
            json.dumps(
                {
                    "task_id": number,
                    "text": f"Say {number}.",
                    "code": "x = 1",
                    "test_list": ["assert x"],
                }
            )
            + "\n"
            for number in (11, 600, 602, 603, 974)
        )
    )
    problems = tmp_path / "problems"
    run("problems", row, "--tokenizer", tmp_path / "tokenizer.json", "--out", problems)
    found = Dataset.open(problems)
    texts = [found.tokenizer.decode(found.document(i).tolist()) for i in range(len(found))]
    assert texts == ["# Say 603.\nx = 1\n", "# Say 974.\nx = 1\n"]


def test_from_a_manifest(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    package, wheel = make_wheel(
        tmp_path / "index", {"sample/a.py": code(50), "sample/b.py": code(51)}
    )
    manifest = tmp_path / "manifest.toml"
    left_out = hashlib.sha256(code(51).encode()).hexdigest()
    manifest.write_text(
        f"left_out = ['{left_out}']\n[[package]]\n"
        + "".join(f'{name} = "{value}"\n' for name, value in vars(package).items())
        + '[target]\npython = "3.11"\n'
    )
    words = ["--manifest", manifest, "--cache", tmp_path / "cache", "--source", project]
    content = wheel.read_bytes()
    wheel.unlink()
    run("build", tmp_path / "out", *words, fails="1 of 1 packages are missing")
    wheel.write_bytes(content)
    stats = json.loads(run("build", tmp_path / "out", *words, "--json").stdout)
    assert stats["packages"].keys() == {"sample", "project"}
    assert stats["packages"]["sample"]["documents"] == 1
    assert stats["packages"]["sample"]["skipped"] == {"left-out": 1, "type": 3}
    assert (tmp_path / "cache" / "packages" / wheel.name).is_file()


def test_wrong_arguments_of_data_commands_are_refused(tmp_path: Path, project: Path) -> None:
    out = tmp_path / "out"
    run("build", out, "--source", project, "--heldout", "x", fails="no source has this name")
    run("build", out, "--source", tmp_path / "missing", fails="is not a folder")
    run("build", out, "--source", project)
    run("show", out, "--package", "project", fails="--package requires --split")
    run("show", tmp_path, fails="holds no finished corpus")
