"""Starting: the overview names every command as its own help does, and does not import torch."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from sounding.cli import COMMANDS, cli, main


@pytest.mark.parametrize("name", COMMANDS)
def test_overview_and_help_agree(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(200) == COMMANDS[name][1]
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "sounding", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_imports_no_torch() -> None:
    result = _run("--help")
    assert result.returncode == 0
    assert "inspect" in result.stdout
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in modules
    assert not {"torch", "numpy", "rich", "tokenizers"} & modules


def test_a_mistake_is_one_line_and_exit_code_1() -> None:
    command = [sys.executable, "-m", "sounding", "inspect", "flsh"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("sounding: 'flsh' is neither a preset")
    assert "Traceback" not in result.stderr


def test_an_unknown_command_is_named_with_exit_code_2() -> None:
    result = CliRunner().invoke(cli, ["inspct"])
    assert result.exit_code == 2
    assert "inspct" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compelte", "x.py:1"], "did you mean 'complete'?"),
        (["zzz"], "`sounding --help` lists them"),
        (["complete", "nowhere.py:3"], "sounding: nowhere.py: no such file or directory\n"),
        (["plan", "/nope"], "nor a folder\n"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sounding", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code and said in capsys.readouterr().err


def test_help_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sounding", "help", "complete"])
    main()
    assert "FILE:LINE" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sounding", "-V"])
    main()
    assert "version" in capsys.readouterr().out
